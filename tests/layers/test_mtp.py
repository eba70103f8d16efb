import numpy as np
import pytest

import tinygrad_ds as tg
from layers.context import make_context
from tests.layers.cases import model_of, some_ids

DEPTHS = {"num_nextn_predict_layers": 3}


def test_modules_stand_behind_the_last_layer_and_always_have_experts():
    model = model_of(**DEPTHS, first_k_dense_replace=2)
    names = {name for name, _ in model.named_parameters()}
    for layer in (2, 3, 4):
        for part in ("enorm", "hnorm", "eh_proj", "shared_head.norm", "input_layernorm", "mlp.gate"):
            assert f"model.layers.{layer}.{part}.weight" in names
    assert "model.layers.1.mlp.gate.weight" not in names
    assert not any(
        "embed_tokens" in name or "shared_head.head" in name for name in names - {"model.embed_tokens.weight"}
    )


def test_losses_of_all_depths_written_out():
    """Depth k reads h of i and token i + k, sits at position i + k, and predicts token i + k + 1."""
    model, ids = model_of(**DEPTHS), some_ids(2, 9)
    targets = some_ids(2, 9, seed=1)
    targets[1, 4] = -100
    h, losses = model.hidden(ids), []
    for k, module in enumerate(model.mtp, start=1):
        entries = 9 - k
        embedded = model.embed_tokens(ids[:, k:])
        context = make_context(model.rotary, 2, entries, offset=k)
        x = tg.concatenate([module.enorm(embedded), module.hnorm(h[:, :entries])], axis=-1)
        x, _ = module.block(module.eh_proj(x), context)
        h = module.shared_head_norm(x)
        losses.append(float(tg.cross_entropy(model.head(h), targets[:, k:])))
    total = float(model.loss(ids, targets)) + 0.3 * np.mean(losses)
    assert float(model.loss(ids, targets, mtp_weight=0.3)) == pytest.approx(total, rel=1e-13)


def test_a_module_sees_its_own_tokens_and_none_that_come_later():
    """Entry i of depth k knows tokens 0 to i + k and nothing after: what it predicts is not given away."""
    model, ids = model_of(**DEPTHS), some_ids(1, 9)

    def states(ids):
        h, all_depths = model.hidden(ids), []
        for k in range(1, 4):
            h, _ = model.mtp_hidden(k, ids[:, k:], h[:, :-1])
            all_depths.append(h.data)
        return all_depths

    for changed in range(9):
        other = ids.copy()
        other[0, changed] = (other[0, changed] + 1) % 13
        for k, (before, after) in enumerate(zip(states(ids), states(other)), start=1):
            moved = np.abs(before - after)[0].max(axis=-1) > 1e-12
            assert not moved[: max(changed - k, 0)].any()
            assert moved[max(changed - k, 0) : changed + 1].all()


def test_shifting_all_positions_changes_nothing():
    model, ids = model_of(**DEPTHS), some_ids(2, 6)
    h = model.hidden(ids)[:, :5]
    module, embedded = model.mtp[0], model.embed_tokens(ids[:, 1:])
    near, far = (module(h, embedded, make_context(model.rotary, 2, 5, offset=o))[0].data for o in (1, 40))
    np.testing.assert_allclose(near, far, rtol=1e-10, atol=1e-11)


def test_embedding_and_head_get_gradients_from_every_depth():
    model, ids = model_of(**DEPTHS), some_ids(2, 6)
    grads = []
    for mtp_weight in (0.0, 0.5, 1.0):
        model.zero_grad()
        model.loss(ids, ids, mtp_weight=mtp_weight).backward()
        grads.append([model.embed_tokens.weight.grad, model.lm_head.weight.grad])
    for none, half, full in zip(*grads):
        np.testing.assert_allclose(half - none, (full - none) / 2, rtol=1e-9, atol=1e-13)
        assert np.abs(full - none).max() > 1e-4


def test_sequences_too_short_for_a_depth_leave_it_out():
    model, ids = model_of(**DEPTHS), some_ids(2, 2)
    losses = model.losses(ids, ids, mtp_weight=1.0)
    assert np.isfinite(float(losses.total))
    losses.total.backward()


def test_cached_pieces_equal_the_whole():
    model, ids = model_of(**DEPTHS), some_ids(3, 10)
    h, first = model.hidden(ids), np.array([0, 3, 1])
    h = model.hidden(ids, first=first)
    for k, cache in enumerate(model.new_mtp_caches(3), start=1):
        whole, _ = model.mtp_hidden(k, ids[:, 1:], h[:, :9], first=first)
        pieces = [
            model.mtp_hidden(k, ids[:, a + 1 : b + 1], h[:, a:b], cache=cache, first=first)[0].data
            for a, b in ((0, 4), (4, 5), (5, 9))
        ]
        np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole.data, rtol=1e-11, atol=1e-12)
        assert cache.length == 9
