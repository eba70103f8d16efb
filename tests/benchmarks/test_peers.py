"""Peers do the same work: the same loss, the same step, the same tokens, the same gradients of operations."""

import importlib
import json
from functools import partial

import numpy as np
import pytest

from benchmarks import policy
from benchmarks.operations.cases import NAMES, inputs
from benchmarks.operations.measure import LIBRARIES
from benchmarks.operations.with_ours import prepare
from benchmarks.worker import CONFIG
from layers import DeepSeekConfig, DeepSeekModel
from tests.benchmarks.test_benchmarks import TINY
from train import AdamW, clip_grad_norm

pytestmark = pytest.mark.oracle
SETTINGS = json.loads(CONFIG.read_text()) | TINY


@pytest.fixture(scope="module")
def jax_model():
    pytest.importorskip("jax")
    return importlib.import_module("benchmarks.peers.jax_model")


@pytest.fixture
def model():
    made = DeepSeekModel(DeepSeekConfig.from_dict(SETTINGS), seed=0)
    rng = np.random.default_rng(0)
    for leaf in made.parameters():  # large enough that everything matters
        leaf.data[...] += rng.normal(0, 0.3, leaf.shape)
    return made


def as_params(model) -> dict:
    """The model's arrays in the peer's order."""

    def ffn(part):
        return [part.gate_up_proj.weight.data, part.down_proj.weight.data]

    def layer(block):
        a, mlp = block.self_attn, block.mlp
        made = {
            "norm_1": block.input_layernorm.weight.data,
            "norm_2": block.post_attention_layernorm.weight.data,
            "q_a": a.q_a_proj.weight.data,
            "q_a_norm": a.q_a_layernorm.weight.data,
            "q_b": a.q_b_proj.weight.data,
            "kv_a": a.kv_a_proj_with_mqa.weight.data,
            "kv_a_norm": a.kv_a_layernorm.weight.data,
            "kv_b": a.kv_b_proj.weight.data,
            "o": a.o_proj.weight.data,
        }
        if not hasattr(mlp, "experts"):
            return made | {"mlp": ffn(mlp)}
        experts = {"gate_up": mlp.experts.gate_up_proj.data, "down": mlp.experts.down_proj.data}
        return made | {"router": mlp.gate.weight.data, **experts, "shared": ffn(mlp.shared_experts)}

    return {
        "embed": model.embed_tokens.weight.data,
        "layers": [layer(block) for block in model.layers],
        "norm": model.norm.weight.data,
        "head": model.lm_head.weight.data,
    }


def drawn_ids(batch, time):
    return np.random.default_rng(1).integers(0, SETTINGS["vocab_size"], (batch, time))


def test_jax_has_our_shapes_loss_and_step(jax_model, model):
    """Two steps of each: the losses, and the parameters in the end (AdamW moves by about lr each time)."""
    import jax

    from benchmarks.peers.jax_peer import LR, Jax

    optimizer = AdamW(model, lr=LR, betas=(0.9, 0.95), weight_decay=0.1)
    peer = Jax(SETTINGS)
    peer.build()
    copied = jax.tree.map(jax.numpy.array, as_params(model))
    assert jax.tree.map(np.shape, peer.params) == jax.tree.map(np.shape, copied)
    peer.params = copied
    ids = drawn_ids(3, 50)
    for count in (1.0, 2.0):
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        clip_grad_norm(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        theirs, peer.params, peer.first, peer.second = peer.step(
            peer.params, peer.first, peer.second, count, ids[:, :-1], ids[:, 1:]
        )
        assert float(theirs) == pytest.approx(loss.item(), rel=1e-5)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), peer.params, as_params(model))
    assert max(jax.tree.leaves(moved)) < 0.1 * LR


@pytest.mark.parametrize("batch", [1, 5])  # few choices of experts, and more than there are experts
def test_jax_decodes_our_tokens(jax_model, model, batch):
    """Greedy tokens behind a prompt, through its cache of latents and through our whole network."""
    import jax
    import jax.numpy as jnp

    ids, params, new = drawn_ids(batch, 6), as_params(model), 5
    kept = jax.jit(partial(jax_model.hidden, SETTINGS))(params, ids)[1]
    caches = [jnp.pad(made[:, :-1], ((0, 0), (0, new + 1), (0, 0))) for made in kept]
    token, step = ids[:, -1:], jax.jit(partial(jax_model.decode_step, SETTINGS))
    for length in range(5, 5 + new):
        token, caches = step(params, caches, token, jnp.int32(length))
        np.testing.assert_array_equal(token, model(ids).data[:, -1:].argmax(-1))
        ids = np.concatenate([ids, token], axis=1)


@pytest.mark.parametrize("library", LIBRARIES[1:])
@pytest.mark.parametrize("name", NAMES)
def test_libraries_agree_on_operations(library, name):
    """In float32, rows of 24: a few units in the last place, times the number of terms."""
    if library != "torch":
        pytest.importorskip(library)
    theirs = importlib.import_module(f"benchmarks.operations.with_{library}")
    case = inputs(name, 8, 24)
    for made, want in zip(theirs.prepare(name, *case)(), prepare(name, *case)(), strict=True):
        got = np.asarray(made.numpy() if hasattr(made, "numpy") else made)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-6)


def test_trl_reinforces_the_same_network_by_the_same_rules():
    pytest.importorskip("trl", reason="TRL is not installed")
    torch = importlib.import_module("torch")
    peer, ours = importlib.import_module("benchmarks.peers.trl_peer").Trl({}), policy.Policy({})
    assert peer.build() == ours.build()
    problems = peer.problems[:3]
    rows = [ours.tokenizer.encode(problem.prompt, special=True) for problem in problems]
    ids = np.array([row[:8] for row in rows])
    logits = peer.model(torch.tensor(ids)).logits.detach().numpy()
    np.testing.assert_allclose(logits, ours.model(ids).data, rtol=1e-4, atol=1e-4)
    assert [peer.tokenizer(problem.prompt)["input_ids"] for problem in problems] == rows
    said = [
        ours.tokenizer.encode(problem.chain, special=True) + [ours.tokenizer.end_id] for problem in problems
    ]
    assert peer.reward(said, [0, 1, 2]) == [pytest.approx(judge_of(problem)) for problem in problems]
    before = peer.model.lm_head.weight.detach().clone()
    answer = peer.grpo(steps=1)
    assert len(answer["each"]) == 1 and 14 < answer["length"] <= 16
    assert not torch.equal(before, peer.model.lm_head.weight)


def judge_of(problem):
    """Right, in shape, and the share of its words that are numbers or labels: all but four tags."""
    words = problem.chain.split()
    return 1.0 + 0.2 + (len(words) - 4) / len(words)
