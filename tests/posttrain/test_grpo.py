"""Reinforcement: groups stay together, silence is left out, old log-probabilities are kept, runs resume."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

import tinygrad_ds as tg
from posttrain.grpo import Objective, Reinforcement
from posttrain.learning import Learning
from posttrain.models import Speaker, copy_of
from posttrain.rewards import ACCURACY, FORMAT, Reward
from posttrain.scoring import log_probs
from posttrain.stage import Start, restored, run_stage
from tests.posttrain.small import HASH, Letters, network, vocabulary
from train.errors import UserError
from train.trainer import State, TrainingStopped, accumulate, train

SMALL = Objective(prompts=3, group=4, max_new_tokens=6)


def subject_of(model, objective=SMALL, rewards: Sequence[Reward] = (HASH,), **options):
    return Reinforcement(model, vocabulary(), Letters(), rewards, objective, **options)


def gradients(objective, **options):
    """Numbers and gradient of the first step."""
    model = network()
    subject = subject_of(model, objective, **options)
    state = State(total=4.0)
    numbers = accumulate(model, subject.next_work(state), subject.loss, state)
    return numbers, {path: leaf.grad for path, leaf in model.named_leaves()}, subject


@pytest.mark.parametrize("aggregate", ["grpo", "bnpo", "dr_grpo"])
def test_micro_batches_of_any_size_are_the_batch(aggregate):
    """Token counts differ between them, and there is one denominator."""
    objective = replace(SMALL, aggregate=aggregate, beta=0.1)
    whole = gradients(objective, reference=network(seed=1))
    for size in (1, 5):
        parts = gradients(replace(objective, micro_batch=size), reference=network(seed=1))
        assert parts[0] == pytest.approx(whole[0], rel=1e-9)
        for path, grad in whole[1].items():
            scale = abs(grad).max() + 1e-12
            np.testing.assert_allclose(parts[1][path], grad, rtol=1e-7, atol=1e-9 * scale, err_msg=path)


def test_the_first_gradient_is_reinforce():
    """-A d(ln p) over completion tokens, by the slow way: each completion alone through the network."""
    _, found, subject = gradients(SMALL)
    sampled, model = subject.sampled, network()
    grouped = sampled.rewards.total.reshape(3, 4)
    assert sampled.signal.all()
    a = (grouped - grouped.mean(1, keepdims=True)) / (grouped.std(1, ddof=1, keepdims=True) + 1e-4)
    for sample, advantage in zip(sampled.samples, a.ravel()):
        ids = np.concatenate([sample.prompt, sample.tokens])
        logits = model(ids[None, :-1])[0, len(sample.prompt) - 1 :]
        logp = tg.take_along_axis(tg.log_softmax(logits), sample.tokens[:, None], axis=-1)
        (logp.sum() * (-advantage / (12 * len(sample.tokens)))).backward()
    for path, leaf in model.named_leaves():
        np.testing.assert_allclose(found[path], leaf.grad, rtol=1e-6, atol=1e-10, err_msg=path)


def test_groups_are_of_one_prompt_and_in_order():
    _, _, subject = gradients(SMALL)
    sampled = subject.sampled
    for group in range(3):
        own = slice(4 * group, 4 * group + 4)
        assert len({problem.prompt for problem in sampled.problems[own]}) == 1
        ids = vocabulary().encode(sampled.problems[4 * group].prompt, special=True)
        assert all(sample.prompt.tolist() == ids for sample in sampled.samples[own])
    rewards = [HASH.judge(p, c) for p, c in zip(sampled.problems, sampled.completions)]
    assert sampled.rewards.total.tolist() == rewards
    assert len({problem.prompt for problem in sampled.problems}) == 3


def some_groups(silent):
    """A reward that is the same within the groups of these lengths of prompt."""

    def judge(problem, completion):
        return 1.0 if problem.level in silent else HASH.judge(problem, completion)

    return Reward("some", judge, decides=True)


def test_groups_without_signal_are_left_out():
    """What is learnt from, and what is divided by, are the other groups alone."""
    _, _, all_of_them = gradients(SMALL)
    levels = [problem.level for problem in all_of_them.sampled.problems[::4]]
    silent = {levels[0]}
    _, found, subject = gradients(SMALL, rewards=(some_groups(silent),))
    heard = [level not in silent for level in levels]
    assert subject.sampled.signal.tolist() == heard and any(heard) and not all(heard)
    work = subject.next_work(State(total=1.0))
    assert work.count["objective"] == 4 * sum(heard) == sum(len(part.advantages) for part in work.parts)
    everything = {path: leaf.copy() for path, leaf in found.items()}
    assert all(np.isfinite(grad).all() for grad in everything.values())


def test_form_alone_is_no_signal():
    """All answers wrong, shapes different: nothing to learn, though the rewards differ."""
    form = Reward("form", HASH.judge, weight=0.2)
    numbers, grads, subject = gradients(SMALL, rewards=(ACCURACY, form))
    assert subject.sampled.rewards.total.std() > 0 and not subject.sampled.signal.any()
    assert numbers["loss"] == 0 and all(grad is None for grad in grads.values())
    assert FORMAT.decides is False and ACCURACY.decides is True


def run(model, steps, objective=SMALL, **options):
    learning, records = Learning(lr=0.01), []
    subject = subject_of(model, objective, **options)
    train(
        model,
        learning.make(model),
        subject.next_work,
        subject.loss,
        State(total=float(steps)),
        learning_rate=learning.rate,
        after=[subject.after, lambda state, record: records.append(dict(record))],
    )
    return records, subject


def test_old_log_probabilities_are_kept_over_the_updates():
    """The first of three updates has ratio 1, the others have moved away from the policy that sampled."""
    model, old = network(), []
    objective = replace(SMALL, updates=3)
    records, subject = run(
        model,
        6,
        objective,
        inspect=lambda state, sampled: old.append((state.step, sampled.parts[0].old.copy())),
    )
    assert [step for step, _ in old] == [0, 3]
    ratios = [record["ratio"] for record in records]
    assert ratios[0] == pytest.approx(1, abs=1e-9) and ratios[3] == pytest.approx(1, abs=1e-9)
    assert all(abs(ratios[i] - 1) > 1e-6 for i in (1, 2, 4, 5))
    assert records[0]["clip_low"] == 0 == records[0]["clip_high"]
    assert np.array_equal(subject.sampled.parts[0].old, old[1][1])


def test_the_reference_stays_until_it_is_renewed():
    model = network()
    reference = copy_of(model)
    first = [leaf.data.copy() for leaf in reference.parameters()]
    objective = replace(SMALL, beta=0.1)
    records, _ = run(model, 2, objective, reference=reference)
    assert records[0]["k3"] == pytest.approx(0, abs=1e-12) and records[1]["k3"] > 0
    assert all(np.array_equal(a, leaf.data) for a, leaf in zip(first, reference.parameters()))
    run(model, 2, replace(objective, refresh_every=2), reference=reference)
    for ours, theirs in zip(model.parameters(), reference.parameters()):
        assert np.array_equal(ours.data, theirs.data) and not np.shares_memory(ours.data, theirs.data)


def test_records_tell_what_was_sampled():
    records, subject = run(network(), 1)
    record, lengths = records[0], [len(sample.tokens) for sample in subject.sampled.samples]
    assert record["rewards"] == {"hash": record["reward"]} and record["reward"] > 0
    assert record["length"] == np.mean(lengths) and 0 < record["entropy"] < np.log(420)
    assert record["signal"] == 1 and record["think_rate"] == 0 and record["timeouts"] == 0
    assert record["agreement"]["share"] == 1


def test_sampling_with_other_weights_than_those_that_learn_is_noticed():
    model = network()
    subject = subject_of(model)
    true = subject.scored
    subject.scored = lambda network, packed: true(network, packed) * 1.001
    with pytest.raises(TrainingStopped, match="differ before the first update"):
        subject.next_work(State(total=1.0))


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_replayed_experts_are_those_of_sampling(ratio):
    objective = replace(SMALL, routing_replay=True, ratio=ratio, updates=2)
    model = network()
    records, subject = run(model, 2, objective)
    (part,) = subject.sampled.parts
    ((name, chosen),) = part.experts.items()
    assert chosen.shape == (*part.packed.ids.shape, 2) and model.moe_layers()[name].replay is None
    assert records[0]["ratio"] == pytest.approx(1, abs=1e-9)


def test_what_is_rewarded_becomes_likelier():
    model = network(dtype="float32")
    few = Reward("few", lambda problem, completion: -float(completion.length), decides=True)
    objective = Objective(prompts=8, group=8, max_new_tokens=8)
    records, _ = run(model, 25, objective, rewards=(few,))
    lengths = [record["length"] for record in records]
    assert np.mean(lengths[-3:]) < np.mean(lengths[:3]) - 2


def test_silence_is_told_with_what_may_help():
    said: list[str] = []
    nothing = Reward("nothing", lambda problem, completion: 0.0, decides=True)
    run(network(), 4, replace(SMALL, patience=2), rewards=(nothing,), say=said.append)
    assert len(said) == 2 and "no group has had a signal for 2 batches (mean reward 0.00)" in said[0]
    assert "easier prompts" in said[0]
    said.clear()
    everything = Reward("all", lambda problem, completion: 1.0, decides=True)
    run(network(), 2, replace(SMALL, patience=2), rewards=(everything,), say=said.append)
    assert "harder prompts" in said[0]


@pytest.mark.parametrize("updates", [1, 2])
def test_a_resumed_run_is_the_same_run_to_the_bit(tmp_path, updates):
    """Optimizer, reference and all random numbers come back: 6 steps, or 2, and 4 more."""
    objective = replace(SMALL, beta=0.1, refresh_every=4, updates=updates)
    learning, losses = Learning(lr=0.01), {"whole": [], "parts": []}

    def go(folder, start, name):
        model = start.speaker.model
        subject = subject_of(model, objective, reference=start.reference)
        run_stage(
            folder,
            start,
            subject,
            after=[subject.after],
            display=lambda state, record: losses[name].append(record["loss"]),
            multiple=updates,
        )
        return model

    def fresh(steps):
        model = network(dtype="float32")
        return Start.of(Speaker(model, vocabulary()), learning, steps, copy_of(model))

    whole = go(tmp_path / "whole", fresh(6), "whole")
    go(tmp_path / "parts", fresh(2), "parts")
    parts = go(tmp_path / "parts", restored(tmp_path / "parts", learning, 6), "parts")
    assert losses["parts"] == losses["whole"]
    for a, b in zip(whole.parameters(), parts.parameters()):
        assert a.data.tobytes() == b.data.tobytes()
    with pytest.raises(UserError, match="has done its 6 steps"):
        restored(tmp_path / "parts", learning, 6)


def test_a_broken_reward_stops_with_a_checkpoint(tmp_path):
    model, calls = network(dtype="float32"), []

    def breaks(problem, completion):
        calls.append(completion)
        return float("nan") if len(calls) > 2 * 12 + 5 else HASH.judge(problem, completion)

    subject = subject_of(model, rewards=(Reward("mine", breaks, decides=True),))
    learning = Learning(lr=0.01)
    start = Start.of(Speaker(model, vocabulary()), learning, 5)
    with pytest.raises(
        TrainingStopped, match="step 3: the reward 'mine' is nan for sample 5, .*step-00000002"
    ):
        run_stage(tmp_path, start, subject)
    again = restored(tmp_path, learning, 5)
    assert again.state.step == 2
    for a, b in zip(again.speaker.model.parameters(), model.parameters()):
        assert np.array_equal(a.data, b.data)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Objective(group=1), "group is 1 but a completion is compared with others"),
        (lambda: Objective(temperature=0.0), "temperature is 0.0 but must be above 0"),
        (lambda: Objective(prompts=0), "prompts is 0"),
        (lambda: Objective(beta=-1.0), "must be at least 0"),
        (lambda: subject_of(network(), replace(SMALL, beta=0.1)), "there is no reference to pull to"),
        (
            lambda: subject_of(network(), replace(SMALL, updates=2)).next_work(State(total=4.0, step=1)),
            "step 1 stands between two batches of 2 updates",
        ),
        (
            lambda: subject_of(network(), replace(SMALL, max_new_tokens=64)).next_work(State(total=4.0)),
            "the network reads 64 at once",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_log_probabilities_do_not_reach_the_reference():
    model, reference = network(), network(seed=1)
    subject = subject_of(model, replace(SMALL, beta=0.5), reference=reference)
    state = State(total=1.0)
    accumulate(model, subject.next_work(state), subject.loss, state)
    assert all(leaf.grad is None for leaf in reference.parameters())
    assert any(leaf.grad is not None for leaf in model.parameters())
    packed = subject.sampled.parts[0].packed
    assert log_probs(reference, packed).shape == (int(packed.total),)
