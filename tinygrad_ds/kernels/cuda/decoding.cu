// Decoding with latent attention (MLA) in the absorbed form: one new column for every row of the batch.
// Heads attend to the latents themselves, [c_kv | RoPE(k_r)] of r + d_r numbers, as one key shared by all.

// The new latent of each row into column `length` of the cache: the norm of the first r numbers, the others turned.
//
//   block: 128 threads for a row of the batch;  | c: thread i has i, i + 128, .. | k_r: thread j has pair j, ..|
extern "C" __global__ void append(const real* fresh, const real* weight, const real* cos, const real* sin,
                                  real* latents, long long row_step, long long column, long long r, long long d_r,
                                  long long interleaved, double eps) {
  __shared__ real room[4];
  const long long b = blockIdx.x, half = d_r / 2;
  fresh += b * (r + d_r);
  real* to = latents + b * row_step + column * (r + d_r);
  real squares = 0;
  for (long long i = threadIdx.x; i < r; i += 128) squares += fresh[i] * fresh[i];
  const real scale = 1 / sqrt(block_sum(squares, room) / (real)r + (real)eps);
  for (long long i = threadIdx.x; i < r; i += 128) to[i] = fresh[i] * scale * weight[i];
  for (long long j = threadIdx.x; j < half; j += 128) {
    const long long first = r + (interleaved ? 2 * j : j), second = r + (interleaved ? 2 * j + 1 : j + half);
    const real c = cos[b * half + j], s = sin[b * half + j], x_a = fresh[first], x_b = fresh[second];
    to[first] = x_a * c - x_b * s;
    to[second] = x_a * s + x_b * c;
  }
}

// o (batch, heads, r) = sum_j softmax(s q . k_j)_j c_j over the columns first <= j < columns.
//
//   block: 4 warps for one head of one row;  warp w reads every fourth column, and keeps its own softmax up to date
//
//   columns    0 1 2 3 | 4 5 6 7 | ..          lane l: the numbers l, l + 32, .. of a column,
//   warp       0 1 2 3 | 0 1 2 3 | ..          LATENT_COLUMNS sums of the result in registers
//
// At the end the four warps' sums are brought to one maximum and added, in shared memory:
//   | q 0 .. r + d_r - 1 | sums of warp 0, r numbers | .. of warp 3 | maxima 4 | totals 4 |
extern "C" __global__ void attend(const real* q, const real* latents, const long long* first, real* o,
                                  long long row_step, long long columns, long long r, long long d_r, double scale) {
  extern __shared__ char memory[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const long long h = blockIdx.x, b = blockIdx.y, width = r + d_r;
  real* query = (real*)memory;
  real* sums = query + width;
  real* tops = sums + 4 * r;
  real* totals = tops + 4;
  q += (b * gridDim.x + h) * width;
  latents += b * row_step;
  for (long long i = threadIdx.x; i < width; i += 128) query[i] = q[i];
  __syncthreads();
  real top = -infinity(), total = 0, mine[LATENT_COLUMNS];
  for (int c = 0; c < LATENT_COLUMNS; c++) mine[c] = 0;
  const long long lowest = min(first[b], columns - 1);  // a row sees its own column at least
  for (long long j = lowest + warp; j < columns; j += 4) {
    const real* key = latents + j * width;
    real s = 0;
    for (long long i = lane; i < width; i += 32) s += query[i] * key[i];
    s = (real)scale * warp_sum(s);
    const real now = max(top, s), before = exp(top - now), p = exp(s - now);
    total = total * before + p;
    for (int c = 0; c < LATENT_COLUMNS; c++) {
      const long long i = lane + 32 * c;
      mine[c] = mine[c] * before + (i < r ? p * key[i] : (real)0);
    }
    top = now;
  }
  if (lane == 0) {
    tops[warp] = top;
    totals[warp] = total;
  }
  for (int c = 0; c < LATENT_COLUMNS; c++)
    if (lane + 32 * c < r) sums[warp * r + lane + 32 * c] = mine[c];
  __syncthreads();
  const real highest = max(max(tops[0], tops[1]), max(tops[2], tops[3]));
  real whole = 0;
  for (int w = 0; w < 4; w++) whole += totals[w] * exp(tops[w] - highest);
  for (long long i = threadIdx.x; i < r; i += 128) {
    real sum = 0;
    for (int w = 0; w < 4; w++) sum += sums[w * r + i] * exp(tops[w] - highest);
    o[(b * gridDim.x + h) * r + i] = sum / whole;
  }
}
