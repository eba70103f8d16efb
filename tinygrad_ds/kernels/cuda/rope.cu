// Rotary position embedding: pair j of a row's last axis, turned by the angle of cos_j and sin_j.
//
//   one thread a pair;  rows are counted over up to three leading axes (size_1 and size_2 are those of the second
//   and third), and x, cos and sin say how far apart their rows lie along each: 0 where they repeat.
//
//   interleaved    | a b | a b | a b | ..          a thread reads two neighbours
//   in halves      | a a a .. | b b b .. |         neighbouring threads read neighbours, twice

struct Steps {
  long long first, second, third;
};

__device__ inline long long row_start(long long row, long long size_1, long long size_2, Steps steps) {
  return row / (size_1 * size_2) * steps.first + row / size_2 % size_1 * steps.second + row % size_2 * steps.third;
}

// y (rows, d) contiguous. turn is 1 forward and -1 backward: the transposed rotation turns the other way.
extern "C" __global__ void rotate(const stored* x, const stored* cos, const stored* sin, stored* y, long long rows,
                                  long long size_1, long long size_2, long long half, long long x_0, long long x_1,
                                  long long x_2, long long c_0, long long c_1, long long c_2, long long s_0,
                                  long long s_1, long long s_2, long long interleaved, double turn) {
  const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= rows * half) return;
  const long long row = at / half, j = at % half;
  const long long a = interleaved ? 2 * j : j, b = interleaved ? 2 * j + 1 : j + half;
  x += row_start(row, size_1, size_2, {x_0, x_1, x_2});
  const real c = cos[row_start(row, size_1, size_2, {c_0, c_1, c_2}) + j];
  const real s = (real)turn * sin[row_start(row, size_1, size_2, {s_0, s_1, s_2}) + j];
  const real x_a = x[a], x_b = x[b];
  y[row * 2 * half + a] = x_a * c - x_b * s;
  y[row * 2 * half + b] = x_a * s + x_b * c;
}
