"""The kernels of router and experts at sizes of many parts, and on several threads."""

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import tinygrad_ds as tg
from tests.tinygrad_ds.test_moe import ROUTER, draw
from tinygrad_ds.kernels.cpu import experts, moe, products, routing
from tinygrad_ds.kernels.cpu.common import PARTS, Kernel
from tinygrad_ds.ops.experts import expert_order, token_of_row


def large(dtype, tokens=700, experts=8, d=48, width=80):
    """Rows for every part of a kernel and several pieces of a product; expert 3 is chosen by nobody."""
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(tokens, experts))
    logits[:, 3] = -30
    arrays = rng.normal(size=(tokens, d)), logits, 0.1 * rng.normal(size=experts)
    weight = rng.normal(size=(experts, width, d))
    return [array.astype(dtype) for array in (*arrays, weight)]


def every_step(kernels, dtype):
    """All outputs and gradients of the whole way."""
    with tg.using(kernels=kernels):
        x, logits, bias, weight = (tg.Tensor(array, requires_grad=True) for array in large(dtype))
        chosen = tg.router_selection(logits, bias, **ROUTER)
        sent = tg.dispatch(x, chosen.indices, num_experts=8)
        rows = tg.grouped_linear(sent.rows, weight, sent.offsets)
        y = tg.combine(rows, chosen.weights, sent.position)
        down = tg.Tensor(draw(8, 48, 40).astype(dtype), requires_grad=True)
        gate_up = tg.experts_in(x, weight, sent.position, sent.offsets)
        z = tg.experts_out(gate_up, chosen.weights, down, sent.position, sent.offsets)
        (
            (y * draw(*y.shape).astype(dtype)).sum()
            + (z * draw(*z.shape).astype(dtype)).sum()
            + (chosen.scores * draw(700, 8).astype(dtype)).sum()
        ).backward()
    outputs = [*chosen, *sent, rows, y, gate_up, z]
    return [t.data for t in outputs] + [t.grad for t in (x, logits, weight, down)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 2e-6)])
def test_kernels_equal_their_references_at_size(dtype, tolerance):
    """The float32 tolerance is that of sums of up to 80 products, relative to the largest."""
    for a, b in zip(every_step("fused", dtype), every_step("reference", dtype), strict=True):
        assert a.dtype == b.dtype
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="numba was started for one thread")
def test_threads_do_not_change_a_bit(monkeypatch):
    found = [value for module in (experts, moe, routing) for value in vars(module).values()]
    for kernel in (value for value in found if isinstance(value, Kernel)):
        monkeypatch.setattr(kernel, "parallel_from", 0)
    monkeypatch.setattr(products, "PARALLEL_FROM", 0)
    before, results = numba.get_num_threads(), []
    for threads in (1, 2, 2):
        numba.set_num_threads(threads)
        with threadpool_limits(threads, user_api="blas"):
            results.append(every_step("fused", np.float32))
    numba.set_num_threads(before)
    for one, *others in zip(*results):
        assert all(other.tobytes() == one.tobytes() for other in others)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_products_are_all_done_and_the_threads_of_blas_are_as_before(threads, monkeypatch):
    monkeypatch.setattr(products, "PARALLEL_FROM", 0)
    sizes = [(700, 3, 5), (0, 2, 2), (1, 0, 4), (257, 20, 1), (64, 64, 64)]
    pairs = [(draw(m, k), draw(k, n)) for m, k, n in sizes]
    outs = [np.full((m, n), np.nan) for m, _, n in sizes]
    with threadpool_limits(threads, user_api="blas"):
        with ThreadPoolExecutor(4) as pool:
            for _ in pool.map(products.multiply_all, [[(*p, out)] for p, out in zip(pairs, outs)] * 3):
                pass
        products.multiply_all([(*p, out) for p, out in zip(pairs, outs)])
        blas = [library for library in threadpool_info() if library["user_api"] == "blas"]
        assert {library["num_threads"] for library in blas} == {threads}
    for (a, b), out in zip(pairs, outs):
        assert np.allclose(out, a @ b, rtol=1e-12, atol=1e-12)


def test_an_error_in_a_product_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(products, "PARALLEL_FROM", 0)
    good = draw(3, 4), draw(4, 5), np.empty((3, 5))
    with threadpool_limits(2, user_api="blas"), pytest.raises(ValueError, match="matmul"):
        products.multiply_all([good, (draw(3, 4), draw(3, 5), np.empty((3, 5))), good])


def test_rows_in_another_order_than_that_of_their_tokens_reach_them_all_the_same():
    """Chunks of tokens rely on the order that `expert_order` gives; rows in another order go in one piece."""
    rng = np.random.default_rng(8)
    position = rng.permutation(120).reshape(60, 2)
    x, weight, g = draw(60, 5), draw(3, 7, 5), draw(120, 7)
    offsets, down = np.array([0, 50, 70, 120]), draw(3, 5, 4)
    gate_up, weights = draw(120, 8), draw(60, 2)
    pairs = tg.experts_in, tg.experts_in.fused["cpu"], tg.experts_out, tg.experts_out.fused["cpu"]
    into, fused_into, out, fused_out = pairs
    expected, got = (pair.forward(x, weight, position, offsets) for pair in (into, fused_into))
    assert np.allclose(got[0], expected[0], rtol=1e-12)
    gradients = zip(into.backward(expected[1], g)[:2], fused_into.backward(got[1], g)[:2])
    assert all(np.allclose(a, b, rtol=1e-12) for a, b in gradients)
    expected, got = (pair.forward(gate_up, weights, down, position, offsets) for pair in (out, fused_out))
    assert np.allclose(got[0], expected[0], rtol=1e-12)


def routed(tokens, count, chosen):
    """Bounds, the token of each row, and where rows are: token n goes to experts n, n + 1, .. in turn."""
    picks = (np.arange(tokens)[:, None] + np.arange(chosen)) % count
    offsets, position = expert_order(picks, num_experts=count)
    return offsets.tolist(), token_of_row(np, position), position


@pytest.mark.parametrize(
    ("count", "chosen", "wanted"), [(3, 1, 5), (3, 2, 5), (1, 1, 5), (4, 2, 1), (2, 1, PARTS + 3)]
)
def test_chunks_of_tokens_are_of_one_size_and_no_token_is_in_two(count, chosen, wanted):
    """So many that an expert has CHUNK_ROWS rows in each, but at least two and at most one for each part."""
    tokens = wanted * count * experts.CHUNK_ROWS // chosen
    bounds, of_row, _ = routed(tokens, count, chosen)
    chunks = experts._chunks(bounds, of_row, tokens)
    assert len(chunks) == min(max(wanted, 2), PARTS)
    found = [np.unique(np.concatenate([of_row[i:j] for _, i, j in chunk])) for chunk in chunks]
    assert np.array_equal(np.concatenate(found), np.arange(tokens))
    assert np.ptp([len(each) for each in found]) <= 1
    rows = []
    for chunk in chunks:
        assert chunk == sorted(chunk) and all(bounds[e] <= i < j <= bounds[e + 1] for e, i, j in chunk)
        rows += [np.arange(i, j) for _, i, j in chunk]
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(len(of_row)))


@pytest.mark.parametrize("tokens", [[0, 2, 1, 0, 1, 2], [0, 1, 2, 2, 0, 1], [1, 0, 2, 0, 1, 2]])
def test_rows_that_are_not_in_the_order_of_tokens_are_one_chunk(tokens):
    assert experts._chunks([0, 3, 3, 6], np.array(tokens), 3) == [[(0, 0, 3), (2, 3, 6)]]


def test_a_chunk_has_no_runs_of_nothing():
    assert experts._chunks([0, 3, 6], np.arange(6), 6) == [[(0, 0, 3)], [(1, 3, 6)]]
    assert experts._chunks([0], np.arange(0), 4) == [[], []]


def test_the_longest_run_is_the_first_and_no_expert_is_left_out():
    found = experts._longest_first([0, 2, 2, 9, 12, 17])
    assert found == [(2, 2, 9), (4, 12, 17), (3, 9, 12), (0, 0, 2), (1, 2, 2)]


def test_products_say_how_many_multiplications_they_are(monkeypatch):
    """Above so many, threads are woken."""
    said, honest = [], experts.take_turns
    monkeypatch.setattr(experts, "take_turns", lambda *given: said.append(given[2]) or honest(*given))
    bounds, _, position = routed(30, 3, 2)
    into, out = tg.experts_in.fused["cpu"], tg.experts_out.fused["cpu"]
    _, saved = into.forward(draw(30, 5), draw(3, 7, 5), position, np.array(bounds))
    into.backward(saved, draw(60, 7))
    _, saved = out.forward(draw(60, 22), draw(30, 2), draw(3, 5, 11), position, np.array(bounds))
    out.backward(saved, draw(30, 5))
    assert said == [60 * 5 * 7] * 3 + [60 * 5 * 11] * 2


def test_both_halves_of_a_derivative_give_the_bits_of_the_whole():
    """Schedules that put the weights' half off train as those that do not."""
    rng = np.random.default_rng(9)
    indices = np.argsort(rng.random((90, 5)), axis=1)[:, :2]
    offsets, position = expert_order(indices, num_experts=5)
    gate_up, weights, down = (draw(*shape).astype(np.float32) for shape in ((180, 72), (90, 2), (5, 40, 36)))
    twin = tg.experts_out.fused["cpu"]
    _, saved = twin.forward(gate_up, weights, down, position, offsets)
    g = draw(90, 40).astype(np.float32)
    whole, halves = twin.backward(saved, g), (twin.backward_input(saved, g), twin.backward_weight(saved, g))
    assert all(np.array_equal(whole[i], halves[0][i]) for i in (0, 1))
    assert np.array_equal(whole[2], halves[1][2])
