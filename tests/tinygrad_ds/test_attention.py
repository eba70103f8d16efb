"""Attention: what follows from its definition, and published numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import tinygrad_ds as tg
from tinygrad_ds.dtypes import dtype

GOLDEN = Path(__file__).parent.parent / "golden" / "mha_gqa"


@pytest.fixture(params=["reference", "fused"], autouse=True)
def kernels(request):
    with tg.using(kernels=request.param):
        yield request.param


def draw(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(dtype)


def run(q, k, v, g=None, **options):
    """The output and the gradients of sum(output * g)."""
    tensors = [tg.Tensor(array, requires_grad=True) for array in (q, k, v)]
    y = tg.attention(*tensors, **options)
    (y * (draw(*y.shape, seed=9, dtype=q.dtype) if g is None else g)).sum().backward()
    return y.data, *(tensor.grad for tensor in tensors)


def close(a, b, tolerance=1e-12):
    assert np.abs(a - b).max(initial=0) <= tolerance * np.abs(b).max(initial=1e-30)


@pytest.mark.parametrize("number", range(3))
def test_published_numbers(number):
    """Stored in float32 by scaled_dot_product_attention run in float64: tests/golden/FORMAT.md."""
    case = json.loads((GOLDEN / "golden.json").read_text())["shapes"][number]
    stored = load_file(GOLDEN / "golden.safetensors")
    numbers = {
        name: stored[f"{number}.{name}"].astype(np.float64)
        for name in ("q", "k", "v", "weight", "out", "grad_q", "grad_k", "grad_v")
    }
    q, k, v, weight, *expected = numbers.values()
    assert k.shape[1] == case["kv_heads"]
    for given, wanted in zip(run(q, k, v, weight, causal=case["causal"]), expected):
        close(given, wanted, 1e-6)


def test_equal_scores_average_the_values():
    q, k, v = np.zeros((2, 4, 5, 3)), draw(2, 2, 5, 3), draw(2, 2, 5, 6)
    y = run(q, k, v, causal=True)[0]
    for i in range(5):
        close(y[:, :, i], v[:, :, : i + 1].mean(axis=2).repeat(2, axis=1))
    close(run(q, k, v, causal=False)[0][:, :, 3], v.mean(axis=2).repeat(2, axis=1))


def test_later_keys_change_nothing_and_get_no_gradient():
    q, k, v = draw(1, 2, 70, 4), draw(1, 1, 75, 4), draw(1, 1, 75, 3)
    g = draw(1, 2, 70, 3)
    g[:, :, 40:] = 0  # only the first 40 queries count; they see the keys 0 to 44
    y, grad_q, grad_k, grad_v = run(q, k, v, g)
    assert not grad_q[:, :, 40:].any() and not grad_k[:, :, 45:].any() and not grad_v[:, :, 45:].any()
    assert grad_k[:, :, 44].all() and grad_v[:, :, 44].all()
    k[:, :, 45:], v[:, :, 45:] = 7, -7
    again = run(q, k, v, g)
    assert np.array_equal(again[0][:, :, :40], y[:, :, :40]) and not np.array_equal(again[0], y)
    close(again[2], grad_k)


def test_a_constant_added_to_all_keys_changes_nothing():
    """Rows of dS sum to zero, so the gradients of all keys do."""
    q, k, v = draw(2, 2, 6, 3), draw(2, 2, 6, 3), draw(2, 2, 6, 4)
    y, _, grad_k, grad_v = run(q, k, v, np.ones((2, 2, 6, 4)))
    close(run(q, k + draw(3), v)[0], y, 1e-10)
    assert np.abs(grad_k.sum(axis=2)).max() < 1e-12 * np.abs(grad_k).max()
    close(grad_v.sum(axis=2), np.full((2, 2, 4), 6.0))  # and each query gives weights that sum to 1


def test_packed_sequences_equal_separate_ones():
    lengths = [3, 40, 1, 36]
    starts = np.cumsum([0, *lengths[:-1]])
    total = sum(lengths)
    q, k, v, g = draw(1, 4, total, 5), draw(1, 2, total, 5), draw(1, 2, total, 3), draw(1, 4, total, 3)
    packed = run(q, k, v, g, first=np.repeat(starts, lengths)[None])
    for start, length in zip(starts, lengths):
        part = np.s_[:, :, start : start + length]
        alone = run(q[part], k[part], v[part], g[part])
        for together, apart in zip(packed, alone):
            close(together[part], apart)


def test_padding_on_the_left_is_as_if_it_were_not_there():
    q, k, v = draw(2, 2, 9, 4), draw(2, 2, 9, 4), draw(2, 2, 9, 4)
    padding = np.array([0, 4])
    padded = run(q, k, v, first=np.tile(padding[:, None], (1, 9)))
    for row, count in enumerate(padding):
        alone = run(q[row : row + 1, :, count:], k[row : row + 1, :, count:], v[row : row + 1, :, count:])
        close(padded[0][row : row + 1, :, count:], alone[0])
    assert not padded[0][1, :, :4].any()


@pytest.mark.parametrize("options", [{"first": np.full((1, 2), 3)}, {"time_k": 0}, {"time_q": 5}])
def test_a_query_that_sees_no_key_gives_zero_and_takes_no_part(options):
    options = dict(options)
    time_q, time_k = options.pop("time_q", 2), options.pop("time_k", 3)
    y, *grads = run(draw(1, 2, time_q, 3), draw(1, 1, time_k, 3), draw(1, 1, time_k, 3), **options)
    blind = slice(0, time_q - time_k) if time_q > time_k else slice(None)
    assert not y[:, :, blind].any() and not grads[0][:, :, blind].any()
    if time_q <= time_k:
        assert not grads[1].any() and not grads[2].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_scores_do_not_overflow(dtype):
    q, k, v = np.ones((1, 1, 3, 1), dtype), np.array([[[[1e4], [3e4], [2e4]]]], dtype), draw(1, 1, 3, 2)
    y = tg.attention(q, k, v.astype(dtype), causal=False, scale=1.0).data
    close(y, np.repeat(v[:, :, 1:2], 3, axis=2).astype(dtype))


@pytest.mark.parametrize(
    ("shapes", "first", "sentence"),
    [
        (((1, 3, 2, 4), (1, 2, 2, 4), (1, 2, 2, 4)), None, "heads must be a multiple of kv_heads"),
        (((1, 2, 2, 4), (1, 2, 2, 3), (1, 2, 2, 4)), None, "the same size of a head, not 4 and 3"),
        (((1, 2, 2, 4), (1, 2, 2, 4), (1, 2, 3, 4)), None, "the same heads and time"),
        (((2, 2, 2, 4), (1, 2, 2, 4), (1, 2, 2, 4)), None, "the same batch"),
        (((2, 2, 4), (2, 2, 4), (2, 2, 4)), None, r"takes \(batch, heads, time, size\)"),
        (((1, 2, 2, 0), (1, 2, 2, 0), (1, 2, 2, 4)), None, "at least one number"),
        (((1, 2, 2, 4), (1, 2, 2, 4), (1, 2, 2, 4)), np.zeros((2, 1), int), r"entry per query: \(1, 2\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_a_sentence(shapes, first, sentence):
    with pytest.raises(ValueError, match=sentence):
        tg.attention(*(draw(*shape) for shape in shapes), first=first)


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_narrow_formats_are_kept(narrow):
    arrays = [array.astype(dtype(narrow)) for array in (draw(1, 4, 5, 3), draw(1, 2, 5, 3), draw(1, 2, 5, 2))]
    exact = run(*(array.astype(np.float64) for array in arrays))
    for given, expected in zip(run(*arrays), exact):
        assert given.dtype == dtype(narrow)
        close(given.astype(np.float64), expected, 0.05)
