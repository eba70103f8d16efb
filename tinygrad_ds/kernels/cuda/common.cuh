// What all kernels share. The launcher puts in front of this file the number format and the kernels of one family
// behind it. Every whole number comes as long long, every other as double.
//
//   real    float or double: all arithmetic, sums and statistics
//   stored  what arrays hold: the same, or bfloat16 where the launcher defines BFLOAT16

const unsigned ALL = 0xffffffffu;  // all 32 lanes of a warp take part

#ifdef BFLOAT16
// The upper half of a float. Read as one; written rounded to the nearest, ties to even, NaN as NaN.
struct stored {
  unsigned short bits;
  __device__ operator real() const { return __uint_as_float((unsigned)bits << 16); }
  __device__ stored& operator=(real value) {
    const unsigned all = __float_as_uint(value);
    bits = (unsigned short)(value != value ? 0x7fff : (all + 0x7fff + (all >> 16 & 1)) >> 16);
    return *this;
  }
};
#else
typedef real stored;
#endif

// A broken promise stops the kernel, and the launch fails, rather than a wrong number going on quietly.
__device__ inline void require(bool promise) {
  if (!promise) __trap();
}

// The sum over a warp, the same bits in every lane.
__device__ inline real warp_sum(real value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(ALL, value, step);
  return value;
}

__device__ inline real warp_max(real value) {
  for (int step = 16; step > 0; step /= 2) value = max(value, __shfl_xor_sync(ALL, value, step));
  return value;
}

// The sum over a block of whole warps, in every thread; `room` is shared memory, one number a warp.
__device__ inline real block_sum(real value, real* room) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  value = warp_sum(value);
  __syncthreads();  // whoever still reads what an earlier call left in `room` is done
  if (lane == 0) room[warp] = value;
  __syncthreads();
  value = 0;
  for (int w = 0; w < warps; w++) value += room[w];  // in the same order everywhere
  return value;
}

__device__ inline real block_max(real value, real* room) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  value = warp_max(value);
  __syncthreads();
  if (lane == 0) room[warp] = value;
  __syncthreads();
  for (int w = 0; w < warps; w++) value = max(value, room[w]);
  return value;
}

__device__ inline real infinity() {
  return (real)__longlong_as_double(0x7ff0000000000000LL);
}

// 1 / (1 + e^-z), without overflow: for z < 0 it is e^z / (1 + e^z).
__device__ inline real sigmoid(real z) {
  const real e = exp(-abs(z));
  return (z >= 0 ? (real)1 : e) / (1 + e);
}
