"""Kernels that read arrays where they lie: halves of a merged product, transposed heads, repeated keys."""

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ds as tg
from tinygrad_ds.kernels.cpu.layout import row_start, spread


@numba.njit
def starts(count, layout):
    return [row_start(n, layout) for n in range(count)]


@st.composite
def views(draw):
    """Views of one array: transposed, cut, repeated, reversed, read-only, of one to four axes."""
    whole = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    x = whole.transpose(*draw(st.permutations([0, 1, 2])), 3)
    for axis in range(4):
        low = draw(st.integers(0, 1))
        x = x[(slice(None),) * axis + (slice(low, draw(st.integers(low, x.shape[axis]))),)]
    if draw(st.booleans()):
        x = x[draw(st.sampled_from([np.s_[:, ::2], np.s_[:, :, ::-1], np.s_[..., ::2], np.s_[..., ::-1]]))]
    for _ in range(draw(st.integers(0, 3))):
        x = x[0] if len(x) else x.reshape(x.shape[1:] if x.size else (0,) * (x.ndim - 1))
    if x.ndim < 4 and draw(st.booleans()):
        x = np.broadcast_to(x, (2, *x.shape))
    return x


@given(x=views())
def test_spread_finds_every_row(x):
    memory, layout = spread(x)
    d = x.shape[-1]
    assert memory.flags.carray and memory.ndim == 1
    found = [memory[start : start + d] for start in starts(x.size // d if d else 0, layout)]
    assert np.array_equal(found, x.reshape(-1, d) if x.size else found)


def test_spread_copies_only_what_it_must():
    whole = np.zeros((4, 6), np.float32)
    for seen in (whole, whole[:, :3], whole[:, 3:], whole[1::2], np.broadcast_to(whole[0], (5, 6))):
        memory, _ = spread(seen)
        assert memory.base is whole or memory is whole
    locked = whole.copy()
    locked.flags.writeable = False
    for copied in (whole.T, whole[:, ::2], whole[::-1], locked[:, :3]):
        assert not np.shares_memory(spread(copied).memory, copied)


def leaf(*shape, seed=0):
    draw = np.random.default_rng((seed, *shape))
    return tg.Tensor(draw.normal(size=shape).astype(np.float32), requires_grad=True)


def through(function, *leaves):
    """The result of `function` and the gradients of its leaves, with the fused kernels and the reference."""
    both = []
    for kernels in ("fused", "reference"):
        for x in leaves:
            x.grad = None
        with tg.using(kernels=kernels):
            y = function(*leaves)
            y.backward(leaf(*y.shape, seed=9).data)
        both.append([y.data, *(x.grad for x in leaves)])
    return both


@pytest.mark.parametrize("shape", [(700, 202), (3, 5, 34), (2, 3, 5, 10)])
def test_halves_of_a_merged_product(shape):
    """swiglu reads both where they lie and writes their gradients so that split need not join them."""

    def merged(x):
        return tg.swiglu(*tg.split(x, sections=2, axis=-1))

    fused, reference = through(merged, leaf(*shape))
    for a, b in zip(fused, reference):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    gate, up = tg.split(leaf(*shape), sections=2, axis=-1)
    apart = tg.swiglu(gate.data.copy(), up.data.copy())
    assert np.array_equal(tg.swiglu(gate, up).data, apart.data)


def test_gradients_of_halves_are_halves_of_one_array():
    """And of arrays that stand alone they stand alone, as they do where one of both is a half."""
    twin, whole = tg.swiglu.fused["cpu"], leaf(7, 12).data
    half, other, alone = whole[:, :6], whole[:, 6:], leaf(7, 6).data
    for gate, up in ((half, other), (alone, other), (half, alone), (alone, alone)):
        grads = twin.backward(twin.forward(gate, up)[1], alone)
        of_one = grads[0].base is not None and grads[0].base is grads[1].base
        assert of_one == (gate is half and up is other)
        reference = tg.swiglu.backward(tg.swiglu.forward(gate, up)[1], alone)
        for a, b in zip(grads, reference):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_split_is_not_copied_where_it_lies_ready():
    split = tg.primitives["split"].fused["cpu"]
    _, saved = split.forward(np.zeros((6, 8), np.float32), sections=[2, 3], axis=-1)
    whole = np.arange(48, dtype=np.float32).reshape(6, 8).copy()
    parts = whole[:, :2], whole[:, 2:3], whole[:, 3:]
    (grad,) = split.backward(saved, parts)
    assert np.shares_memory(grad, whole) and np.array_equal(grad, whole)
    for other in (
        (parts[0], parts[1] * 1, parts[2]),
        (parts[0], whole[:, 4:5], parts[2]),
        (whole[:, 1:3], whole[:, 0:1], parts[2]),
    ):
        (grad,) = split.backward(saved, other)
        assert not np.shares_memory(grad, whole)
        assert np.array_equal(grad, np.concatenate(other, axis=-1))
    (grad,) = split.backward(saved, (parts[0], None, parts[2]))
    assert not grad[:, 2].any() and np.array_equal(grad[:, 3:], parts[2])
    _, saved = split.forward(np.zeros((6, 6), np.float32), sections=1, axis=-1)
    square = np.ascontiguousarray(whole[:, :6])
    assert np.array_equal(split.backward(saved, (square.T,))[0], square.T)  # begins in the same place


def test_a_leaf_never_owns_the_gradient_that_the_caller_gave():
    """The seed is the whole whose parts reach split: the leaf gets a copy."""
    x = leaf(6, 8)
    y = tg.concatenate(tg.split(x, sections=2, axis=-1), axis=-1)
    seed = np.ones((6, 8), np.float32)
    y.backward(seed)
    assert np.array_equal(x.grad, seed) and not np.shares_memory(x.grad, seed)


def keys(x, shared):
    """Heads in front of time, beside a key that they share, as in latent attention."""
    heads = x.reshape(3, 90, 5, 40).transpose(0, 2, 1, 3)
    own, _ = tg.split(heads, sections=[24], axis=-1)
    return tg.concatenate([own, tg.broadcast_to(shared.reshape(3, 1, 90, 33), shape=(3, 5, 90, 33))], axis=-1)


def test_joining_transposed_and_repeated_arrays_of_many_entries():
    fused, reference = through(keys, leaf(3, 90, 200), leaf(3, 90, 33))
    assert fused[0].size >= 1 << 16
    for a, b in zip(fused, reference):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("shape", "served"),
    [((64,), False), ((8, 8), True), ((7, 8), False), ((2, 7, 5, 6), True), ((1, 2, 7, 5, 6), False)],
)
def test_joining_serves_two_to_four_axes_from_so_many_entries_on(monkeypatch, shape, served):
    """The last two leading axes are exchanged, and neither size is a multiple of the other."""
    monkeypatch.setattr("tinygrad_ds.kernels.cpu.shape.PARALLEL_FROM", 128)
    a, b = (leaf(*shape, seed=seed).data for seed in range(2))
    if len(shape) > 2:
        a, b = a.swapaxes(-3, -2), b.swapaxes(-3, -2)
    answer = tg.concatenate.fused["cpu"].forward(a, b, axis=-1)
    assert (answer is not NotImplemented) == served
    joined = np.concatenate([a, b], axis=-1)
    assert not served or np.array_equal(answer[0], joined)
    split = tg.split.fused["cpu"]
    (grad,) = split.backward(split.forward(joined, sections=2, axis=-1)[1], (a, b))
    assert np.array_equal(grad, joined)


def test_splitting_many_entries():
    def crossed(x):
        a, b = tg.split(x, sections=[100], axis=-1)
        return tg.concatenate([b * 2.0, a * 3.0], axis=-1)

    fused, reference = through(crossed, leaf(300, 257))
    assert all(np.array_equal(a, b) for a, b in zip(fused, reference))


def test_what_joining_does_not_cover_goes_to_the_reference():
    a, b = np.zeros((400, 200), np.float32), np.zeros((400, 3), np.float64)
    assert tg.concatenate([a, b], axis=-1).dtype == np.float64
    assert tg.concatenate([a, a], axis=0).shape == (800, 200)
    with pytest.raises(ValueError, match="dimensions"):
        tg.concatenate([a, a[1:]], axis=-1)


def test_a_write_into_a_half_that_was_saved_is_found():
    x = leaf(4, 6)
    gate, up = tg.split(x * 1.0, sections=2, axis=-1)
    y = tg.swiglu(gate, up)
    up *= 2.0
    with pytest.raises(RuntimeError, match="written in place"):
        y.backward(np.ones((4, 3), np.float32))


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("angles", [(1, 70, 1, 9), (70, 1, 9), (3, 70, 1, 9), (9,)])
def test_rope_reads_a_slice_of_the_heads(angles, interleaved):
    """Queries (batch, time, heads, d) cut from a wider array, angles shared by heads and batch, or not."""
    draw = np.random.default_rng(0).normal(size=angles).astype(np.float32)

    def turned(x):
        return tg.rope(x[..., 32:], np.cos(draw), np.sin(draw), interleaved=interleaved)

    fused, reference = through(turned, leaf(3, 70, 20, 50))
    for a, b in zip(fused, reference):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
