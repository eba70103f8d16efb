// The gradient of an embedding: row v is the sum of g (positions, d) over the positions that read row v, in order.
//
//   block j, 128 threads: if an earlier position read the same row, that block does the work and this one leaves;
//   else it looks through all later positions, 128 at a time, and adds the rows that match
//
//   ids      7  3  7  7  5  3                 block 0 adds g_0 + g_2 + g_3 into row 7
//   block    0  1  -  -  4  -                 block 1 adds g_1 + g_5 into row 3, block 4 g_4 into row 5
//
// So every row has one writer and no atomics, and its sum has the same bits each time. `grad` is zeros before.

const int THREADS = 128;

extern "C" __global__ void embedding_backward(const long long* ids, const stored* g, real* grad, long long positions,
                                              long long d, long long vocabulary) {
  __shared__ int matches[THREADS];
  __shared__ int of_warp[THREADS / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const long long j = blockIdx.x, id = ids[j];
  require(0 <= id && id < vocabulary);
  int earlier = 0;
  for (long long i = threadIdx.x; i < j; i += THREADS) earlier |= ids[i] == id;
  if (__syncthreads_or(earlier)) return;
  for (long long start = j; start < positions; start += THREADS) {
    const long long i = start + threadIdx.x;
    const unsigned same = __ballot_sync(ALL, i < positions && ids[i] == id);
    if (lane == 0) of_warp[warp] = __popc(same);
    __syncthreads();
    int before = __popc(same & ((1u << lane) - 1)), found = 0;
    for (int w = 0; w < THREADS / 32; w++) {
      if (w < warp) before += of_warp[w];
      found += of_warp[w];
    }
    if (same >> lane & 1) matches[before] = (int)threadIdx.x;
    __syncthreads();
    for (long long c = threadIdx.x; c < d; c += THREADS) {
      real sum = grad[id * d + c];
      for (int m = 0; m < found; m++) sum += g[(start + matches[m]) * d + c];
      grad[id * d + c] = sum;
    }  // the next round's matches are written behind a barrier that all reach when they are here
  }
}

// y[j] = weight[ids[j]], a thread an entry.
extern "C" __global__ void embedding(const stored* weight, const long long* ids, stored* y, long long positions,
                                     long long d, long long vocabulary) {
  const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= positions * d) return;
  const long long id = ids[at / d];
  require(0 <= id && id < vocabulary);
  y[at] = weight[id * d + at % d];
}
