import numpy as np
import pytest

import tinygrad_ds as tg
from tests.train.test_evaluate import some_tokens
from tests.train.tiny import CONFIG, tiny_model
from train.errors import UserError
from train.positions import (
    html_table,
    nats_by_position,
    perplexity_by_part,
    positions_figure,
    text_table,
)


@pytest.mark.parametrize(("stride", "batch"), [(2, 3), (4, 1), (8, 100)])
def test_positions_equal_a_loop_over_prefixes(stride, batch):
    """One prefix at a time, its last probability written out; the text goes on at its beginning."""
    model, tokens, time = tiny_model(), some_tokens(), 8
    stream, circle = tokens.stream(), len(tokens) // stride * stride
    expected = np.zeros(time)
    starts = range(0, circle, stride)
    with tg.no_grad():
        for start in starts:
            places = np.arange(start, start + time) % circle
            for position in range(time):
                logits = model(stream[None, places[: position + 1]]).data[0, -1]
                target = stream[places[position] + 1]
                expected[position] += np.log(np.exp(logits).sum()) - logits[target]
    found = nats_by_position(model, tokens, time=time, stride=stride, batch=batch)
    np.testing.assert_allclose(found, expected / len(starts), rtol=1e-10)


def test_every_part_of_a_row_holds_the_same_tokens():
    """For a network without attention a token costs the same wherever it stands, so all parts are equal."""
    model, tokens = tiny_model(), some_tokens(8)
    for block in model.layers:
        block.self_attn.o_proj.weight.data[...] = 0
    nats = nats_by_position(model, tokens, time=16, stride=4, batch=5)
    parts = perplexity_by_part(nats, 4)
    np.testing.assert_allclose(parts, parts[0], rtol=1e-10)
    assert np.ptp(nats) > 1e-3 and len(parts) == 4


def test_network_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large():
    model = tiny_model()
    for leaf in model.parameters():
        leaf.data[...] = 0
    nats = nats_by_position(model, some_tokens(), time=8, stride=2, batch=4)
    np.testing.assert_allclose(perplexity_by_part(nats, 2), CONFIG.vocab_size, rtol=1e-12)


def test_text_shorter_than_a_row_is_refused():
    with pytest.raises(UserError, match="a row has 4,096: take a smaller factor"):
        nats_by_position(tiny_model(), some_tokens(), time=4096, stride=4, batch=1)


def test_tables_and_figure_hold_every_number():
    curves = {"before": [9.5, 1234.25], "with <YaRN>": [8.125, 7.0]}
    lines = text_table(curves, 32).splitlines()
    assert lines[1].split() == ["1-32", "9.50", "8.12"] and lines[2].split() == ["33-64", "1234.25", "7.00"]
    table = html_table(curves, 32)
    assert all(f"<td>{text}</td>" in table for text in ("1-32", "33-64", "9.50", "1234.25", "8.12", "7.00"))
    assert "<th>with &lt;YaRN&gt;</th>" in table
    figure = positions_figure(curves, 32, trained=32)
    assert figure.startswith("<svg") and "with &lt;YaRN&gt;" in figure and "length trained before" in figure
