"""Sampling: what is drawn does not depend on who else is in the batch, and is what the network would say."""

import numpy as np
import pytest

import tinygrad_ds as tg
from layers import generate
from posttrain.grpo import agree
from posttrain.packing import Example, pack, packed_experts, packed_samples
from posttrain.rollout import rollout, uniforms
from posttrain.scoring import log_probs, replayed, table
from tests.posttrain.small import network, same_samples, vocabulary
from train.errors import UserError
from train.trainer import TrainingStopped

PROMPTS = [[5], [7, 9, 11, 13, 15], [8, 8], [300, 301, 302]]
END = 0


def often_ends(model):
    """The end token is likely, so sequences end at different times."""
    model.lm_head.weight.data[END] *= 4
    return model


MODEL = often_ends(network())
OPTIONS = {"end_id": END, "max_new_tokens": 12, "seed": 3}


def alone(prompt, sequence, **options):
    (found,) = rollout(MODEL, [prompt], first_sequence=sequence, **OPTIONS | options)
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_tokens_do_not_depend_on_the_batch(temperature):
    """In float64: neither the other prompts, nor how many samples share a pass, nor who has left."""
    together = rollout(MODEL, PROMPTS, samples=3, temperature=temperature, **OPTIONS)
    lengths = {len(each.tokens) for each in together}
    assert len(together) == 12 and len(lengths) > 3
    for i, each in enumerate(together):
        assert same_samples(each, alone(PROMPTS[i // 3], i, temperature=temperature))


def test_random_numbers_are_those_of_seed_sequence_and_position():
    assert np.array_equal(uniforms((1, 2), range(2, 4), 5)[1:], uniforms((1, 2), range(3, 4), 9)[:, :5])
    different = [*uniforms(1, range(60), 50), *uniforms(2, range(60), 50), *uniforms((1, 1), range(60), 50)]
    assert len({number for each in different for number in each}) == 180 * 50
    assert abs(np.mean(different) - 0.5) < 0.01
    some = alone(PROMPTS[1], 5)
    assert not same_samples(some, alone(PROMPTS[1], 6)) and not same_samples(
        some, alone(PROMPTS[1], 5, seed=4)
    )
    short = alone(PROMPTS[1], 5, max_new_tokens=3)
    assert np.array_equal(short.tokens, some.tokens[:3])


def test_greedy_is_what_generate_says():
    found = rollout(MODEL, PROMPTS, temperature=0.0, **OPTIONS)
    said = generate(MODEL, PROMPTS, 12, stop_tokens=END, pad_token=END)
    for each, row in zip(found, said):
        assert np.array_equal(np.pad(each.tokens, (0, 12 - len(each.tokens))), row[5:])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probabilities_are_those_of_the_temperature_that_sampled(temperature):
    """And each is that of its own token: one place off, or at another temperature, they would not agree."""
    for each in rollout(MODEL, PROMPTS, samples=2, temperature=temperature, **OPTIONS):
        ids = np.concatenate([each.prompt, each.tokens])
        logits = MODEL(ids[None]).data[0, len(each.prompt) - 1 : -1] / temperature
        logp = tg.log_softmax(logits).data
        np.testing.assert_allclose(
            each.logp, logp[np.arange(len(each.tokens)), each.tokens], rtol=1e-9, atol=1e-12
        )
        np.testing.assert_allclose(each.entropy, -(np.exp(logp) * logp).sum(axis=1), rtol=1e-9, atol=1e-12)


def test_a_sequence_ends_with_the_end_token_and_nothing_follows():
    for each in rollout(MODEL, PROMPTS, samples=4, **OPTIONS):
        assert each.ended == (each.tokens[-1] == END) and END not in each.tokens[:-1]
        assert len(each.tokens) == len(each.logp) == len(each.entropy) <= 12
        said = each.completion(vocabulary())
        assert said.ended == each.ended and said.length == len(each.tokens)
        assert vocabulary().end not in said.text


def test_weights_that_change_are_the_weights_that_sample():
    """No cache outlives a rollout: after an update it is the new policy that speaks."""
    model = often_ends(network())
    before = rollout(model, PROMPTS, **OPTIONS)
    for leaf in model.parameters():
        leaf.data[...] *= -1.0
        leaf.written()
    after = rollout(model, PROMPTS, **OPTIONS)
    assert not all(same_samples(a, b) for a, b in zip(before, after))
    fresh = network()
    for ours, theirs in zip(fresh.parameters(), model.parameters()):
        ours.data[...] = theirs.data
    assert all(same_samples(a, b) for a, b in zip(rollout(fresh, PROMPTS, **OPTIONS), after))


@pytest.mark.parametrize(
    ("prompts", "more", "words"),
    [
        ([[]], {}, "prompt 0 has no tokens"),
        (
            [[1], [2] * 60],
            {},
            "prompt 1 has 60 tokens and up to 12 are to follow, but the network reads 64 at once",
        ),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_prompts_that_leave_no_room_are_refused(prompts, more, words):
    with pytest.raises(UserError, match=words):
        rollout(MODEL, prompts, **OPTIONS | more)


def scored(model, samples, temperature=1.0, experts=True):
    """Recomputed log-probabilities, sequence by sequence."""
    packed = packed_samples(samples, 64)
    rows = table(packed, [len(s.prompt) for s in samples], [len(s.tokens) for s in samples])
    with replayed(model, packed_experts(samples, packed) if experts else {}):
        return rows.spread(log_probs(model, packed, temperature)).data, rows


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_recomputed_log_probabilities_agree(temperature):
    samples = rollout(MODEL, PROMPTS, samples=5, temperature=temperature, **OPTIONS)
    logp, rows = scored(MODEL, samples, temperature)
    sampled = rows.fill([each.logp for each in samples])
    np.testing.assert_allclose(logp[rows.mask], sampled[rows.mask], rtol=1e-9, atol=1e-12)
    assert agree(logp[rows.mask], sampled[rows.mask]).share == 1.0
    with pytest.raises(TrainingStopped, match="differ before the first update"):
        agree(scored(MODEL, samples, temperature * 1.01)[0][rows.mask], sampled[rows.mask])


def test_agreement_is_judged_by_share_and_mean():
    sampled = np.zeros(10_000)
    few, many, shifted = sampled.copy(), sampled.copy(), sampled + 2e-5
    few[:9], many[:11] = 2e-4, 2e-4
    assert agree(few, sampled).share == 0.9991
    for wrong in (many, shifted, np.full(10_000, np.nan)):
        with pytest.raises(TrainingStopped):
            agree(wrong, sampled)


def test_experts_are_kept_and_replayed():
    """With the router moved after sampling, replay still sends every token where it went."""
    model = often_ends(network())
    samples = rollout(model, PROMPTS, samples=3, experts=True, **OPTIONS)
    for each in samples:
        (seen,) = each.experts.values()
        assert seen.shape == (len(each.prompt) + len(each.tokens) - 1, 2)
        model(np.concatenate([each.prompt, each.tokens])[None, :-1])
        assert np.array_equal(np.sort(seen), np.sort(model.layers[1].mlp.chosen[0]))
    before, _ = scored(model, samples)
    model.layers[1].mlp.gate.e_score_correction_bias.data[...] = [3, 0, 2, 0]
    np.testing.assert_allclose(scored(model, samples)[0], before, rtol=1e-9, atol=1e-12)
    assert not np.allclose(scored(model, samples, experts=False)[0], before)


def test_packed_sequences_are_computed_as_if_alone():
    rng = np.random.default_rng(0)
    examples = [
        Example(rng.integers(1, 300, n), rng.integers(1, 300, m)) for n, m in [(3, 4), (1, 1), (9, 6), (2, 8)]
    ]
    packed = pack(examples, 16)
    assert packed.ids.shape == (2, 15) and packed.total == 19
    rows = table(packed, [len(e.prompt) for e in examples], [len(e.completion) for e in examples])
    together = rows.spread(log_probs(MODEL, packed)).data
    for i, each in enumerate(examples):
        ids = np.concatenate([each.prompt, each.completion])[None]
        logp = tg.log_softmax(MODEL(ids).data[0, len(each.prompt) - 1 : -1]).data
        wanted = logp[np.arange(len(each.completion)), each.completion]
        np.testing.assert_allclose(together[i][rows.mask[i]], wanted, rtol=1e-9, atol=1e-12)


def test_packing_wastes_little_and_refuses_what_does_not_fit():
    rng = np.random.default_rng(1)
    examples = [Example(rng.integers(1, 9, n), rng.integers(1, 9, 5)) for n in rng.integers(1, 30, 60)]
    packed = pack(examples, 64)
    used = sum(len(e.prompt) + len(e.completion) - 1 for e in examples)
    assert packed.ids.shape[0] <= 1.1 * used / 64 + 1
    with pytest.raises(UserError, match="sequence 1 has 66 tokens but the network reads 64 at once"):
        pack([examples[0], Example(np.ones(61, int), np.ones(5, int))], 64)
