// RMSNorm: y = x r w with r = (mean(x^2) + eps)^(-1/2) for each row of x (rows, d).
//
//   block:  4 warps, a row each               lane l of a warp:  columns l, l + 32, l + 64, ..
//
//   row 0   warp 0   | 0 1 2 .. 31 | 0 1 2 .. 31 | 0 1 ..        so that 32 neighbours in memory are read at once
//   row 1   warp 1   | 0 1 2 .. 31 | 0 1 2 .. 31 | 0 1 ..

extern "C" __global__ void forward(const stored* x, const stored* weight, stored* y, real* r, long long rows,
                                   long long d, double eps) {
  const long long n = (long long)blockIdx.x * 4 + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (n >= rows) return;  // a whole warp leaves: no barrier of the block follows
  real squares = 0;
  for (long long i = lane; i < d; i += 32) squares += x[n * d + i] * x[n * d + i];
  const real scale = 1 / sqrt(warp_sum(squares) / (real)d + (real)eps);
  if (lane == 0) r[n] = scale;
  for (long long i = lane; i < d; i += 32) y[n * d + i] = x[n * d + i] * scale * weight[i];
}

// dL/dx = r (h - x_hat mean(h x_hat)) with h = g w and x_hat = x r. Layout as above.
extern "C" __global__ void backward_input(const stored* g, const stored* x, const real* r, const stored* weight,
                                          stored* grad_x, long long rows, long long d) {
  const long long n = (long long)blockIdx.x * 4 + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (n >= rows) return;
  const real scale = r[n];
  real along = 0;
  for (long long i = lane; i < d; i += 32) along += g[n * d + i] * weight[i] * x[n * d + i];
  along = warp_sum(along) * scale / (real)d;
  for (long long i = lane; i < d; i += 32) {
    const real x_hat = x[n * d + i] * scale;
    grad_x[n * d + i] = scale * (g[n * d + i] * weight[i] - x_hat * along);
  }
}

// dL/dweight = sum over rows of g x_hat. Which rows a thread adds, and in which order, depends on the shape
// alone, so the sum has the same bits each time. What the parts found is added in `add_parts`.
//
//   block (32, 8):  threadIdx.x a column, threadIdx.y every 8th row of the part;  blockIdx.y the part
extern "C" __global__ void backward_weight(const stored* g, const stored* x, const real* r, real* of_part,
                                           long long rows, long long d) {
  __shared__ real found[8][32];
  const long long i = (long long)blockIdx.x * 32 + threadIdx.x;
  const long long size = (rows + gridDim.y - 1) / gridDim.y, start = blockIdx.y * size;
  const long long stop = min(start + size, rows);
  real sum = 0;
  if (i < d)
    for (long long n = start + threadIdx.y; n < stop; n += 8) sum += g[n * d + i] * (x[n * d + i] * r[n]);
  found[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || i >= d) return;
  for (int y = 1; y < 8; y++) sum += found[y][threadIdx.x];
  of_part[blockIdx.y * d + i] = sum;
}

// total (d,) = the sum of `parts` rows, a thread for each column.
extern "C" __global__ void add_parts(const real* of_part, stored* total, long long parts, long long d) {
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= d) return;
  real sum = 0;
  for (long long part = 0; part < parts; part++) sum += of_part[part * d + i];
  total[i] = sum;
}
