"""Kernels of one's own: threads, blocks, shared memory, warps, and what must fail."""
import os

import ml_dtypes
import numpy as np
import pytest

import cupy as cp
import cupyx

guard = os.environ.get('CUPY_ON_CPU_GUARD', '0') not in ('', '0')


def equal(a, b):
    np.testing.assert_array_equal(cp.asnumpy(a), cp.asnumpy(b))


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(cp.asnumpy(a).astype('d'), cp.asnumpy(b).astype('d'), rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- kernels

def test_elementwise():
    k = cp.ElementwiseKernel('T x, T y, float32 c', 'T z', 'z = x * c + y', 'axpy')
    x = cp.arange(20, dtype='f').reshape(4, 5)
    close(k(x, x[0], 3), x.get() * 3 + x.get()[0])
    close(k(x.T, x.T, 2), x.get().T * 3)
    raw = cp.ElementwiseKernel('raw T x, int32 n', 'T z', 'z = x[n - 1 - i]', 'reverse')
    equal(raw(x.ravel(), 20, size=20), x.get().ravel()[::-1])
    pre = cp.ElementwiseKernel('T x', 'T z', 'z = twice(x)', 'pre', preamble='template<class T> __device__ T twice(T x) { return x + x; }')
    equal(pre(x), x.get() * 2)


def test_elementwise_two_outputs_and_loop_prep():
    k = cp.ElementwiseKernel('float64 x', 'float64 s, int32 j', 's = x * c; j = (int)i', 'two', loop_prep='double c = 4;')
    s, j = k(cp.arange(6.))
    equal(s, np.arange(6) * 4)
    equal(j, np.arange(6))


def test_reduction():
    k = cp.ReductionKernel('T x', 'T y', 'x * x', 'a + b', 'y = sqrt(a)', '0', 'l2')
    x = np.random.rand(37, 300).astype('f')
    close(k(cp.asarray(x)), np.linalg.norm(x))
    close(k(cp.asarray(x), axis=1), np.linalg.norm(x, axis=1))
    close(k(cp.asarray(x), axis=0, keepdims=True), np.linalg.norm(x, axis=0, keepdims=True))


SUM = r'''
extern "C" __global__ void block_sum(const float* x, float* y, int n) {
  __shared__ float s[128];
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  s[threadIdx.x] = i < n ? x[i] : 0.f;
  __syncthreads();
  for (int d = blockDim.x / 2; d; d /= 2) {
    if (threadIdx.x < d) s[threadIdx.x] += s[threadIdx.x + d];
    __syncthreads();
  }
  if (!threadIdx.x) y[blockIdx.x] = s[0];
}
extern "C" __global__ void warp_sum(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  float v = i < n ? x[i] : 0.f;
  for (int d = 16; d; d /= 2) v += __shfl_down_sync(0xffffffff, v, d);
  if ((threadIdx.x & 31) == 0) atomicAdd(y, v);
}
extern "C" __global__ void dynamic_reverse(const int* x, int* y) {
  extern __shared__ __align__(16) int s[];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
}
'''


def test_shared_memory():
    x = np.random.rand(1000).astype('f')
    y = cp.empty(8, 'f')
    cp.RawKernel(SUM, 'block_sum')((8,), (128,), (cp.asarray(x), y, np.int32(1000)))
    close(y, np.pad(x, (0, 24)).reshape(8, 128).sum(1), 1e-4)


def test_shuffle():
    x = np.random.rand(1000).astype('f')
    y = cp.zeros(1, 'f')
    cp.RawKernel(SUM, 'warp_sum')((4,), (256,), (cp.asarray(x), y, np.int32(1000)))
    close(y[0], x.sum(), 1e-4)


def test_dynamic_shared_memory():
    y = cp.empty(64, 'i4')
    k = cp.RawKernel(SUM, 'dynamic_reverse')
    k((1,), (64,), (cp.arange(64, dtype='i4'), y), shared_mem=256)
    equal(y, np.arange(64)[::-1])
    with pytest.raises(cp.cuda.driver.CUDADriverError):
        k((1,), (64,), (y, y), shared_mem=100000)
    k.max_dynamic_shared_size_bytes = 100000
    k((1,), (64,), (cp.arange(64, dtype='i4'), y), shared_mem=100000)
    equal(y, np.arange(64)[::-1])
    with pytest.raises(cp.cuda.driver.CUDADriverError):
        k((1,), (2048,), (y, y))


def test_grid_3d():
    code = r'''extern "C" __global__ void f(int* y) {
      int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
      int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
      y[b * blockDim.x * blockDim.y * blockDim.z + t] = b * 100 + t; }'''
    y = cp.empty(2 * 3 * 2 * 24, 'i4')
    cp.RawKernel(code, 'f')((2, 3, 2), (4, 3, 2), (y,))
    equal(y.reshape(12, 24), np.arange(12)[:, None] * 100 + np.arange(24))


def test_atomics():
    code = r'''extern "C" __global__ void f(int* y, unsigned long long* c, float* m) {
      atomicMax(&y[0], (int)threadIdx.x); atomicMin(&y[1], -(int)threadIdx.x); atomicAdd(&y[2], 1); atomicXor(&y[3], 1);
      atomicExch(&y[4], 9); atomicOr(&y[5], 1 << (threadIdx.x & 7)); atomicAdd(c, 2ULL);
      unsigned old = __float_as_uint(*m), seen;
      do { seen = old; old = atomicCAS((unsigned*)m, seen, __float_as_uint(__uint_as_float(seen) + 0.5f)); } while (old != seen); }'''
    y, c, m = cp.zeros(6, 'i4'), cp.zeros(1, 'u8'), cp.zeros(1, 'f')
    cp.RawKernel(code, 'f')((2,), (100,), (y, c, m))
    equal(y, [99, -99, 200, 0, 9, 255])
    assert int(c[0]) == 400 and float(m[0]) == 100


def test_warp_functions():
    code = r'''extern "C" __global__ void f(unsigned* y) {
      unsigned t = threadIdx.x, lane = t & 31;
      y[t] = __ballot_sync(~0u, lane < 5);
      y[64 + t] = __shfl_sync(~0u, t, 3) + __shfl_xor_sync(~0u, t, 1) + __shfl_up_sync(~0u, t, 1, 8);
      y[128 + t] = __match_any_sync(~0u, lane / 8);
      y[192 + t] = __reduce_add_sync(~0u, lane) + __reduce_max_sync(~0u, lane) + __popc(lane);
      y[256 + t] = __any_sync(~0u, lane == 31) + 2 * __all_sync(~0u, lane < 31) + 4 * __syncthreads_count(t < 40);
      if (lane < 16) y[320 + t] = __shfl_sync(0xffffu, t, 15); else y[320 + t] = 0; }'''
    y = cp.empty(384, 'u4')
    cp.RawKernel(code, 'f')((1,), (64,), (y,))
    t = np.arange(64)
    lane = t & 31
    y = y.get().reshape(6, 64)
    equal(y[0], 31)
    equal(y[1], (t // 32 * 32 + 3) + (t ^ 1) + np.where(t % 8, t - 1, t))
    equal(y[2], (0xff << (lane // 8 * 8)).astype('u4'))
    equal(y[3], 496 + 31 + np.array([bin(v).count('1') for v in lane]))
    equal(y[4], 1 + 160)
    equal(y[5], np.where(lane < 16, t // 32 * 32 + 15, 0))


def test_early_return_and_divergence():
    code = r'''extern "C" __global__ void f(int* y, int n) {
      __shared__ int s;
      if (threadIdx.x >= n) return;
      if (threadIdx.x == 0) s = 5;
      __syncthreads();
      y[threadIdx.x] = s + threadIdx.x; }'''
    y = cp.zeros(64, 'i4')
    cp.RawKernel(code, 'f')((1,), (64,), (y, np.int32(40)))
    equal(y, np.where(np.arange(64) < 40, 5 + np.arange(64), 0))


def test_deadlock_is_an_error():
    code = r'''extern "C" __global__ void f(int* y) {
      if (threadIdx.x == 0) y[0] = __shfl_sync(0xffffffff, 1, 0); else __syncthreads(); }'''
    with pytest.raises(cp.cuda.driver.CUDADriverError):
        cp.RawKernel(code, 'f')((1,), (32,), (cp.zeros(1, 'i4'),))


@pytest.mark.parametrize('body', ['y[1L << 40] = 1;', '__trap();', 'assert(y[0] == 5);', '__syncthreads(); ((int*)0)[threadIdx.x] = 1;'])
def test_fault_is_an_error(body):
    y = cp.zeros(1, 'i4')
    with pytest.raises(cp.cuda.driver.CUDADriverError):
        cp.RawKernel('extern "C" __global__ void f(int* y) { %s }' % body, 'f')((1,), (32,), (y,))
    assert int((y + 1)[0]) == 1  # unlike a GPU, the device can go on


def test_host_pointer_is_an_error():
    h = np.zeros(1, 'i4')
    with pytest.raises(cp.cuda.driver.CUDADriverError):
        cp.RawKernel('extern "C" __global__ void f(int* y) { y[0] = 1; }', 'f')((1,), (1,), (h.ctypes.data,))


def test_cub_is_ignored():
    cp._core.set_routine_accelerators(['cub'])
    try:
        assert int(cp.arange(10).sum()) == 45 and int(cp.arange(10).cumsum()[-1]) == 45
    finally:
        cp._core.set_routine_accelerators([])


def test_printf(capfd):
    cp.RawKernel('extern "C" __global__ void f() { printf("thread %d\\n", threadIdx.x); }', 'f')((1,), (2,), ())
    cp.cuda.Device().synchronize()
    assert capfd.readouterr().out == 'thread 0\nthread 1\n'


def test_byteswap_and_half2():
    equal(cp.arange(4, dtype='i4').byteswap(), np.arange(4, dtype='i4').byteswap())


def test_shared_memory_is_poisoned():
    code = r'''extern "C" __global__ void f(float* y) { __shared__ float s[4]; y[blockIdx.x] = s[1]; s[1] = 3; }'''
    y = cp.zeros(3, 'f')
    cp.RawKernel(code, 'f')((3,), (1,), (y,))
    assert np.isnan(y.get()).all()


def test_invalid_cuda_is_an_error():
    with pytest.raises(cp.cuda.compiler.CompileException):
        cp.RawKernel('extern "C" __global__ void f(int* y) { y = std::vector<int>(); }', 'f').compile()


def test_struct_and_scalar_arguments():
    code = r'''struct P { int a; double b; };
    extern "C" __global__ void f(double* y, P p, float c, bool d, long long e, double2 z) { y[0] = p.a + p.b + c + d + e + z.x * z.y; }'''
    p = np.array([(3, .5)], dtype=np.dtype([('a', 'i4'), ('b', 'f8')], align=True))
    z = np.array([2 + 3j])
    y = cp.empty(1)
    cp.RawKernel(code, 'f')((1,), (1,), (y, p, np.float32(.25), True, 10, z))
    assert float(y[0]) == 3 + .5 + .25 + 1 + 10 + 6


def test_half_kernels():
    code = r'''#include <cuda_fp16.h>
    #include <cuda_bf16.h>
    extern "C" __global__ void f(const __half* x, __half* y, __nv_bfloat16* z, float* w) {
      int i = threadIdx.x;
      y[i] = __hadd(x[i], __float2half(1.5f));
      z[i] = __float2bfloat16(__half2float(x[i]) * 3);
      half2 h = __floats2half2_rn(x[i], 2.f);
      w[i] = __low2float(__hmul2(h, h)) + __bfloat162float(z[i]); }'''
    x = np.random.randn(32).astype('e')
    y, z, w = cp.empty(32, 'e'), cp.empty(32, 'u2'), cp.empty(32, 'f')
    cp.RawKernel(code, 'f')((1,), (32,), (cp.asarray(x), y, z, w))
    equal(y, x + np.float16(1.5))
    zz = (x.astype('f') * 3).astype(ml_dtypes.bfloat16)
    equal(z, zz.view('u2'))
    close(w, (x * x).astype('f') + zz.astype('f'), 1e-6)


def test_fp8_kernel():
    code = r'''#include <cuda_fp8.h>
    extern "C" __global__ void f(const float* x, unsigned char* a, unsigned char* b, float* y) {
      int i = blockIdx.x * blockDim.x + threadIdx.x;
      __nv_fp8_e4m3 v(x[i]); a[i] = v.__x; b[i] = __nv_fp8_e5m2(x[i]).__x; y[i] = float(v); }'''
    x = np.concatenate([np.random.randn(500) * 50, np.random.randn(12) * 1e-3]).astype('f')
    a, b, y = cp.empty(512, 'u1'), cp.empty(512, 'u1'), cp.empty(512, 'f')
    cp.RawKernel(code, 'f')((4,), (128,), (cp.asarray(x), a, b, y))
    e4 = np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    equal(a, e4.view('u1'))
    equal(b, x.astype(ml_dtypes.float8_e5m2).view('u1'))
    equal(y, e4.astype('f'))


TEMPLATE = r'''
template<typename T, int N> __global__ void scale(const T* x, T* y, int n) {
  __shared__ T s[N];
  int i = blockIdx.x * N + threadIdx.x;
  s[threadIdx.x] = i < n ? x[i] : T(0);
  __syncthreads();
  if (i < n) y[i] = s[threadIdx.x] * T(N);
}
__constant__ float table[4];
__device__ int counter = 7;
extern "C" __global__ void lookup(float* y) { y[threadIdx.x] = table[threadIdx.x]; if (!threadIdx.x) counter++; }
'''


@pytest.mark.parametrize('t', ['float', 'double', 'int'])
def test_raw_module_templates(t):
    names = ['scale<%s, 32>' % t, 'scale<%s, 64>' % t]
    m = cp.RawModule(code=TEMPLATE, options=('-std=c++17',), name_expressions=names)
    d = {'float': 'f', 'double': 'd', 'int': 'i4'}[t]
    x = cp.arange(100).astype(d)
    for n, name in zip((32, 64), names):
        y = cp.zeros(100, d)
        m.get_function(name)((-(-100 // n),), (n,), (x, y, np.int32(100)))
        equal(y, x.get() * n)


def test_raw_module_globals():
    m = cp.RawModule(code=TEMPLATE)
    p = m.get_global('table')
    cp.ndarray(4, 'f', p)[...] = cp.asarray([1, 2, 3, 4], 'f')
    y = cp.empty(4, 'f')
    m.get_function('lookup')((1,), (4,), (y,))
    equal(y, [1, 2, 3, 4])
    assert int(cp.ndarray(1, 'i4', m.get_global('counter'))[0]) == 8


def test_options_and_macros():
    k = cp.RawKernel('extern "C" __global__ void f(int* y) { y[0] = N; }', 'f', options=('-DN=42', '--use_fast_math'))
    y = cp.empty(1, 'i4')
    k((1,), (1,), (y,))
    assert int(y[0]) == 42
    assert k.attributes['max_threads_per_block'] == 1024


def test_cooperative_groups():
    code = r'''#include <cooperative_groups.h>
    namespace cg = cooperative_groups;
    extern "C" __global__ void f(int* y) {
      auto b = cg::this_thread_block(); auto w = cg::tiled_partition<32>(b);
      __shared__ int s[64]; s[b.thread_rank()] = b.thread_rank(); b.sync();
      int v = s[63 - b.thread_rank()];
      for (int d = 16; d; d /= 2) v += w.shfl_down(v, d);
      if (w.thread_rank() == 0) y[threadIdx.x / 32] = v; }'''
    y = cp.zeros(2, 'i4')
    cp.RawKernel(code, 'f')((1,), (64,), (y,))
    equal(y, [np.arange(32, 64).sum(), np.arange(32).sum()])


def test_tensor_cores():
    code = r'''#include <mma.h>
    using namespace nvcuda;
    extern "C" __global__ void f(const half* a, const half* b, float* c, int k) {
      wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> fa;
      wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::col_major> fb;
      wmma::fragment<wmma::accumulator, 16, 16, 16, float> fc;
      wmma::fill_fragment(fc, 0.0f);
      for (int i = 0; i < k; i += 16) {
        wmma::load_matrix_sync(fa, a + i, k);
        wmma::load_matrix_sync(fb, b + i, k);
        wmma::mma_sync(fc, fa, fb, fc);
      }
      for (int i = 0; i < fc.num_elements; i++) fc.x[i] *= 2;
      wmma::store_matrix_sync(c, fc, 16, wmma::mem_row_major); }'''
    a, b = np.random.randn(16, 48).astype('e'), np.random.randn(48, 16).astype('e')
    c = cp.empty((16, 16), 'f')
    try:
        cp.RawKernel(code, 'f')((1,), (32,), (cp.asarray(a), cp.asarray(b.T.copy()), c, np.int32(48)))
    except cp.cuda.compiler.CompileException:
        pytest.skip('no crt/mma.h: pip install nvidia-cuda-crt')
    close(c, 2 * a.astype('f') @ b.astype('f'), 1e-4)


def test_nvcc_backend():
    if cp.cuda.get_nvcc_path() is None:
        pytest.skip('no nvcc')
    y = cp.zeros(3, 'i4')
    cp.RawKernel('extern "C" __global__ void f(int* y) { y[threadIdx.x] = 3; }', 'f', backend='nvcc')((1,), (3,), (y,))
    equal(y, 3)


def test_fuse():
    @cp.fuse()
    def f(x, y):
        return cp.sqrt(x * x + y * y) + cp.where(x > 0, x, -y)

    @cp.fuse(kernel_name='loss')
    def g(x, y):
        return cp.sum((x - y) ** 2)
    x, y = np.random.randn(5, 6), np.random.randn(5, 6)
    close(f(cp.asarray(x), cp.asarray(y)), np.sqrt(x * x + y * y) + np.where(x > 0, x, -y))
    close(g(cp.asarray(x), cp.asarray(y)), ((x - y) ** 2).sum())


@pytest.mark.filterwarnings('ignore')
def test_jit():
    from cupyx import jit

    @jit.rawkernel()
    def k(x, y, n):
        i = jit.threadIdx.x + jit.blockDim.x * jit.blockIdx.x
        s = jit.shared_memory(cp.float32, 32)
        s[jit.threadIdx.x] = x[i]
        jit.syncthreads()
        if i < n:
            y[i] = s[31 - jit.threadIdx.x]
    x = cp.arange(64, dtype='f')
    y = cp.zeros(64, 'f')
    k[2, 32](x, y, 64)
    equal(y, x.get().reshape(2, 32)[:, ::-1].ravel())


def test_vectorize():
    equal(cp.vectorize(lambda a, b: a + 2 * b)(cp.arange(4), cp.arange(4)), 3 * np.arange(4))
