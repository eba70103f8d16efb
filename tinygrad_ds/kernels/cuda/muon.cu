// Muon around its products: momentum, norms, polynomial and update of all matrices at once, one launch each.
//
//   the matrices' entries are one long list of pieces of at most PIECE, a block for each piece, as in optimizer.cu
//
//   matrices (L, 7):  addresses of parameter, gradient (0: none) and momentum, first entry in the buffers below,
//                     rows, columns, first piece
//   pieces (P, 2):    matrix, first entry
//
// Of every matrix two layouts are kept, so that each product finds its factors in one piece:
//
//   x (k, n), k <= n:  the matrix, or its transpose where it is tall       turned (n, k):  the other of both
//
// `control` is that of optimizer.cu, null for a step that is taken in any case; where it says no, nothing is changed.

const int THREADS = 256;
const long long PIECE = 1 << 16;

struct Piece {
  real *parameter, *grad, *m;
  long long at, rows, columns, first;  // `at`: where the matrix begins in the buffers
  long long start, stop;
  bool tall;
};

__device__ inline Piece piece(const long long* matrices, const long long* pieces) {
  const long long* of = matrices + 7 * pieces[2 * blockIdx.x];
  const long long start = pieces[2 * blockIdx.x + 1];
  return {(real*)of[0], (real*)of[1], (real*)of[2], of[3], of[4], of[5], of[6], start,
          min(start + PIECE, of[4] * of[5]), of[4] > of[5]};
}

__device__ inline bool taken(const double* control) {
  return !control || control[2] != 0;
}

// m = momentum m + g; g + momentum m goes to the layout of the parameter. of_piece (P,): its sum of squares.
extern "C" __global__ void ahead(const long long* matrices, const long long* pieces, const double* control, real* x,
                                 real* turned, double* of_piece, double momentum) {
  __shared__ double room[THREADS / 32];
  const Piece part = piece(matrices, pieces);
  if (!taken(control)) return;
  real* to = (part.tall ? turned : x) + part.at;
  double sum = 0;
  for (long long i = part.start + threadIdx.x; i < part.stop; i += THREADS) {
    const real g = part.grad ? part.grad[i] : (real)0;
    const real m = part.m[i] * (real)momentum + g, value = g + (real)momentum * m;
    part.m[i] = m;
    to[i] = value;
    sum += (double)value * (double)value;
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(ALL, sum, step);
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  sum = 0;
  for (int w = 0; w < THREADS / 32; w++) sum += room[w];
  of_piece[blockIdx.x] = sum;
}

// Both layouts of each matrix over its Frobenius norm.
extern "C" __global__ void normalize(const long long* matrices, const long long* pieces, const double* control, real* x,
                                     real* turned, const double* of_piece) {
  const Piece part = piece(matrices, pieces);
  if (!taken(control)) return;
  const long long count = (part.rows * part.columns + PIECE - 1) / PIECE;
  double sum = 0;
  for (long long i = 0; i < count; i++) sum += of_piece[part.first + i];
  const real norm = (real)sqrt(sum) + (real)1e-7;
  real* same = (part.tall ? turned : x) + part.at;
  real* other = (part.tall ? x : turned) + part.at;
  for (long long i = part.start + threadIdx.x; i < part.stop; i += THREADS) {
    const real value = same[i] / norm;
    same[i] = value;
    other[i % part.columns * part.rows + i / part.columns] = value;
  }
}

// b A + c A A, entry by entry over the squares of all matrices, in place of the second.
extern "C" __global__ void mix(const real* gram, real* squared, long long size, double b, double c) {
  const long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
  if (i < size) squared[i] = (real)b * gram[i] + (real)c * squared[i];
}

// x = a x + y in both layouts; y (k, n) is the product of the above with x.
extern "C" __global__ void add(const long long* matrices, const long long* pieces, const double* control, real* x,
                               real* turned, const real* y, double a) {
  const Piece part = piece(matrices, pieces);
  if (!taken(control)) return;
  const long long k = min(part.rows, part.columns), n = max(part.rows, part.columns);
  for (long long i = part.start + threadIdx.x; i < part.stop; i += THREADS) {
    const real value = (real)a * x[part.at + i] + y[part.at + i];
    x[part.at + i] = value;
    turned[part.at + i % n * k + i / n] = value;
  }
}

// p = keep p - lr sqrt(max(1, rows / columns)) x
extern "C" __global__ void apply(const long long* matrices, const long long* pieces, const double* control,
                                 const real* x, const real* turned, double lr, double keep) {
  const Piece part = piece(matrices, pieces);
  if (!taken(control)) return;
  const real step = (real)(lr * sqrt(part.tall ? (double)part.rows / (double)part.columns : 1.0));
  const real* update = (part.tall ? turned : x) + part.at;
  for (long long i = part.start + threadIdx.x; i < part.stop; i += THREADS)
    part.parameter[i] = (real)keep * part.parameter[i] - step * update[i];
}
