// Rows on their way to the experts and back. Row r of the sorted rows is a copy for choice c = n K + k of token n.
//
//   one thread an entry of what is written, unless said otherwise; neighbours in a row are neighbours in memory

// choice (M,) from position (M,): which choice each row is for. Positions are a permutation of the rows.
extern "C" __global__ void invert(const long long* position, long long* choice, long long rows) {
  const long long c = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= rows) return;
  require(0 <= position[c] && position[c] < rows);
  choice[position[c]] = c;
}

// rows (M, d): row r = x[choice_r / K]
extern "C" __global__ void copy_tokens(const real* x, const long long* choice, real* rows, long long count,
                                       long long d, long long chosen) {
  const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= count * d) return;
  rows[at] = x[choice[at / d] / chosen * d + at % d];
}

// y (N, d): y_n = sum_k w[n, k] rows[position[n, k]], in the order of k; w is 1 where it is null.
extern "C" __global__ void add_copies(const real* rows, const real* weights, const long long* position, real* y,
                                      long long tokens, long long d, long long chosen, long long count) {
  const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= tokens * d) return;
  const long long n = at / d;
  real sum = 0;
  for (long long k = 0; k < chosen; k++) {
    const long long r = position[n * chosen + k];
    require(0 <= r && r < count);
    sum += (weights ? weights[n * chosen + k] : (real)1) * rows[r * d + at % d];
  }
  y[at] = sum;
}

// combine backward: grad_rows[r] = w g_n and grad_w = g_n . rows[r]; a warp for each choice, lanes along d.
extern "C" __global__ void combine_backward(const real* g, const real* rows, const real* weights,
                                            const long long* position, real* grad_rows, real* grad_weights,
                                            long long choices, long long d, long long chosen, long long count) {
  const long long c = (long long)blockIdx.x * 4 + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (c >= choices) return;
  const long long n = c / chosen, r = position[c];
  require(0 <= r && r < count);
  real along = 0;
  for (long long i = lane; i < d; i += 32) {
    along += g[n * d + i] * rows[r * d + i];
    grad_rows[r * d + i] = weights[c] * g[n * d + i];
  }
  along = warp_sum(along);
  if (lane == 0) grad_weights[c] = along;
}

// h (M, width) = w_r silu(gate) up with gate_up (M, 2 width) = [gate | up]; w_r = weights[choice_r].
extern "C" __global__ void weighted_swiglu(const real* gate_up, const real* weights, const long long* choice, real* h,
                                           long long rows, long long width) {
  const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= rows * width) return;
  const long long r = at / width, i = at % width;
  const real z = gate_up[r * 2 * width + i];
  h[at] = weights[choice[r]] * z * sigmoid(z) * gate_up[r * 2 * width + width + i];
}

// From u_r = W^T g_n: dL/dgate_up (M, 2 width) and dL/dweights, at the choice of the row; a warp for each row.
extern "C" __global__ void swiglu_backward(const real* u, const real* gate_up, const real* weights,
                                           const long long* choice, real* grad_gate_up, real* grad_weights,
                                           long long rows, long long width) {
  const long long r = (long long)blockIdx.x * 4 + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (r >= rows) return;
  const real* gate = gate_up + r * 2 * width;
  const real* up = gate + width;
  const real weight = weights[choice[r]];
  real along = 0;
  for (long long i = lane; i < width; i += 32) {
    const real z = gate[i], sigma = sigmoid(z), from_above = u[r * width + i];
    along += from_above * z * sigma * up[i];
    grad_gate_up[r * 2 * width + i] = weight * from_above * up[i] * sigma * (1 + z * (1 - sigma));
    grad_gate_up[r * 2 * width + width + i] = weight * from_above * z * sigma;
  }
  along = warp_sum(along);
  if (lane == 0) grad_weights[choice[r]] = along;
}
