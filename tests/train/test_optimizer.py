import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tinygrad_ds as tg
from tests.train.tiny import tiny_model, with_gradient
from tinygrad_ds.dtypes import dtype as named_dtype
from train.errors import UserError
from train.optimizer import BLOCK, AdamW, adamw_update, blocks, clip_grad_norm


@pytest.fixture(autouse=True, params=["reference", "fused"])
def kernels(request):
    with tg.using(kernels=request.param):
        yield


def leaves(model):
    return {path: leaf.data.copy() for path, leaf in model.named_leaves()}


def gradients(model):
    return {path: leaf.grad.copy() for path, leaf in model.named_leaves()}


def written_out(theta, gs, lr, b1, b2, decay, eps):
    """Algorithm 2 of the paper, number by number: theta after the gradients gs."""
    m = v = 0.0
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        theta = theta - lr * decay * theta - lr * m_hat / (math.sqrt(v_hat) + eps)
    return theta


def test_adamw_is_the_published_algorithm():
    model = tiny_model()
    optimizer = AdamW(model, lr=3e-3, betas=(0.8, 0.9), weight_decay=0.2, eps=1e-6)
    before, seen = leaves(model), []
    for seed in range(3):
        with_gradient(model, seed)
        seen.append(gradients(model))
        optimizer.step()
    rng = np.random.default_rng(0)
    for path, leaf in model.named_leaves():
        decay = 0.2 if leaf.ndim > 1 else 0.0
        for place in rng.integers(0, leaf.size, 5):
            gs = [float(grads[path].flat[place]) for grads in seen]
            expected = written_out(float(before[path].flat[place]), gs, 3e-3, 0.8, 0.9, decay, 1e-6)
            assert leaf.data.flat[place] == pytest.approx(expected, rel=1e-12), path


def test_first_step_goes_against_the_sign_of_the_gradient_whatever_its_size():
    model = with_gradient(tiny_model())
    before, grads = leaves(model), gradients(model)
    AdamW(model, lr=0.01, weight_decay=0.0, eps=1e-30).step()
    for path, leaf in model.named_leaves():
        moved = grads[path] != 0  # an expert that no token chose stays where it is
        step = (leaf.data - before[path])[moved]
        np.testing.assert_allclose(step, -0.01 * np.sign(grads[path][moved]), rtol=1e-9)


def test_decay_takes_matrices_towards_zero_and_leaves_vectors_and_router_bias():
    model = tiny_model()
    for _, leaf in model.named_leaves():
        leaf.grad = np.zeros_like(leaf.data)
    before, biases = leaves(model), {name: b.data.copy() for name, b in model.named_buffers()}
    AdamW(model, lr=0.5, weight_decay=0.1).step()
    for path, leaf in model.named_leaves():
        np.testing.assert_allclose(leaf.data, before[path] * (0.95 if leaf.ndim > 1 else 1.0), rtol=1e-12)
    assert biases and all((b.data == biases[name]).all() for name, b in model.named_buffers())


def test_leaf_without_gradient_stays_and_float32_stays_float32():
    model = with_gradient(tiny_model("float32"))
    model.embed_tokens.weight.grad = None
    before = model.embed_tokens.weight.data.copy()
    AdamW(model, lr=0.1).step()
    assert (model.embed_tokens.weight.data == before).all()
    assert {leaf.dtype for leaf in model.parameters()} == {np.dtype("float32")}


def test_tape_from_before_a_step_is_refused():
    model = with_gradient(tiny_model())
    loss = model.loss(np.array([[1, 2]]), np.array([[2, 3]]))
    AdamW(model, lr=0.1).step()
    with pytest.raises(RuntimeError, match="written in place"):
        loss.backward()


def test_blocks_cover_every_entry_once_and_share_memory():
    for shape in [(), (0, 3), (5,), (3 * BLOCK // 64 + 1, 64), (2, BLOCK + 1), (3, 4, 5)]:
        array = np.zeros(shape)
        for (block,) in blocks(array):
            block += 1
        assert (array == 1).all()
        assert all(block.size <= max(BLOCK, math.prod(shape[1:])) for (block,) in blocks(array))


def test_update_is_the_same_in_blocks_and_whole():
    rng = np.random.default_rng(0)
    p, g, m, v = (abs(rng.normal(size=(700, 300))) for _ in range(4))
    whole = [a.copy() for a in (p, g, m, v)]
    options = {"t": 3, "lr": 0.1, "betas": (0.9, 0.95), "decay": 0.1, "eps": 1e-8}
    adamw_update(*whole, **options)
    for block in blocks(p, g, m, v):
        adamw_update(*block, **options)
    for one, other in zip(whole, (p, g, m, v)):
        assert (one == other).all()


def test_clip_returns_the_norm_and_scales_to_it_only_from_above():
    model = with_gradient(tiny_model())
    grads = gradients(model)
    norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
    assert clip_grad_norm(model, 2 * norm) == pytest.approx(norm, rel=1e-12)
    assert all((leaf.grad == grads[path]).all() for path, leaf in model.named_leaves())
    assert clip_grad_norm(model, norm / 3) == pytest.approx(norm, rel=1e-12)
    for path, leaf in model.named_leaves():
        np.testing.assert_allclose(leaf.grad, grads[path] / 3, rtol=1e-12)


def test_clip_leaves_gradients_alone_when_the_norm_is_not_finite():
    model = with_gradient(tiny_model())
    model.norm.weight.grad[0] = np.inf
    before = gradients(model)
    assert clip_grad_norm(model, 1.0) == np.inf
    assert all((leaf.grad == before[path]).all() for path, leaf in model.named_leaves())


def test_state_goes_on_where_it_stopped():
    one, other = with_gradient(tiny_model()), with_gradient(tiny_model())
    first, second = AdamW(one, lr=0.01), AdamW(other, lr=0.01)
    for _ in range(2):
        first.step()
    second.step()
    third = AdamW(other, lr=0.01)
    third.load_state_dict(second.state_dict())
    third.step()
    assert all((a == b).all() for a, b in zip(leaves(one).values(), leaves(other).values()))


def test_state_of_another_model_is_refused_and_changes_nothing():
    model = with_gradient(tiny_model())
    optimizer = AdamW(model, lr=0.01)
    optimizer.step()
    state = optimizer.state_dict()
    for broken in (
        {**state, "m.norm.weight": np.zeros(3)},
        {k: v for k, v in state.items() if "v.norm" not in k},
    ):
        fresh = AdamW(model, lr=0.01)
        with pytest.raises(UserError, match=r"'[mv]\.norm\.weight'.*another model"):
            fresh.load_state_dict(broken)
        assert not any(m.any() or v.any() for m, v in fresh.moments.values())


def test_optimizer_forgets_gradients():
    model = with_gradient(tiny_model())
    AdamW(model, lr=0.1).zero_grad()
    assert all(leaf.grad is None for leaf in model.parameters())


def test_bfloat16_moments_are_the_rounded_ones_of_each_step():
    p, g = np.linspace(-1, 1, 6, dtype=np.float32), np.linspace(0.1, 3, 6, dtype=np.float32)
    options = {"lr": 0.1, "betas": (0.9, 0.95), "decay": 0.0, "eps": 1e-8}
    narrow = [np.zeros(6, named_dtype("bfloat16")) for _ in range(2)]
    wide = [np.zeros(6, np.float32) for _ in range(2)]
    other = p.copy()
    for t in (1, 2, 3):
        adamw_update(p, g * t, *narrow, t=t, **options)
        adamw_update(other, g * t, *wide, t=t, **options)
        for moment in wide:
            moment[...] = moment.astype(named_dtype("bfloat16"))
        np.testing.assert_array_equal(p, other)
        for kept, moment in zip(narrow, wide):
            np.testing.assert_array_equal(kept.astype(np.float32), moment)


def test_bfloat16_moments_take_two_bytes_each_and_survive_a_checkpoint(tmp_path):
    model = with_gradient(tiny_model())
    narrow, wide = AdamW(model, lr=0.1, moments="bfloat16"), AdamW(model, lr=0.1)
    size = [sum(m.nbytes + v.nbytes for m, v in each.moments.values()) for each in (narrow, wide)]
    assert size[0] / 2 == size[1] / model.dtype.itemsize
    narrow.step()
    save_file(narrow.state_dict(), tmp_path / "state.safetensors")
    again = AdamW(model, lr=0.1, moments="bfloat16")
    again.load_state_dict(load_file(tmp_path / "state.safetensors"))
    for path, pair in narrow.moments.items():
        for moment, loaded in zip(pair, again.moments[path]):
            assert loaded.dtype == moment.dtype
            np.testing.assert_array_equal(loaded, moment)
