// AdamW, the gradient's norm and clipping over all leaves of a model at once: one launch each, however many leaves.
//
//   the leaves' memory is one long list of pieces of at most PIECE entries, a block for each piece:
//
//   leaf 0  |------piece 0------|--piece 1--|      leaf 1  |-piece 2-|      leaf 2  |------piece 3------|-- ..
//
//   leaves (L, 6):  addresses of parameter, gradient and both moments, entries, whether it decays
//   pieces (P, 2):  leaf, first entry
//
// What the host would otherwise have to know before it goes on stays in `control` (3,), as double:
//   norm, the factor that clips, and 1 where loss and gradient are finite, else 0: then nothing is changed.

const int THREADS = 256;
const long long PIECE = 1 << 16;

struct Piece {
  real *parameter, *grad;
  stored *m, *v;  // AdamW's moments may be bfloat16, widened when they are read
  long long start, stop;
  bool decays;
};

__device__ inline Piece piece(const long long* leaves, const long long* pieces) {
  const long long* leaf = leaves + 6 * pieces[2 * blockIdx.x];
  const long long start = pieces[2 * blockIdx.x + 1];
  return {(real*)leaf[0], (real*)leaf[1], (stored*)leaf[2], (stored*)leaf[3], start, min(start + PIECE, leaf[4]),
          leaf[5] != 0};
}

// The sum over the block in double, in thread 0; `room` one number a warp.
__device__ inline double block_sum_wide(double value, double* room) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(ALL, value, step);
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0)
    for (int w = 0; w < THREADS / 32; w++) sum += room[w];
  return sum;
}

// of_piece (P,): the sum of squares of the gradient
extern "C" __global__ void squares(const long long* leaves, const long long* pieces, double* of_piece) {
  __shared__ double room[THREADS / 32];
  const Piece part = piece(leaves, pieces);
  double sum = 0;
  for (long long i = part.start + threadIdx.x; i < part.stop; i += THREADS)
    sum += (double)part.grad[i] * (double)part.grad[i];
  sum = block_sum_wide(sum, room);
  if (threadIdx.x == 0) of_piece[blockIdx.x] = sum;
}

// control from the pieces' sums, added in a fixed order by one block, and from `watched` (count,), which must be
// finite too: the loss.
extern "C" __global__ void decide(const double* of_piece, const double* watched, double* control, long long pieces,
                                  long long count, double max_norm) {
  __shared__ double room[THREADS / 32];
  double sum = 0;
  for (long long i = threadIdx.x; i < pieces; i += THREADS) sum += of_piece[i];
  sum = block_sum_wide(sum, room);
  if (threadIdx.x > 0) return;
  const double norm = sqrt(sum);
  bool fine = isfinite(norm);
  for (long long i = 0; i < count; i++) fine = fine && isfinite(watched[i]);
  control[0] = norm;
  control[1] = fine && norm > max_norm ? max_norm / norm : 1.0;
  control[2] = fine ? 1.0 : 0.0;
}

// The gradient times the factor, in place; zeros where the step is not taken.
extern "C" __global__ void clip(const long long* leaves, const long long* pieces, const double* control) {
  const Piece part = piece(leaves, pieces);
  if (control[2] != 0 && control[1] == 1) return;
  for (long long i = part.start + threadIdx.x; i < part.stop; i += THREADS)
    part.grad[i] = control[2] != 0 ? part.grad[i] * (real)control[1] : (real)0;
}

// One step of AdamW (formulas in kernels/cpu/optimizer.py); control may be null: no clipping, always taken.
extern "C" __global__ void adamw(const long long* leaves, const long long* pieces, const double* control, double lr,
                                 double beta_1, double beta_2, double eps, double decay, double correction_1,
                                 double correction_2) {
  const Piece part = piece(leaves, pieces);
  if (control && control[2] == 0) return;
  const real factor = control ? (real)control[1] : (real)1;
  const real b_1 = (real)beta_1, b_2 = (real)beta_2, rest_1 = (real)(1 - beta_1), rest_2 = (real)(1 - beta_2);
  const real keep = (real)(part.decays ? 1 - lr * decay : 1.0), step = (real)(lr / correction_1);
  const real over_2 = (real)(1 / correction_2);
  for (long long i = part.start + threadIdx.x; i < part.stop; i += THREADS) {
    const real g = part.grad[i] * factor;
    const real m = part.m[i] * b_1 + rest_1 * g, v = part.v[i] * b_2 + rest_2 * (g * g);
    part.grad[i] = g;
    part.m[i] = m;
    part.v[i] = v;
    part.parameter[i] = part.parameter[i] * keep - step * m / (sqrt(v * over_2) + (real)eps);
  }
}
