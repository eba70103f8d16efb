import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from tests.train.tiny import tiny_model, with_gradient
from train.errors import UserError
from train.muon import Muon, is_hidden_matrix, orthogonalize, orthogonalize_all
from train.optimizer import AdamW


@pytest.mark.parametrize("shape", [(3, 20, 20), (2, 9, 30), (2, 30, 9), (5, 7), (1, 1, 1)])
def test_result_is_nearly_orthogonal_and_keeps_the_singular_vectors(shape):
    g = np.random.default_rng(0).normal(size=shape)
    x = orthogonalize(g)
    assert x.shape == g.shape
    u, s, vt = np.linalg.svd(g, full_matrices=False)
    inside = u.swapaxes(-1, -2) @ x @ vt.swapaxes(-1, -2)  # diagonal if the singular vectors stayed
    values = np.diagonal(inside, axis1=-2, axis2=-1)
    np.testing.assert_allclose(inside, values[..., None] * np.eye(s.shape[-1]), atol=1e-9)
    share = s / np.sqrt((s**2).sum(-1, keepdims=True))
    assert (values[share > 0.02] > 0.65).all() and (values < 1.25).all()


def test_scale_does_not_matter_and_zero_stays_zero():
    g = np.random.default_rng(1).normal(size=(2, 6, 8))
    np.testing.assert_allclose(orthogonalize(1000 * g), orthogonalize(g), atol=1e-6)
    assert not orthogonalize(np.zeros((2, 3, 4), np.float32)).any()
    assert orthogonalize(g.astype(np.float32)).dtype == np.float32


def test_each_matrix_of_a_stack_is_worked_on_alone():
    g = np.random.default_rng(2).normal(size=(3, 5, 4))
    for one, whole in zip(g, orthogonalize(g)):
        np.testing.assert_allclose(orthogonalize(one), whole, rtol=1e-12)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(threads):
    rng = np.random.default_rng(3)
    stacks = [rng.normal(size=shape).astype(np.float32) for shape in [(5, 8, 6), (1, 3, 3), (2, 40, 70)]]
    with threadpool_limits(1, user_api="blas"):
        expected = [orthogonalize(stack) for stack in stacks]
    with threadpool_limits(threads, user_api="blas"):
        for one, other in zip(orthogonalize_all(stacks), expected, strict=True):
            assert one.tobytes() == other.tobytes()


def test_which_matrices_are_hidden():
    model = tiny_model()
    rest = {name for name, p in model.named_parameters() if not is_hidden_matrix(name, p.shape)}
    matrices = {"model.embed_tokens.weight", "lm_head.weight"}
    matrices |= {f"model.layers.{i}.mlp.gate.weight" for i in (1, 2)}
    assert rest == matrices | {name for name, p in model.named_parameters() if p.ndim == 1}


def test_step_is_written_out_for_every_published_matrix():
    """Two steps by the formula, one matrix at a time, wherever in a leaf the matrix lies."""
    model = tiny_model()
    optimizer = Muon(model, lr=0.03, momentum=0.9, weight_decay=0.1)
    hidden = [name for name, p in model.named_parameters() if is_hidden_matrix(name, p.shape)]
    expected = {name: p.data.copy() for name, p in model.named_parameters() if name in hidden}
    m = dict.fromkeys(hidden, 0.0)
    for seed in (0, 1):
        with_gradient(model, seed)
        grads = {name: p.grad.copy() for name, p in model.named_parameters() if name in hidden}
        optimizer.step()
        for name, p in expected.items():
            m[name] = 0.9 * m[name] + grads[name]
            rows, columns = p.shape
            update = orthogonalize(grads[name] + 0.9 * m[name]) * np.sqrt(max(1, rows / columns))
            expected[name] = p - 0.03 * (0.1 * p + update)
    assert any("experts.3.up_proj" in name for name in hidden) and any("eh_proj" in name for name in hidden)
    for name, p in model.named_parameters():
        if name in hidden:
            np.testing.assert_allclose(p.data, expected[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_the_rest_is_served_by_adamw_at_its_own_rate():
    one, other = with_gradient(tiny_model()), with_gradient(tiny_model())
    muon = Muon(one, lr=0.02, adamw_lr=4e-3, adamw_decay=0.1)
    muon.lr = 0.01  # half way down
    muon.step()
    AdamW(other, lr=2e-3, weight_decay=0.1).step()
    others = dict(other.named_parameters())
    for name, p in one.named_parameters():
        if not is_hidden_matrix(name, p.shape):
            assert (p.data == others[name].data).all(), name


def test_tape_from_before_a_step_is_refused():
    model = with_gradient(tiny_model())
    loss = model.loss(np.array([[1, 2]]), np.array([[2, 3]]))
    Muon(model).step()
    with pytest.raises(RuntimeError, match="written in place"):
        loss.backward()


def test_state_goes_on_where_it_stopped_and_belongs_to_its_model():
    one, other = with_gradient(tiny_model()), with_gradient(tiny_model())
    first, second = Muon(one), Muon(other)
    for _ in range(2):
        first.step()
    second.step()
    third = Muon(other)
    third.load_state_dict(second.state_dict())
    third.step()
    assert all((a.data == b.data).all() for a, b in zip(one.parameters(), other.parameters()))
    with pytest.raises(UserError, match="another model or optimizer"):
        third.load_state_dict(AdamW(other, lr=0.1).state_dict())
