// softmax and its logarithm along the last axis of x (rows, d).
//
//   block:  4 warps, a row each;  lane l reads columns l, l + 32, ..  (as in norm.cu), three times over the row:
//   for the largest entry, for the sum of exponentials, for the result.

// logarithm: y = x - log sum e^x, else y = e^x / sum e^x
extern "C" __global__ void forward(const stored* x, stored* y, long long rows, long long d, long long logarithm) {
  const long long n = (long long)blockIdx.x * 4 + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (n >= rows) return;
  x += n * d;
  y += n * d;
  real top = -infinity();
  for (long long i = lane; i < d; i += 32) top = max(top, x[i]);
  top = warp_max(top);
  real total = 0;
  for (long long i = lane; i < d; i += 32) total += exp(x[i] - top);
  total = warp_sum(total);
  const real log_total = log(total);
  for (long long i = lane; i < d; i += 32) y[i] = logarithm ? x[i] - top - log_total : exp(x[i] - top) / total;
}

// softmax: dL/dx = y (g - sum g y);  logarithm: dL/dx = g - e^y sum g
extern "C" __global__ void backward(const stored* g, const stored* y, stored* grad_x, long long rows, long long d,
                                    long long logarithm) {
  const long long n = (long long)blockIdx.x * 4 + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (n >= rows) return;
  g += n * d;
  y += n * d;
  real sum = 0;
  for (long long i = lane; i < d; i += 32) sum += logarithm ? g[i] : g[i] * y[i];
  sum = warp_sum(sum);
  for (long long i = lane; i < d; i += 32)
    grad_x[n * d + i] = logarithm ? g[i] - exp(y[i]) * sum : y[i] * (g[i] - sum);
}
