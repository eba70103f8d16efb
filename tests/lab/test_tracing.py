"""A traced step: every call is there once, its gradients are those of the tape, its sums add up."""

import re

import numpy as np
import pytest

import lab
import tinygrad_ds as tg
from lab.graph import inside, rows_of, step_into
from lab.recording import Recorder
from lab.tracing import total
from layers import DeepSeekModel
from tests.train.tiny import CONFIG, tiny_rows
from train.errors import UserError


@pytest.fixture(scope="module")
def recorded():
    model = DeepSeekModel(CONFIG, seed=0, dtype="float64")
    with tg.using(kernels="reference"), tg.observe(Recorder(model)) as recorder:
        model.loss(*tiny_rows(2), mtp_weight=0.3, balance_weight=0.1).backward()
    recorder.connect()
    return model, recorder.calls


def test_what_leaves_a_call_for_a_parameter_is_the_parameters_gradient(recorded):
    model, calls = recorded
    leaves = dict(model.named_leaves())
    used = {name: [call for call in calls if name in call.parameters] for name in leaves}
    assert all(used.values())
    for name, users in used.items():
        if len(users) == 1:
            norm = np.linalg.norm(leaves[name].grad)
            assert any(
                each == pytest.approx(norm, rel=1e-12) for each in users[0].leaving if each is not None
            )


def test_what_leaves_one_call_arrives_at_the_call_before(recorded):
    """Where a result was used once, both norms are of the same array."""
    _, calls = recorded
    users = {call.number: [other for other in calls if call.number in other.sources] for call in calls}
    compared = 0
    for call in calls:
        (user,) = users[call.number] if len(users[call.number]) == 1 else (None,)
        if user is not None and user.sources.count(call.number) == 1 and len(call.outputs) == 1:
            leaving = [each for each in user.leaving if each is not None]
            assert any(each == pytest.approx(call.arriving, rel=1e-12) for each in leaving)
            compared += 1
    assert compared > 50


def test_calls_know_their_module_and_line(recorded):
    _, calls = recorded
    attention = [call for call in calls if call.name == "attention"]
    assert [call.module for call in attention] == [
        "layers.0.self_attn",
        "layers.1.self_attn",
        "mtp.0.block.self_attn",
    ]
    assert all(re.fullmatch(r"layers/attention\.py:\d+", call.site) for call in attention)
    assert all(not call.fused for call in calls)


def test_totals_add_up():
    step = lab.trace()
    whole = total(step.calls)
    for key in (lambda call: call.family, lambda call: call.module):
        parts = step.totals(key).values()
        assert sum(part.calls for part in parts) == whole.calls
        assert sum(part.saved_bytes for part in parts) == whole.saved_bytes
        assert sum(part.forward for part in parts) == pytest.approx(whole.forward)
    squares = sum(each.norm**2 for each in step.gradients)
    assert step.clipped_from == pytest.approx(squares**0.5, rel=1e-5)


def test_a_trace_is_shown_as_text_and_as_a_graph():
    step = lab.trace()
    text, page = repr(step), step._repr_html_()
    assert "layers.0.self_attn" in text and "every family" in text and "kv_b_proj.weight" in text
    assert page.count("<svg") == page.count("<details id=") + 1
    assert 'id="module-layers-1-mlp-experts"' in page


def test_boxes_stand_below_what_they_use(recorded):
    _, calls = recorded
    items = inside("layers.1", [call for call in calls if call.module.startswith("layers.1")])
    rows, lines = rows_of(items)
    assert [item.key for item in items if item.module] == [
        "input_layernorm",
        "self_attn",
        "post_attention_layernorm",
        "mlp",
    ]
    assert lines and all(rows[source] < rows[target] for source, target in lines)


@pytest.mark.parametrize(
    ("path", "module", "part"),
    [
        ("", "layers.0.mlp.experts", "layers.0"),
        ("layers.0", "layers.0.mlp", "mlp"),
        ("layers.0", "layers.0", ""),
        ("", "", ""),
    ],
)
def test_modules_are_opened_one_level_at_a_time(path, module, part):
    assert step_into(path, module) == part


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder of a run"):
        lab.trace(tmp_path)
