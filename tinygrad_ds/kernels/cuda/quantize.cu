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

// values (rows, columns), scales (tiles down, tiles across); to infinities (), unless it is null, is added how many
// were made the largest number.
// back: values are scaled back. Grid (tiles across, tiles down).
extern "C" __global__ void quantize(const real* x, real* values, real* scales, unsigned long long* infinities,
                                    long long rows, long long columns, long long tile_rows, long long tile_columns,
                                    long long mantissa, long long least_exponent, double largest, double least,
                                    long long power_of_two, long long at_random, long long seed, long long back) {
  __shared__ real room[4];
  const long long top = blockIdx.y * tile_rows, left = blockIdx.x * tile_columns;
  const long long height = min(tile_rows, rows - top), width = min(tile_columns, columns - left);
  real largest_here = 0, numbers = 0;
  for (long long i = threadIdx.x; i < height * width; i += 128) {
    const real a = x[(top + i / width) * columns + left + i % width];
    if (a == a) numbers = 1;
    if (isfinite(a)) largest_here = max(largest_here, abs(a));
    if (infinities && isinf(a)) atomicAdd(infinities, 1ULL);  // of whole numbers: any order gives the same sum
  }
  largest_here = block_max(largest_here, room);
  numbers = block_max(numbers, room);
  real scale = max(largest_here, (real)least) / (real)largest;
  if (power_of_two) {
    int exponent;
    const real part = frexp(scale, &exponent);
    scale = ldexp((real)1, exponent - (part == (real)0.5 ? 1 : 0));
  }
  if (numbers == 0) scale = infinity() - infinity();
  if (threadIdx.x == 0) scales[(long long)blockIdx.y * gridDim.x + blockIdx.x] = scale;
  for (long long i = threadIdx.x; i < height * width; i += 128) {
    const long long at = (top + i / width) * columns + left + i % width;
    const unsigned bits = hashed((unsigned)at + (unsigned)seed);
    const real value = rounded(x[at] / scale, mantissa, least_exponent, (real)largest, at_random != 0, bits);
    values[at] = back ? value * scale : value;
  }
}
