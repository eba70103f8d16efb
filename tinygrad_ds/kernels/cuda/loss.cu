// Cross-entropy of rows of logits z (rows, d) with targets t: l = log sum_v e^(z_v) - z_t, and its gradient.
//
//   block:  256 threads for one row, since vocabularies are long;  thread i takes columns i, i + 256, ..
//   targets that are `ignored` give 0 everywhere; one that is no class stops the kernel.

const int THREADS = 256;

struct Row {
  real top, total;  // the largest logit, and the sum of e^(z - top)
};

__device__ inline Row statistics(const stored* z, long long d, real* room) {
  real top = -infinity();
  for (long long v = threadIdx.x; v < d; v += THREADS) top = max(top, z[v]);
  top = block_max(top, room);
  real total = 0;
  for (long long v = threadIdx.x; v < d; v += THREADS) total += exp(z[v] - top);
  return {top, block_sum(total, room)};
}

// losses (rows,) and lse (rows,) = log sum e^z
extern "C" __global__ void forward(const stored* z, const long long* targets, real* losses, real* lse, long long d,
                                   long long ignored) {
  __shared__ real room[THREADS / 32];
  const long long n = blockIdx.x, t = targets[n];
  z += n * d;
  const Row row = statistics(z, d, room);
  if (threadIdx.x > 0) return;
  require(t == ignored || (0 <= t && t < d));
  lse[n] = log(row.total) + row.top;
  losses[n] = t == ignored ? (real)0 : log(row.total) + (row.top - z[t]);
}

// dL/dz = g_n (e^(z - lse) - [v = t]);  g has one entry for all rows, or one for each where several is 1.
// divisor: what the mean divides by, or null.
extern "C" __global__ void backward(const stored* g, const stored* z, const real* lse, const long long* targets,
                                    const real* divisor, stored* grad, long long d, long long ignored,
                                    long long several) {
  const long long n = blockIdx.x, t = targets[n];
  const real scale = t == ignored ? (real)0 : g[several ? n : 0] / (divisor ? *divisor : (real)1);
  for (long long v = threadIdx.x; v < d; v += THREADS) {
    const real p = exp(z[n * d + v] - lse[n]);
    grad[n * d + v] = t == ignored ? (real)0 : scale * (p - (v == t ? (real)1 : (real)0));
  }
}

// For the head: the loss of each row, and with_gradient in the place of z its gradient. A row of its own a block,
// so nobody else reads what is written over; the target's logit is read before that.
extern "C" __global__ void in_place(stored* z, const long long* targets, real* losses, long long d, long long ignored,
                                    long long with_gradient) {
  __shared__ real room[THREADS / 32];
  const long long n = blockIdx.x, t = targets[n];
  z += n * d;
  require(t == ignored || (0 <= t && t < d));
  const Row row = statistics(z, d, room);
  const real of_target = t == ignored ? (real)0 : z[t];
  __syncthreads();
  if (threadIdx.x == 0) losses[n] = t == ignored ? (real)0 : log(row.total) + (row.top - of_target);
  if (!with_gradient) return;
  for (long long v = threadIdx.x; v < d; v += THREADS)
    z[v] = t == ignored ? (real)0 : exp(z[v] - row.top) / row.total - (v == t ? (real)1 : (real)0);
}

// sum = the sum of losses (rows,), counted = how many targets count; one block, the same order each time.
extern "C" __global__ void add_up(const real* losses, const long long* targets, real* sum, real* counted,
                                  long long rows, long long ignored) {
  __shared__ real room[THREADS / 32];
  real of_losses = 0, of_rows = 0;
  for (long long n = threadIdx.x; n < rows; n += THREADS) {
    of_losses += losses[n];
    of_rows += targets[n] == ignored ? 0 : 1;
  }
  of_losses = block_sum(of_losses, room);
  of_rows = block_sum(of_rows, room);
  if (threadIdx.x > 0) return;
  *sum = of_losses;
  *counted = of_rows;
}
