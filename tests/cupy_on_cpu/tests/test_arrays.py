"""What of arrays and random numbers has no counterpart in NumPy."""
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


# ---------------------------------------------------------------- arrays

def test_no_implicit_conversion():
    a = cp.arange(3)
    for f in (np.asarray, float, lambda a: np.arange(3) + a, lambda a: np.zeros(3).__setitem__(slice(None), a)):
        with pytest.raises(TypeError):
            f(a)
    with pytest.raises(TypeError):
        a + np.arange(3)


def test_transfer():
    h = np.arange(12.).reshape(3, 4)
    d = cp.asarray(h)
    h[:] = 0
    equal(d, np.arange(12.).reshape(3, 4))
    d.set(np.ones((3, 4)))
    equal(d.get(), np.ones((3, 4)))
    out = np.empty((3, 4))
    d.get(out=out)
    equal(out, 1)
    equal(cp.asnumpy(d[::2, 1:].T), np.ones((3, 2)))
    assert isinstance(d.get(), np.ndarray) and float(d.sum()) == 12


def test_empty_is_poisoned():
    del_me = cp.zeros(1000)
    del del_me
    assert np.isnan(cp.empty(1000).get()).all()
    assert (cp.empty(1000, 'i4').get() == -1).all()
    assert np.isnan(cp.empty_like(cp.zeros(50, 'f')).get()).all()


def test_setitem():
    for xp in (np, cp):
        a = xp.zeros((4, 5))
        a[1] = 2
        a[:, 2] = xp.arange(4)
        a[a > 2] = -1
        a[[0, 3], [1, 4]] = 7
        a[xp.asarray([0, 2])] += 1
        a[..., -1:] *= 3
        if xp is np:
            expected = a
    equal(a, expected)


def test_put_along_axis():
    a, i = np.arange(12.).reshape(3, 4), np.array([[0], [3], [1]])
    d = cp.asarray(a)
    cp.put_along_axis(d, cp.asarray(i), cp.asarray([[-1.], [-2], [-3]]), 1)
    np.put_along_axis(a, i, np.array([[-1.], [-2], [-3]]), 1)
    equal(d, a)


@pytest.mark.parametrize('dtype', ['f', 'd', 'i4', 'i8', 'u4', 'e'])
def test_add_at(dtype):
    i, v = np.random.default_rng(0).integers(0, 10, 500), np.arange(500) % 7
    a, d = np.zeros(10, dtype), cp.zeros(10, dtype)
    np.add.at(a, i, v.astype(dtype))
    cp.add.at(d, cp.asarray(i), cp.asarray(v.astype(dtype)))
    close(d, a, 1e-2 if dtype == 'e' else 1e-5)


def test_add_at_2d():
    i = np.array([0, 2, 2, 1])
    a, d = np.zeros((3, 4)), cp.zeros((3, 4))
    np.add.at(a, i, 1.5)
    cp.add.at(d, cp.asarray(i), 1.5)
    equal(d, a)
    np.add.at(a, (i, i), 2)
    cupyx.scatter_add(d, (cp.asarray(i), cp.asarray(i)), 2)
    equal(d, a)


def test_scatter_max_min():
    i, v = cp.asarray([0, 1, 0, 1]), cp.asarray([3., -1, 5, 2])
    d = cp.zeros(2)
    cupyx.scatter_max(d, i, v)
    equal(d, [5, 2])
    cupyx.scatter_min(d, i, v)
    equal(d, [3, -1])
    m = cp.zeros(2, 'i4')
    cp.maximum.at(m, i, v.astype('i4'))
    equal(m, [5, 2])


def test_matmul_out():
    a, b = cp.asarray(np.random.rand(3, 4)), cp.asarray(np.random.rand(4, 5))
    out = cp.empty((3, 5))
    assert cp.matmul(a, b, out=out) is out
    close(out, a.get() @ b.get())
    c, d = cp.asarray(np.random.rand(2, 3, 4)), cp.asarray(np.random.rand(2, 4, 5))
    out = cp.empty((2, 3, 5))
    cp.matmul(c, d, out=out)
    close(out, c.get() @ d.get())
    cp.add(a, a, out=a)
    cp.dot(a, b, out=out[0])
    close(out[0], a.get() @ b.get())


@pytest.mark.parametrize('k', [0, 1, 33])
def test_matmul_sizes(k):
    a, b = np.random.rand(17, k).astype('f'), np.random.rand(k, 5).astype('f')
    close(cp.asarray(a) @ cp.asarray(b), a @ b)


def test_bfloat16():
    t = np.dtype(ml_dtypes.bfloat16)
    h = np.linspace(-3, 3, 20).astype(t)
    d = cp.asarray(h)
    assert d.dtype == t
    equal(d.get().view('u2'), h.view('u2'))
    close(d.astype('f'), h.astype('f'))
    equal(cp.asarray(np.linspace(-3, 3, 99, dtype='f')).astype(t).get().view('u2'),
          np.linspace(-3, 3, 99, dtype='f').astype(t).view('u2'))
    close((d + d).astype('f'), (h + h).astype('f'))
    close((d * d).sum(dtype='f'), (h * h).astype('f').sum(), 1e-2)
    close(cp.exp(d).astype('f'), np.exp(h).astype('f'), 1e-2)


def test_bfloat16_matmul():
    t = np.dtype(ml_dtypes.bfloat16)
    h = np.random.rand(6, 6).astype(t)
    close((cp.asarray(h) @ cp.asarray(h)).astype('f'), h.astype('f') @ h.astype('f'), 2e-2)


def test_float16_rounding():
    v = np.concatenate([np.random.standard_normal(2000).astype('f') * 10.0 ** np.random.randint(-8, 6, 2000),
                        [65519, 65520, 1e9, 6e-8, 2.9e-8, np.inf, np.nan, -0.0]]).astype('f')
    with np.errstate(over='ignore'):
        equal(cp.asarray(v).astype('e').get().view('u2')[:-2], v.astype('e').view('u2')[:-2])


def test_structured_and_bool():
    a = cp.asarray([True, False, True])
    assert int(a.sum()) == 2 and bool(a.any()) and not bool(a.all())
    equal(~a, [False, True, False])


def test_errors():
    with pytest.raises(ValueError):
        cp.zeros(3) + cp.zeros(4)
    with pytest.raises(IndexError):
        cp.zeros(3)[5]
    with pytest.raises(ValueError):
        cp.zeros((2, 3)) @ cp.zeros((2, 3))
    with pytest.raises((TypeError, ValueError)):
        cp.zeros(3, dtype='U5')
    with pytest.raises((cp.cuda.memory.OutOfMemoryError, cp.cuda.runtime.CUDARuntimeError)):
        cp.empty(1 << 45, 'i1')


# ---------------------------------------------------------------- random numbers

def test_random_state():
    a, b = cp.random.RandomState(3), cp.random.RandomState(3)
    for draw in (lambda r: r.random_sample((50, 2)), lambda r: r.standard_normal(31), lambda r: r.randint(0, 10, 100),
                 lambda r: r.permutation(40), lambda r: r.uniform(-1, 1, 9, dtype='f'), lambda r: r.gamma(2., 1, 20),
                 lambda r: r.choice(10, 5), lambda r: r.binomial(10, .3, 20)):
        equal(draw(a), draw(b))


def test_random_moments():
    cp.random.seed(1)
    u = cp.random.random(100000)
    assert 0 <= float(u.min()) and float(u.max()) <= 1 and abs(float(u.mean()) - .5) < .01
    n = cp.random.standard_normal(100000, dtype='f')
    assert n.dtype == 'f' and abs(float(n.mean())) < .02 and abs(float(n.std()) - 1) < .02
    i = cp.random.randint(-3, 4, 10000)
    equal(cp.unique(i), np.arange(-3, 4))
    assert abs(float(cp.random.exponential(2, 100000).mean()) - 2) < .05
    assert abs(float(cp.random.poisson(4, 100000).mean()) - 4) < .05


def test_permutation_and_shuffle():
    cp.random.seed(0)
    p = cp.random.permutation(1000)
    equal(cp.sort(p), np.arange(1000))
    assert not bool((p == cp.arange(1000)).all())
    a = cp.arange(50)
    cp.random.shuffle(a)
    equal(cp.sort(a), np.arange(50))
    c = cp.random.choice(100, 30, replace=False)
    assert len(cp.unique(c)) == 30


def test_default_rng():
    a, b = cp.random.default_rng(5), cp.random.default_rng(5)
    for name, args in (('random', (10,)), ('standard_normal', ((3, 4),)), ('integers', (0, 9, 20)), ('exponential', (2., 5)),
                       ('uniform', (0, 2, 6))):
        x, y = getattr(a, name)(*args), getattr(b, name)(*args)
        assert isinstance(x, cp.ndarray)
        equal(x, y)
    assert a.random(3, dtype='f').dtype == 'f'
    assert a.standard_normal(3, dtype='f').dtype == 'f'
    out = cp.empty(4)
    assert a.random(out=out) is out and not bool(cp.isnan(out).any())
