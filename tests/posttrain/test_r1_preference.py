"""The preference for real text, the mixture of tasks, and chains in two notations."""

import math

import numpy as np
import pytest

import tinygrad_ds as tg
from posttrain.completion import Completion
from posttrain.ledger import Ledger
from posttrain.models import Speaker
from posttrain.notation import LANGUAGE_OF, VALUES
from posttrain.r1.base import mixed, translated
from posttrain.r1.preference import (
    LENGTH,
    PREFIX,
    Pairs,
    Preference,
    accuracy,
    continuation,
    make_pairs,
    scores,
)
from posttrain.r1.taste import Apart, Continuations, Mixed, Taste, is_text
from posttrain.rewards import ACCURACY, judge
from posttrain.tasks import Question, draw_many
from tests.posttrain.small import network, vocabulary
from train.batches import TrainingBatches, tokenize
from train.trainer import State

END = vocabulary().end_id


def some_pairs(count=6, seed=0):
    rng = np.random.default_rng(seed)
    return Pairs(*rng.integers(1, 250, (2, count, PREFIX + LENGTH)))


def text_batches():
    words = " ".join(np.random.default_rng(1).choice("one two three four five".split(), 4000))
    return TrainingBatches(tokenize([words], vocabulary()), time=80, seed=0)


def test_loss_is_minus_the_log_of_the_sigmoid_of_the_difference():
    model, pairs = network(max_position_embeddings=80), some_pairs()
    value, named = Preference(pairs, END).loss(model, pairs, 6.0)
    real, sampled = (scores(model, ids, continuation(6), END).data for ids in pairs)
    wanted = np.mean(np.log1p(np.exp(sampled - real)))
    assert float(value) == pytest.approx(wanted, rel=1e-10)
    assert named["preferred"] == pytest.approx(np.mean(real > sampled))
    assert accuracy(model, pairs, END).value == named["preferred"]


def test_gradient_of_the_loss():
    """By differences along a random direction, through the trunk and the row that scores."""
    model, pairs = network(max_position_embeddings=80), some_pairs(3)
    subject = Preference(pairs, END)
    subject.loss(model, pairs, 3.0)[0].backward()
    rng = np.random.default_rng(2)
    for name in ("model.norm.weight", "lm_head.weight", "model.layers.0.self_attn.o_proj.weight"):
        p = dict(model.named_parameters())[name]
        way, kept, step = rng.normal(size=p.shape), p.data.copy(), 1e-6
        losses = []
        for sign in (1, -1):
            p.data[...] = kept + sign * step * way
            with tg.no_grad():
                losses.append(float(subject.loss(model, pairs, 3.0)[0]))
        p.data[...] = kept
        numeric = (losses[0] - losses[1]) / (2 * step)
        assert float((p.grad * way).sum()) == pytest.approx(numeric, rel=1e-5, abs=1e-9)


def test_equal_continuations_are_worth_ln_2_and_swapped_ones_the_rest():
    model, pairs = network(max_position_embeddings=80), some_pairs()
    same = Pairs(pairs.real, pairs.real)
    assert float(Preference(same, END).loss(model, same, 6.0)[0]) == pytest.approx(math.log(2), rel=1e-12)
    right, wrong = (accuracy(model, p, END).value for p in (pairs, Pairs(pairs.sampled, pairs.real)))
    assert right + wrong == pytest.approx(1)


def test_every_pair_comes_once_in_an_epoch():
    subject = Preference(some_pairs(130), END)
    seen = [subject.next_work(State(total=9.0, step=step)).parts[0].real for step in range(2)]
    rows = {row.tobytes() for part in seen for row in part}
    assert len(rows) == 128 and rows <= {row.tobytes() for row in subject.pairs.real}


def test_pairs_share_their_prefix_and_the_real_one_is_text():
    batches = text_batches()
    model = network(max_position_embeddings=80)
    pairs = make_pairs(Speaker(model, vocabulary()), batches, 8, (0, 1))
    assert len(pairs.real) and pairs.real.shape == pairs.sampled.shape
    np.testing.assert_array_equal(pairs.real[:, :PREFIX], pairs.sampled[:, :PREFIX])
    stream = " ".join(map(str, batches.tokens.stream()))
    assert all(" ".join(map(str, row)) in stream for row in pairs.real)
    again = make_pairs(Speaker(model, vocabulary()), batches, 8, (0, 1))
    np.testing.assert_array_equal(again.sampled, pairs.sampled)


def text_and_sums():
    prefix = Question(" one two three", answer="", same=lambda given, wanted: False, plain=True)
    return [prefix, *draw_many(Ledger(), 3, 0), prefix]


def test_taste_is_the_sigmoid_of_the_score_for_text_and_0_for_the_rest():
    model, tokenizer, problems = network(), vocabulary(), text_and_sums()
    said = [Completion(text, True, 4) for text in (" four five", *[q.chain for q in problems[1:4]], " two")]
    found = judge((ACCURACY, Taste(Speaker(model, tokenizer)).reward()), problems, said)
    taste = found.parts["preference"]
    np.testing.assert_array_equal(taste[1:4], 0)
    np.testing.assert_array_equal(found.parts["accuracy"], [0, 1, 1, 1, 0])
    np.testing.assert_allclose(found.deciding, found.parts["accuracy"] + taste)
    for i in (0, 4):
        prompt, answer = tokenizer.encode(problems[i].prompt), tokenizer.encode(said[i].text)
        h = model.trunk(np.array([prompt + answer]))[0].data[0, len(prompt) :].mean(axis=0)
        score = h @ dict(model.named_parameters())["lm_head.weight"].data[END]
        assert taste[i] == pytest.approx(1 / (1 + math.exp(-score)), rel=1e-9)  # and padding changes nothing


def test_taste_of_a_batch_without_text_is_nothing():
    problems = draw_many(Ledger(), 2, 0)
    said = [Completion("", True, 0)] * 2
    np.testing.assert_array_equal(Taste(Speaker(network(), vocabulary())).judge(problems, said), [0, 0])


def test_tasks_are_mixed_by_their_share():
    task = Mixed(Ledger(), Continuations(text_batches(), vocabulary()), 0.25)
    rng = np.random.default_rng(0)
    drawn = [task.sample(rng) for _ in range(400)]
    text = [problem for problem in drawn if is_text(problem)]
    assert 70 <= len(text) <= 130
    assert not any(problem.check("") or problem.check("one") for problem in text)


def test_the_two_kinds_are_told_apart():
    problems = text_and_sums()
    said = [Completion(" four", True, 1) for _ in problems]
    rewards = judge((ACCURACY, Taste(Speaker(network(), vocabulary())).reward()), problems, said)
    apart, record = Apart(), {}
    sampled = type("Sampled", (), {"problems": problems, "rewards": rewards})()
    apart.inspect(State(total=1.0), sampled)
    apart(State(total=1.0), record)
    assert record == {"taste": pytest.approx(rewards.parts["preference"][[0, 4]].mean()), "solved": 0.0}


@pytest.mark.parametrize("language", ["latin", "greek"])
def test_mixed_chains_keep_every_value_and_use_both_notations(language):
    rng = np.random.default_rng(0)
    used: set[str] = set()
    for question in draw_many(Ledger(languages=(language,)), 20, 0):
        found = mixed(question.chain, rng).split(" ")
        for ours, theirs in zip(found, question.chain.split(" "), strict=True):
            assert ours in (theirs, translated(theirs) if theirs in LANGUAGE_OF else theirs)
            assert VALUES.get(ours) == VALUES.get(theirs)
        used |= {LANGUAGE_OF[word] for word in found if word in LANGUAGE_OF}
    assert used == {"latin", "greek"}


def test_translation_goes_there_and_back():
    assert all(translated(translated(word)) == word for word in LANGUAGE_OF)
