import math

import numpy as np
import pytest

from tests.train.tiny import tiny_model, with_gradient
from train.observe import GradientNorms, Samples, TimeLimit, squares_by_layer
from train.optimizer import clip_grad_norm
from train.tokenizer import Tokenizer
from train.trainer import State

TEXT = "".join(f"The try statement number {i} of a small text.\n" for i in range(40))


def test_layers_squares_add_up_to_the_whole_gradient():
    model = with_gradient(tiny_model())
    by_layer = squares_by_layer(model)
    assert set(by_layer) == {"embed_tokens", "layers.0", "layers.1", "norm", "lm_head", "mtp.0"}
    assert math.sqrt(sum(by_layer.values())) == pytest.approx(clip_grad_norm(model, 1e9), rel=1e-12)


@pytest.mark.parametrize("clip", [1e-3, 1e9])
def test_norms_are_those_before_clipping(clip):
    model = with_gradient(tiny_model())
    expected = {name: math.sqrt(total) for name, total in squares_by_layer(model).items()}
    record = {"grad_norm": clip_grad_norm(model, clip)}
    GradientNorms(model, clip=clip)(State(total=1, step=1), record)
    assert record["grad_norms"] == pytest.approx(expected, rel=1e-9)


def test_samples_come_when_their_shares_are_reached():
    tokenizer = Tokenizer.train([TEXT], 280)
    model = tiny_model()
    model.config = model.config.replace(vocab_size=tokenizer.vocab_size)
    model.embed_tokens.weight.data = np.zeros((tokenizer.vocab_size, 16))
    model.lm_head.weight.data = np.zeros((tokenizer.vocab_size, 16))
    samples = Samples(model, tokenizer, "The try", shares=(0.2, 0.5, 1.0), length=4)
    taken = []
    for step in range(1, 11):
        record = {}
        samples(State(total=9.5, step=step, done=float(step)), record)
        if "sample" in record:
            taken.append(step)
            assert record["sample"].startswith("The try")
    assert taken == [2, 5, 10]


def drive(limit, speed, before=0.0):
    """A run whose steps of 10 take 10 / speed(seconds) seconds, but for the first three, which compile."""
    state, record, hook = State(total=1000.0, seconds=before - 180), {}, TimeLimit(limit, before)
    while state.done < state.total:
        state.step += 1
        state.done += 10
        state.seconds += 60 if state.step <= 3 else 10 / speed(state.seconds)
        hook(state, record)
    return state, record


def test_fast_machine_changes_nothing():
    state, record = drive(limit=1000, speed=lambda seconds: 1.0)
    assert state.total == record["total"] == 1000


def test_pause_shortens_no_more_than_it_took():
    """Slow for a while, then fast again: the run comes back to what can be done."""
    state, _ = drive(limit=1000, speed=lambda seconds: 0.1 if 300 < seconds < 500 else 1.0)
    assert 950 < state.seconds < 1010 and 780 < state.done <= 850


@pytest.mark.parametrize("before", [0.0, 300.0])
@pytest.mark.parametrize("speed", [lambda seconds: 0.5, lambda seconds: 1.0 if seconds < 400 else 0.4])
def test_slow_machine_ends_in_time_with_less_done(speed, before):
    state, record = drive(limit=1000, speed=speed, before=before)
    assert 950 < state.seconds < 1060 and state.done < 700 and record["total"] == state.total
