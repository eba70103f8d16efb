"""Streams, memory and the device."""
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


# ---------------------------------------------------------------- streams, memory, device

def test_streams_and_events():
    s, t = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream()
    a, b = cp.cuda.Event(), cp.cuda.Event()
    with s:
        assert cp.cuda.get_current_stream() == s
        a.record()
        x = cp.arange(1000).sum()
        b.record()
    t.wait_event(b)
    b.synchronize()
    s.synchronize()
    cp.cuda.Stream.null.synchronize()
    assert s.done and b.done and cp.cuda.get_elapsed_time(a, b) >= 0 and int(x) == 499500
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError):
        cp.cuda.get_elapsed_time(a, cp.cuda.Event(disable_timing=True))
    seen = []
    s.launch_host_func(seen.append, 1)
    s.add_callback(lambda st, status, arg: seen.append(arg), 2)
    assert seen == [1, 2]
    out = cp.arange(5).get(stream=s, blocking=False)
    s.synchronize()
    equal(out, np.arange(5))


def test_pinned_memory():
    m = cp.cuda.alloc_pinned_memory(800)
    h = np.frombuffer(m, 'd', 100)
    h[...] = np.arange(100)
    d = cp.empty(100)
    d.set(h, stream=cp.cuda.Stream())
    equal(d, np.arange(100))
    assert cupyx.empty_pinned((3, 4)).shape == (3, 4)


@pytest.mark.skipif(guard, reason='no pool with guards')
def test_memory_pool():
    pool = cp.cuda.MemoryPool()
    with cp.cuda.using_allocator(pool.malloc):
        a = cp.zeros(1000, 'f')
        assert pool.used_bytes() == 4096 and pool.total_bytes() >= 4096
        del a
        assert pool.used_bytes() == 0 and pool.n_free_blocks() == 1
        pool.free_all_blocks()
        assert pool.total_bytes() == 0
    default = cp.get_default_memory_pool()
    default.free_all_blocks()
    default.set_limit(size=1 << 20)
    try:
        with pytest.raises(cp.cuda.memory.OutOfMemoryError):
            cp.empty(1 << 22, 'u1')
    finally:
        default.set_limit(size=0)


def test_allocators():
    with cp.cuda.using_allocator(cp.cuda.malloc_managed):
        equal(cp.arange(4) + 1, np.arange(1, 5))
    with cp.cuda.using_allocator(cp.cuda.malloc_async):
        equal(cp.arange(4) + 1, np.arange(1, 5))
    with cp.cuda.using_allocator(cp.cuda.MemoryAsyncPool().malloc):
        equal(cp.arange(4) + 1, np.arange(1, 5))


def test_copies_are_checked():
    d = cp.zeros(4)
    h = np.zeros(4)
    r = cp.cuda.runtime
    with pytest.raises(r.CUDARuntimeError):
        r.memcpy(h.ctypes.data, d.data.ptr, 32, r.memcpyHostToDevice)
    with pytest.raises(r.CUDARuntimeError):
        r.memcpy(d.data.ptr, h.ctypes.data, 1 << 40, r.memcpyHostToDevice)


def test_device():
    with cp.cuda.Device(0) as d:
        d.synchronize()
        assert d.compute_capability == '90' and d.mem_info[1] > 0 and d.attributes['WarpSize'] == 32
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError):
        cp.cuda.Device(1).use()
    assert cp.cuda.runtime.getDeviceCount() == 1 and cp.cuda.is_available()
    assert cp.cuda.runtime.getDeviceProperties(0)['multiProcessorCount'] > 0
    assert cp.zeros(1).device == cp.cuda.Device(0)


def test_show_config(capsys):
    cp.show_config()
    assert 'CuPy Version' in capsys.readouterr().out


def test_dlpack_and_interfaces():
    a = cp.arange(6.)
    b = cp.from_dlpack(a)
    assert b.data.ptr == a.data.ptr
    assert a.__cuda_array_interface__['data'][0] == a.data.ptr
    equal(np.from_dlpack(a, device='cpu'), np.arange(6.))


def test_benchmark():
    from cupyx.profiler import benchmark
    assert 'CPU' in str(benchmark(lambda: cp.arange(10).sum(), n_repeat=2, n_warmup=1))


def test_pickle_and_save(tmp_path):
    import pickle
    a = cp.arange(5)
    equal(pickle.loads(pickle.dumps(a)), a)
    cp.save(tmp_path / 'a.npy', a)
    equal(cp.load(tmp_path / 'a.npy'), a)


def test_special_functions():
    from cupyx.scipy import special
    x = np.linspace(-2, 2, 41)
    from math import erf, gamma
    close(special.erf(cp.asarray(x)), [erf(v) for v in x], 1e-12)
    close(special.erf(special.erfinv(cp.asarray(x / 2.1))), x / 2.1, 1e-12)
    close(special.gamma(cp.asarray(x[30:])), [gamma(v) for v in x[30:]], 1e-12)
    close(special.expit(cp.asarray(x)), 1 / (1 + np.exp(-x)), 1e-12)
    close(special.logsumexp(cp.asarray(x)), np.log(np.exp(x).sum()), 1e-12)


# ---------------------------------------------------------------- what is counted

def test_launches_and_copies_are_counted():
    from tests import cupy_on_cpu
    a = cp.arange(6, dtype='f')
    cp.dot(a.reshape(2, 3), a.reshape(3, 2))
    a + 1
    before = cupy_on_cpu.counts()
    a + 1
    (a + 1).get()
    cp.dot(a.reshape(2, 3), a.reshape(3, 2))
    a.set(np.zeros(6, 'f'))
    now = cupy_on_cpu.counts()
    assert {name: now[name] - before[name] for name in now} == {
        'launches': 2, 'products': 1, 'reads': 1, 'read_bytes': 24, 'writes': 1, 'written_bytes': 24}
