// Quantising to FP8 with a scale for every tile (formulas in ops/quantize.py and formats.py): values on the
// format's grid, as numbers of the array's own format.
//
//   block: 128 threads for one tile, 1 x 128 of activations or 128 x 128 of weights; at the edges tiles are smaller
//
//   | tile 0,0 | tile 0,1 | t 0,2 |      the tile is read twice: for its largest finite entry, which makes the
//   | tile 1,0 | tile 1,1 | t 1,2 |      scale, and to be rounded; thread i takes entries i, i + 128, .. row by row
//
// A tile in which all is NaN has the scale NaN, where the reference raises FloatingPointError: nothing is read.

__device__ inline unsigned hashed(unsigned x) {  // Chris Wellons' lowbias32
  x = (x ^ x >> 16) * 0x7FEB352Du;
  x = (x ^ x >> 15) * 0x846CA68Bu;
  return x ^ x >> 16;
}

// a, not beyond the largest, on the grid; at random where bits are used, else to the nearest, ties to even.
__device__ inline real rounded(real a, long long mantissa, long long least_exponent, real largest, bool at_random,
                               unsigned bits) {
  if (a != a) return a;
  a = min(max(a, -largest), largest);
  int exponent;
  frexp(a == 0 ? (real)1 : a, &exponent);
  const int grid = (int)max((long long)exponent - 1, least_exponent) - (int)mantissa;
  const real step = ldexp((real)1, grid), size = abs(a / step), below = floor(size);
  real whole = rint(size);
  if (at_random) whole = below + ((real)(bits >> 8) * (real)5.9604644775390625e-08 < size - below ? 1 : 0);  // 2^-24
  return copysign(whole * step, a);
}

// What an expert's rounding adds to a seed (ops/recipe.py); the first expert is 0.
__device__ inline unsigned seed_of(long long seed, long long expert) {
  return hashed((unsigned)seed + (unsigned)expert * 0x9E3779B1u);
}

// The scale of a tile whose largest finite entry is known; NaN where it has no number.
__device__ inline real scale_of(real largest_here, bool numbers, double largest, double least,
                                long long power_of_two) {
  if (!numbers) return infinity() - infinity();
  const real scale = max(largest_here, (real)least) / (real)largest;
  if (!power_of_two) return scale;
  int exponent;
  const real part = frexp(scale, &exponent);
  return ldexp((real)1, exponent - (part == (real)0.5 ? 1 : 0));
}

// How codes are made: sign, exponent and mantissa in order, uint8 or, where `wide`, uint16. `top` is the sign's bit, and
// what is from `nan` on, the sign left out, is NaN.
struct Codes {
  void* at;  // null where none are wanted
  long long wide, top, nan;
};

// value is on the grid.
__device__ inline void write_code(Codes codes, long long at, real value, long long mantissa, long long least_exponent) {
  const real size = abs(value);
  int exponent;
  frexp(size, &exponent);
  const long long e = size == 0 ? least_exponent : max((long long)exponent - 1, least_exponent);
  long long code = value != value ? codes.nan
                                  : (long long)ldexp(size, (int)(mantissa - e)) + ((e - least_exponent) << mantissa);
  if (signbit(value)) code += codes.top;
  if (codes.wide)
    ((unsigned short*)codes.at)[at] = (unsigned short)code;
  else
    ((unsigned char*)codes.at)[at] = (unsigned char)code;
}

// y (rows, columns): the numbers of codes, times the scales (rows, ceil(columns / width)). A thread an entry.
extern "C" __global__ void restore(void* at, const real* scales, real* y, long long rows, long long columns,
                                   long long width, long long wide, long long top, long long nan, long long mantissa,
                                   long long least_exponent) {
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= rows * columns) return;
  const long long code = wide ? ((const unsigned short*)at)[i] : ((const unsigned char*)at)[i];
  const long long size = code % top, e = size >> mantissa;
  const long long n = (size & ((1LL << mantissa) - 1)) + (e > 0 ? 1LL << mantissa : 0);
  real value = ldexp((real)n, (int)(max(e, 1LL) - 1 + least_exponent - mantissa));
  if (size >= nan) value = infinity() - infinity();
  const long long across = (columns + width - 1) / width;
  y[i] = (code >= top ? -value : value) * scales[i / columns * across + i % columns / width];
}

// values (matrices, rows, columns), scales (matrices, tiles down, tiles across); to infinities (), unless it is null, is
// added how many were made the largest number. back: values are scaled back. Grid (tiles of a matrix, 1, matrices): only
// the first number may be larger than 65,535.
extern "C" __global__ void quantize(const real* x, real* values, real* scales, unsigned long long* infinities,
                                    long long rows, long long columns, long long tile_rows, long long tile_columns,
                                    long long mantissa, long long least_exponent, double largest, double least,
                                    long long power_of_two, long long at_random, long long seed, long long back,
                                    void* codes, long long wide, long long code_top, long long nan) {
  __shared__ real room[4];
  const long long across = (columns + tile_columns - 1) / tile_columns;
  const long long top = blockIdx.x / across * tile_rows, left = blockIdx.x % across * tile_columns;
  const long long height = min(tile_rows, rows - top), width = min(tile_columns, columns - left);
  x += blockIdx.z * rows * columns;
  values += blockIdx.z * rows * columns;
  real largest_here = 0, numbers = 0;
  for (long long i = threadIdx.x; i < height * width; i += 128) {
    const real a = x[(top + i / width) * columns + left + i % width];
    if (a == a) numbers = 1;
    if (isfinite(a)) largest_here = max(largest_here, abs(a));
    if (infinities && isinf(a)) atomicAdd(infinities, 1ULL);  // of whole numbers: any order gives the same sum
  }
  largest_here = block_max(largest_here, room);
  numbers = block_max(numbers, room);
  const real scale = scale_of(largest_here, numbers > 0, largest, least, power_of_two);
  if (threadIdx.x == 0) scales[(long long)blockIdx.z * gridDim.x + blockIdx.x] = scale;
  const unsigned begin = seed_of(seed, blockIdx.z);
  for (long long i = threadIdx.x; i < height * width; i += 128) {
    const long long at = (top + i / width) * columns + left + i % width;
    const unsigned bits = hashed((unsigned)at + begin);
    const real value = rounded(x[at] / scale, mantissa, least_exponent, (real)largest, at_random != 0, bits);
    values[at] = back ? value * scale : value;
    if (codes) write_code({codes, wide, code_top, nan}, at, value, mantissa, least_exponent);
  }
}

// The rows of experts, sorted by expert, in tiles of tile_rows x 1 that begin anew with each expert; values scaled back.
//
//   expert 0   | t t t t .. |  tile_rows       block: 128 threads, a column each, one tile down;
//              | t t t t .. |  the rest        grid (ceil(columns / 128), ceil(rows / tile_rows) + experts): a block
//   expert 1   | t t t t .. |                  that finds no tile of its number leaves, as in grouped.cu
extern "C" __global__ void down_experts(const real* x, real* values, unsigned long long* infinities,
                                        const long long* offsets, long long rows, long long columns,
                                        long long experts, long long tile_rows, long long mantissa,
                                        long long least_exponent, double largest, double least,
                                        long long power_of_two, long long at_random, long long seed) {
  require(offsets[0] == 0 && offsets[experts] == rows);
  long long e = 0, tile = blockIdx.y;
  for (; e < experts; e++) {
    require(offsets[e] <= offsets[e + 1]);
    const long long tiles = (offsets[e + 1] - offsets[e] + tile_rows - 1) / tile_rows;
    if (tile < tiles) break;
    tile -= tiles;
  }
  const long long column = (long long)blockIdx.x * 128 + threadIdx.x;
  if (e == experts || column >= columns) return;
  const long long first = offsets[e] + tile * tile_rows, behind = min(offsets[e + 1], first + tile_rows);
  real largest_here = 0;
  bool numbers = false;
  for (long long r = first; r < behind; r++) {
    const real a = x[r * columns + column];
    numbers = numbers || a == a;
    if (isfinite(a)) largest_here = max(largest_here, abs(a));
    if (infinities && isinf(a)) atomicAdd(infinities, 1ULL);
  }
  const real scale = scale_of(largest_here, numbers, largest, least, power_of_two);
  const unsigned begin = seed_of(seed, e);
  for (long long r = first; r < behind; r++) {
    const unsigned bits = hashed((unsigned)((r - offsets[e]) * columns + column) + begin);
    const real a = x[r * columns + column] / scale;
    values[r * columns + column] =
        rounded(a, mantissa, least_exponent, (real)largest, at_random != 0, bits) * scale;
  }
}
