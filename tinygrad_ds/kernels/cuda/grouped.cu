// Grouped products: the rows of every expert times its own matrix, in one launch. Where an expert's rows begin
// is read from `offsets` in device memory, so the host need not know how the router chose.
//
//   block: 16 x 16 threads, a tile of 64 x 64 results, 4 x 4 of them in the registers of each thread
//
//                  16 deep        64 wide
//              a | . . . |     b | . . . . |         both sides go through shared memory, 16 numbers deep at a
//           64   | . . . |  16   | . . . . |         time; thread (x, y) has the rows y, y + 16, .. and the
//                | . . . |                           columns x, x + 16, .. of the tile
//
// The number of tiles is not known to the host either: there are at most ceil(M / 64) + E, and a block that finds
// no tile of its number leaves.

const int TILE = 64, DEEP = 16, SIDE = 16, EACH = TILE / SIDE;

struct Stage {
  real a[DEEP][TILE + 1], b[DEEP][TILE + 1];
};

__device__ inline void multiply(const Stage& stage, real sums[EACH][EACH]) {
  for (int k = 0; k < DEEP; k++)
    for (int r = 0; r < EACH; r++)
      for (int c = 0; c < EACH; c++)
        sums[r][c] += stage.a[k][threadIdx.y + r * SIDE] * stage.b[k][threadIdx.x + c * SIDE];
}

// y (M, out): row r = W_e x_r for the expert e of the row;  transposed 0: W_e (out, in), y = x W^T;
// transposed 1: W_e (in, out), y = x W.  choice: row r of x is x[choice_r / K]; null: x[r].
extern "C" __global__ void rows_times_matrix(const real* x, const real* weight, const long long* offsets,
                                             const long long* choice, real* y, long long in, long long out,
                                             long long experts, long long rows, long long chosen,
                                             long long transposed) {
  __shared__ Stage stage;
  const int at = threadIdx.y * SIDE + threadIdx.x;
  require(offsets[0] == 0 && offsets[experts] == rows);
  long long e = 0, tile = blockIdx.y;
  for (; e < experts; e++) {
    require(offsets[e] <= offsets[e + 1]);
    const long long tiles = (offsets[e + 1] - offsets[e] + TILE - 1) / TILE;
    if (tile < tiles) break;
    tile -= tiles;
  }
  if (e == experts) return;  // all threads of the block alike
  const long long first = offsets[e] + tile * TILE, behind = min(offsets[e + 1], first + TILE);
  const long long column = (long long)blockIdx.x * TILE;
  weight += e * in * out;
  real sums[EACH][EACH] = {};
  for (long long deep = 0; deep < in; deep += DEEP) {
    for (int i = at; i < TILE * DEEP; i += SIDE * SIDE) {
      const int k = i % DEEP, row = i / DEEP;
      const long long r = first + row, of_x = r < behind ? (choice ? choice[r] / chosen : r) : 0;
      stage.a[k][row] = r < behind && deep + k < in ? x[of_x * in + deep + k] : (real)0;
    }
    for (int i = at; i < TILE * DEEP; i += SIDE * SIDE) {  // along memory, whichever way the matrix lies
      const int k = transposed ? i / TILE : i % DEEP, c = transposed ? i % TILE : i / DEEP;
      const bool there = deep + k < in && column + c < out;
      const long long from = transposed ? (deep + k) * out + column + c : (column + c) * in + deep + k;
      stage.b[k][c] = there ? weight[from] : (real)0;
    }
    __syncthreads();
    multiply(stage, sums);
    __syncthreads();
  }
  for (int r = 0; r < EACH; r++)
    for (int c = 0; c < EACH; c++) {
      const long long row = first + threadIdx.y + r * SIDE, to = column + threadIdx.x + c * SIDE;
      if (row < behind && to < out) y[row * out + to] = sums[r][c];
    }
}

// grad (E, out, in): dL/dW_e = sum over the expert's rows of g_r x_r^T; zeros where it has none. Rows of g and of x
// may be tokens' rows, by the choice of the row. Grid (ceil(in / 64), ceil(out / 64), E).
extern "C" __global__ void matrix_gradient(const real* g, const real* x, const long long* offsets,
                                           const long long* choice, real* grad, long long in, long long out,
                                           long long chosen, long long g_by_token, long long x_by_token) {
  __shared__ Stage stage;
  const int at = threadIdx.y * SIDE + threadIdx.x;
  const long long e = blockIdx.z, row = (long long)blockIdx.y * TILE, column = (long long)blockIdx.x * TILE;
  real sums[EACH][EACH] = {};
  for (long long start = offsets[e]; start < offsets[e + 1]; start += DEEP) {
    for (int i = at; i < TILE * DEEP; i += SIDE * SIDE) {
      const int k = i / TILE, c = i % TILE;
      const long long r = start + k;
      const bool there = r < offsets[e + 1];
      const long long token = there && choice ? choice[r] / chosen : r;
      stage.a[k][c] = there && row + c < out ? g[(g_by_token ? token : r) * out + row + c] : (real)0;
      stage.b[k][c] = there && column + c < in ? x[(x_by_token ? token : r) * in + column + c] : (real)0;
    }
    __syncthreads();
    multiply(stage, sums);
    __syncthreads();
  }
  for (int r = 0; r < EACH; r++)
    for (int c = 0; c < EACH; c++) {
      const long long to_row = row + threadIdx.y + r * SIDE, to = column + threadIdx.x + c * SIDE;
      if (to_row < out && to < in) grad[(e * out + to_row) * in + to] = sums[r][c];
    }
}
