"""Random networks with MTP modules: hidden states, logits, losses and gradients of all depths together."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import transformers
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from transformers.modeling_layers import MtpModel

from layers import DeepSeekConfig, load_pretrained, save_pretrained
from tests.golden.make import MTP_WEIGHT, ROUTING_MARGIN, Float64, Recorder, mtp_goldens
from tests.layers.cases import aligned, distance
from tests.oracle.networks import filled, networks
from tests.oracle.peers import their_model, to_torch

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-9


def test_multi_token_prediction_of_random_networks(monkeypatch):
    @settings(max_examples=10, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(networks("deepseek_v3"), st.integers(1, 2), st.integers(0, 2**32 - 1))
    def compare(described, depths, seed):
        with tempfile.TemporaryDirectory() as folder:
            compare_one(monkeypatch, Path(folder), described | {"num_nextn_predict_layers": depths}, seed)

    compare()


def compare_one(monkeypatch, folder, described, seed):
    config = DeepSeekConfig.from_dict(described)
    save_pretrained(filled(config, seed), folder)
    beyond = range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers)
    monkeypatch.setattr(  # transformers knows these layers for 61 layers before them only
        transformers.DeepseekV3PreTrainedModel,
        "_keys_to_ignore_on_load_unexpected",
        [rf"model\.layers\.{layer}\..*" for layer in beyond],
    )
    theirs = their_model(folder)
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, (2, 8))
    labels = ids.copy()
    labels[0, :3] = -100
    expected, recorder = {}, Recorder(theirs)
    with Float64():
        modules = MtpModel.from_pretrained(theirs)
        for module in modules.layers:
            gate = module.mtp_block.mlp.gate
            gate.register_forward_hook(lambda gate, _, out: recorder.route(gate, "mtp", out))
        base = theirs(to_torch(ids), labels=to_torch(labels), output_hidden_states=True, use_cache=False)
        mtp_goldens(theirs, modules, to_torch(ids), to_torch(labels), base, expected, True)
    assume(recorder.margin >= ROUTING_MARGIN)
    expected = {name.removeprefix("mtp."): x.detach().numpy() for name, x in expected.items()}

    ours = load_pretrained(folder, dtype="float64")
    h = ours.hidden(ids)
    for k in range(len(ours.mtp)):
        h, _ = ours.mtp_hidden(k + 1, ids[:, k + 1 :], h[:, :-1])
        assert distance(h.data, expected[f"{k}.hidden"]) < TOLERANCE
        assert distance(ours.head(h).data, expected[f"{k}.logits"]) < TOLERANCE
    losses = ours.losses(ids, aligned(labels), mtp_weight=MTP_WEIGHT)
    assert float(losses.total) == pytest.approx(float(expected["total_loss"]), rel=TOLERANCE)
    losses.total.backward()
    for name, parameter in ours.named_parameters():
        assert distance(parameter.grad, expected[f"grad.{name}"]) < TOLERANCE, name
