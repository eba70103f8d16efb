"""Random networks of both families, the same in transformers and here: logits, loss and every gradient."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st

import tinygrad_ds as tg
from layers import DeepSeekConfig, load_pretrained, save_pretrained
from tests.golden.make import ROUTING_MARGIN
from tests.layers.cases import aligned, distance
from tests.oracle.networks import filled, networks
from tests.oracle.peers import their_model, their_pass

pytestmark = pytest.mark.oracle

EXAMPLES = 40  # of each family; one that fails is not made smaller, which would take minutes
TOLERANCE = 1e-9  # of a tensor's largest entry


@pytest.mark.parametrize("family", ["deepseek_v3", "deepseek_v2"])
def test_logits_and_gradients_of_random_networks(family):
    @settings(max_examples=EXAMPLES, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(networks(family), st.booleans(), st.integers(0, 2**32 - 1), st.data())
    def compare(described, respelt, seed, data):
        with tempfile.TemporaryDirectory() as folder:
            compare_one(Path(folder), described, respelt, seed, data)

    compare()


def compare_one(folder: Path, described: dict[str, Any], respelt: bool, seed: int, data) -> None:
    config = DeepSeekConfig.from_dict(described)
    save_pretrained(filled(config, seed), folder)
    theirs = their_model(folder)
    if respelt:  # rope_parameters and dtype, as transformers writes a config
        theirs.config.save_pretrained(folder)
        assert "rope_scaling" not in json.loads((folder / "config.json").read_text())
    ours = load_pretrained(folder, dtype="float64")
    assert ours.config.replace(torch_dtype=None, extra={}) == config

    random = np.random.default_rng(seed)
    ids = random.integers(0, config.vocab_size, (data.draw(st.integers(1, 3)), data.draw(st.integers(2, 12))))
    labels = np.where(random.random(ids.shape) < 0.2, -100, ids)
    labels[0, -1] = ids[0, -1]  # one at least counts
    logits, loss, grads, margin = their_pass(theirs, ids, labels)
    assume(margin >= ROUTING_MARGIN)

    form = data.draw(st.sampled_from(["expanded", "absorbed", None]))
    for block in ours.layers:
        block.self_attn.form = form
    for kernels in ("reference", "fused"):
        ours.zero_grad()
        with tg.using(kernels=kernels):
            assert distance(ours(ids).data, logits) < TOLERANCE
            total = ours.loss(ids, aligned(labels))
            total.backward()
        assert abs(float(total) - loss) < TOLERANCE * abs(loss)
        parameters = dict(ours.named_parameters())
        assert parameters.keys() == grads.keys()
        for name, gradient in grads.items():
            error = distance(parameters[name].grad, gradient)
            note(f"{kernels} {name} {error:.1e}")
            assert error < TOLERANCE, f"{name}, {kernels} kernels: {error:.1e}"
