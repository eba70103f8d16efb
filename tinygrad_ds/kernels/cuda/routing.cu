// The router: K of E experts for every token, and where each choice goes when rows are sorted by expert.
//
//   choose:  a warp for each token, 4 to a block; lane l has the experts l, l + 32, ..
//            shared memory of a warp:  | choice 0 .. E-1 | group scores 0 .. G-1 |
//
// Who is chosen follows from ranks: an expert is among the K best if fewer than K beat it. Of equal ones the lower
// index wins, and a NaN loses to every number, so that always exactly K are chosen.

__device__ inline bool beats(real a, long long index_a, real b, long long index_b) {
  if (a > b) return true;
  if (a < b) return false;
  if (a == b) return index_a < index_b;
  const bool a_is_none = a != a, b_is_none = b != b;
  return a_is_none == b_is_none ? index_a < index_b : b_is_none;
}

__device__ inline long long rank(const real* values, long long at, long long count) {
  long long better = 0;
  for (long long other = 0; other < count; other++) better += beats(values[other], other, values[at], at);
  return better;
}

// scores (N, E), indices (N, K) ascending, weights (N, K). with_softmax: scores are a softmax, a group is judged
// by its best expert and experts of lost groups count 0; else sigmoid, by the two best, and -inf (see ops/routing.py).
extern "C" __global__ void choose(const real* logits, const real* bias, real* scores, long long* indices,
                                  real* weights, long long tokens, long long experts, long long chosen,
                                  long long groups, long long kept_groups, long long with_softmax,
                                  long long normalised, double factor) {
  extern __shared__ char room[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const long long n = (long long)blockIdx.x * 4 + warp, size = experts / groups;
  real* choice = (real*)room + warp * (experts + groups);
  real* of_group = choice + experts;
  if (n >= tokens) return;
  logits += n * experts;
  scores += n * experts;
  real top = 0, total = 1;
  if (with_softmax) {
    top = -infinity();
    for (long long e = lane; e < experts; e += 32) top = max(top, logits[e]);
    top = warp_max(top);
    total = 0;
    for (long long e = lane; e < experts; e += 32) total += exp(logits[e] - top);
    total = warp_sum(total);
  }
  for (long long e = lane; e < experts; e += 32) {
    const real s = with_softmax ? exp(logits[e] - top) / total : sigmoid(logits[e]);
    scores[e] = s;
    choice[e] = bias && !with_softmax ? s + bias[e] : s;
  }
  __syncwarp();
  if (groups > 1) {
    for (long long group = lane; group < groups; group += 32) {
      real best = -infinity(), second = -infinity();
      for (long long e = group * size; e < (group + 1) * size; e++) {
        if (choice[e] > best) {
          second = best;
          best = choice[e];
        } else if (choice[e] > second) {
          second = choice[e];
        }
      }
      of_group[group] = with_softmax ? best : best + second;
    }
    __syncwarp();
    for (long long e = lane; e < experts; e += 32)
      if (rank(of_group, e / size, groups) >= kept_groups) choice[e] = with_softmax ? (real)0 : -infinity();
    __syncwarp();
  }
  long long before = 0;  // chosen experts with a lower index
  real sum = 0;
  for (long long start = 0; start < experts; start += 32) {
    const long long e = start + lane;
    const bool wins = e < experts && rank(choice, e, experts) < chosen;
    const unsigned winners = __ballot_sync(ALL, wins);
    const long long place = n * chosen + before + __popc(winners & ((1u << lane) - 1));
    if (wins) {
      indices[place] = e;
      weights[place] = scores[e];
      sum += scores[e];
    }
    before += __popc(winners);
  }
  sum = warp_sum(sum) + (real)1e-20;
  __syncwarp();  // every lane sees what the others wrote
  for (long long k = lane; k < chosen; k += 32)
    weights[n * chosen + k] *= (real)factor / (normalised ? sum : (real)1);
}

// From g = dL/dweights (or null) and h = dL/dscores (or null) to dL/dlogits; a warp for each token.
//   dL/dt_k = (c g_k - sum_j g_j w_j) / D where normalised, else c g_k;  D = sum of chosen scores + 1e-20
//   sigmoid: dL/dz = dL/ds s (1 - s);  softmax: dL/dz = s (dL/ds - sum_j s_j dL/ds_j)
extern "C" __global__ void choose_backward(const real* g, const real* h, const real* scores,
                                           const long long* indices, real* grad_logits, long long tokens,
                                           long long experts, long long chosen, long long with_softmax,
                                           long long normalised, double factor) {
  const long long n = (long long)blockIdx.x * 4 + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (n >= tokens) return;
  scores += n * experts;
  indices += n * chosen;
  grad_logits += n * experts;
  const real c = (real)factor;
  for (long long e = lane; e < experts; e += 32) grad_logits[e] = h ? h[n * experts + e] : (real)0;
  __syncwarp();
  if (g) {
    g += n * chosen;
    real total = 0, along = 0;
    for (long long k = lane; k < chosen; k += 32) {
      total += scores[indices[k]];
      along += g[k] * scores[indices[k]];
    }
    total = warp_sum(total) + (real)1e-20;
    along = c * warp_sum(along) / total;
    for (long long k = lane; k < chosen; k += 32)
      grad_logits[indices[k]] += normalised ? (c * g[k] - along) / total : c * g[k];
    __syncwarp();
  }
  real shared_by_all = 0;
  if (with_softmax) {
    for (long long e = lane; e < experts; e += 32) shared_by_all += scores[e] * grad_logits[e];
    shared_by_all = warp_sum(shared_by_all);
  }
  for (long long e = lane; e < experts; e += 32) {
    const real slope = with_softmax ? scores[e] : scores[e] * (1 - scores[e]);
    grad_logits[e] = slope * (grad_logits[e] - shared_by_all);
  }
}

// offsets (E + 1,) and position (choices,): a stable counting sort of the choices by expert, without atomics.
//
//   block e, 256 threads: counts the choices of lower experts, which is where its rows begin; then goes through
//   all choices once more, 256 at a time, and numbers its own in order
extern "C" __global__ void order(const long long* choices, long long* offsets, long long* position, long long count,
                                 long long experts) {
  const int THREADS = 256;
  __shared__ long long of_warp[THREADS / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const long long e = blockIdx.x;
  long long lower = 0;
  for (long long i = threadIdx.x; i < count; i += THREADS) {
    require(0 <= choices[i] && choices[i] < experts);
    lower += choices[i] < e;
  }
  for (int step = 16; step > 0; step /= 2) lower += __shfl_xor_sync(ALL, lower, step);
  if (lane == 0) of_warp[warp] = lower;
  __syncthreads();
  long long next = 0;
  for (int w = 0; w < THREADS / 32; w++) next += of_warp[w];
  if (threadIdx.x == 0) {
    offsets[e] = next;
    if (e == 0) offsets[experts] = count;
  }
  for (long long start = 0; start < count; start += THREADS) {
    const long long i = start + threadIdx.x;
    const unsigned mine = __ballot_sync(ALL, i < count && choices[i] == e);
    __syncthreads();  // everybody has read what is written now
    if (lane == 0) of_warp[warp] = __popc(mine);
    __syncthreads();
    long long before = next + __popc(mine & ((1u << lane) - 1));
    for (int w = 0; w < THREADS / 32; w++) {
      if (w < warp) before += of_warp[w];
      next += of_warp[w];
    }
    if (mine >> lane & 1) position[i] = before;
  }
}

// counts (bins,): how often each number from 0 to bins - 1 stands in values; a block for each bin.
extern "C" __global__ void count(const long long* values, long long* counts, long long size) {
  long long found = 0;
  for (long long start = 0; start < size; start += blockDim.x) {
    const long long i = start + threadIdx.x;
    found += __syncthreads_count(i < size && values[i] == blockIdx.x);
  }
  if (threadIdx.x == 0) counts[blockIdx.x] = found;
}
