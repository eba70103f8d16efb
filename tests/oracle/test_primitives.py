"""Primitives beside torch's functions of the same meaning, forward and backward in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tinygrad_ds as tg
from tests.oracle.peers import assert_same_function, to_torch

pytestmark = pytest.mark.oracle


@pytest.fixture(params=["reference", "fused"], autouse=True)
def kernels(request):
    with tg.using(kernels=request.param):
        yield


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(0, scale, shape)


UNARY = {
    "exp": torch.exp,
    "tanh": torch.tanh,
    "abs": torch.abs,
    "negative": torch.neg,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "relu": F.relu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
}
POSITIVE = {"log": torch.log, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt}
BINARY = {
    "add": torch.add,
    "subtract": torch.subtract,
    "multiply": torch.multiply,
    "divide": torch.divide,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}


@pytest.mark.parametrize("name", UNARY)
def test_of_one_array(name):
    assert_same_function(getattr(tg, name), UNARY[name], normal(7, 33, scale=4))


@pytest.mark.parametrize("name", POSITIVE)
def test_of_positive_entries(name):
    assert_same_function(getattr(tg, name), POSITIVE[name], np.abs(normal(7, 33)) + 0.1)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("shape", [(4, 5), (5,), (4, 1), (1, 1)])
def test_of_two_arrays_broadcast(name, shape):
    assert_same_function(getattr(tg, name), BINARY[name], normal(3, 4, 5), normal(*shape, seed=1))


def test_power():
    assert_same_function(tg.power, torch.pow, np.abs(normal(4, 5)) + 0.1, normal(5, scale=3))


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(name, axis):
    def theirs(x):
        return getattr(F, name)(x, dim=axis)

    assert_same_function(lambda x: getattr(tg, name)(x, axis=axis), theirs, normal(4, 9, 33, scale=10))


@pytest.mark.parametrize("name, theirs", [("sum", torch.sum), ("mean", torch.mean), ("max", torch.amax)])
@pytest.mark.parametrize("axis", [0, (0, 2), -1])
@pytest.mark.parametrize("keepdims", [True, False])
def test_reductions(name, theirs, axis, keepdims):
    assert_same_function(
        lambda x: getattr(tg, name)(x, axis=axis, keepdims=keepdims),
        lambda x: theirs(x, dim=axis, keepdim=keepdims),
        normal(4, 5, 6),
    )


@pytest.mark.parametrize("axis", [0, (0, 2), -1])
def test_variance_and_logsumexp(axis):
    x = normal(4, 5, 6, scale=10)
    assert_same_function(
        lambda x: tg.var(x, axis=axis, ddof=1), lambda x: torch.var(x, dim=axis, correction=1), x
    )
    assert_same_function(lambda x: tg.logsumexp(x, axis=axis), lambda x: torch.logsumexp(x, dim=axis), x)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_cross_entropy(reduction, ignore_index):
    targets = np.random.default_rng(0).integers(0, 37, 24)
    targets[[0, 5, 6, 23]] = ignore_index
    options = {"ignore_index": ignore_index, "reduction": reduction}
    assert_same_function(
        lambda x: tg.cross_entropy(x, targets, **options),
        lambda x: F.cross_entropy(x, to_torch(targets), **options),
        normal(24, 37, scale=5),
    )


@pytest.mark.parametrize("eps", [1e-6, 0.1])
@pytest.mark.parametrize("size", [3, 7, 64])
def test_rms_norm(size, eps):
    assert_same_function(
        lambda x, w: tg.rmsnorm(x, w, eps=eps),
        lambda x, w: F.rms_norm(x, (size,), w, eps),
        normal(3, 5, size),
        normal(size),
    )


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("time, d, d_v", [(1, 4, 4), (17, 6, 6), (70, 12, 5)])
def test_attention(kv_heads, causal, time, d, d_v):
    def theirs(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3, enable_gqa=True)

    if time == 1:  # one key: whatever the scores are, so gradients of q and k are rounding alone
        assert_same_function(
            lambda v: tg.attention(normal(2, 4, 1, d), normal(2, kv_heads, 1, d), v, causal=causal),
            lambda v: v.repeat_interleave(4 // kv_heads, dim=1),
            normal(2, kv_heads, 1, d_v),
        )
        return
    assert_same_function(
        lambda q, k, v: tg.attention(q, k, v, causal=causal, scale=0.3),
        theirs,
        normal(2, 4, time, d),
        normal(2, kv_heads, time, d, seed=1),
        normal(2, kv_heads, time, d_v, seed=2),
    )


def test_attention_to_earlier_keys_and_to_some_only():
    """Fewer queries than keys, and rows that begin later: torch is given the mask itself."""
    first = np.array([0, 4])
    first = np.repeat(first[:, None], 3, axis=1)
    keys, queries = np.arange(9), np.arange(3)[:, None] + 6
    mask = to_torch((keys <= queries) & (keys >= first[:, :1, None]))[:, None]  # (batch, 1, 3, 9)
    assert_same_function(
        lambda q, k, v: tg.attention(q, k, v, first=first),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        normal(2, 4, 3, 6),
        normal(2, 4, 9, 6, seed=1),
        normal(2, 4, 9, 5, seed=2),
    )


@pytest.mark.parametrize(
    "subscripts, shapes",
    [
        ("ij,jk->ik", [(4, 5), (5, 3)]),
        ("bij,bjk->bik", [(2, 4, 5), (2, 5, 3)]),
        ("bthd,hdr->bthr", [(2, 3, 4, 5), (4, 5, 6)]),
        ("ij->ji", [(4, 5)]),
        ("ij->", [(4, 5)]),
        ("bi,bj,bk->bijk", [(2, 3), (2, 4), (2, 5)]),
        ("i,j->ij", [(4,), (5,)]),
    ],
)
def test_einsum(subscripts, shapes):
    assert_same_function(
        lambda *arrays: tg.einsum(*arrays, subscripts=subscripts),
        lambda *arrays: torch.einsum(subscripts, *arrays),
        *(normal(*shape, seed=i) for i, shape in enumerate(shapes)),
    )


def test_linear_and_matmul():
    assert_same_function(tg.linear, F.linear, normal(3, 7, 5), normal(4, 5), normal(4))
    assert_same_function(tg.matmul, torch.matmul, normal(3, 7, 5), normal(5, 4))
    assert_same_function(tg.matmul, torch.matmul, normal(2, 1, 7, 5), normal(3, 5, 4))


def test_embedding_and_gathering():
    ids = np.random.default_rng(0).integers(0, 9, (4, 6))
    assert_same_function(
        lambda w: tg.embedding(w, ids), lambda w: F.embedding(to_torch(ids), w), normal(9, 5)
    )
    assert_same_function(
        lambda x: tg.take_along_axis(x, ids, axis=1), lambda x: x.gather(1, to_torch(ids)), normal(4, 9)
    )
