import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layers import load_pretrained
from layers.generation import generate
from layers.sampling import probabilities
from layers.speculative import Drafter, SpeculationStats, verify
from tests.layers.cases import GOLDEN, facts_of, model_of

FEW = 4  # words: so few that random modules guess right often


def drafting_model(depths: int, words: int = FEW, **changes):
    return model_of(vocab_size=words, num_nextn_predict_layers=depths, **changes)


@settings(max_examples=25)
@given(
    st.integers(1, 3),
    st.lists(st.lists(st.integers(0, FEW - 1), min_size=1, max_size=6), min_size=1, max_size=4),
    st.integers(1, 12),
    st.sampled_from([(), (1,), (0, 2)]),
    st.sampled_from(["mla", "mqa"]),
)
def test_greedy_output_is_the_plain_one_token_for_token(depths, prompts, new, stops, kind):
    model, heard, stats = drafting_model(depths, attention_kind=kind), {}, SpeculationStats()

    def listen(row, token):
        heard.setdefault(row, []).append(token)

    plain = generate(model, prompts, new, stop_tokens=stops)
    out = generate(model, prompts, new, stop_tokens=stops, speculative=True, on_token=listen, stats=stats)
    assert (out == plain).all()
    for row, said in heard.items():
        assert out[row, -new:][: len(said)].tolist() == said
    assert stats.tokens == sum(map(len, heard.values()))
    # A pass gives one token of the trunk's and the drafts that stand, unless one of these ends the row.
    ended = sum(said[-1] in stops for said in heard.values())
    assert stats.passes + stats.accepted - ended <= stats.tokens <= stats.passes + stats.accepted
    assert 0 <= stats.accepted <= stats.drafted <= depths * stats.passes


def test_drafts_are_those_of_transformers(monkeypatch):
    drafts, propose = [], Drafter.propose

    def heard(self, *args):
        drafts.append(propose(self, *args))
        return drafts[-1]

    monkeypatch.setattr(Drafter, "propose", heard)
    model = load_pretrained(GOLDEN / "v3_mtp", "float64")
    for entry in facts_of("v3_mtp")["greedy"]:
        drafts.clear()
        out = generate(model, [entry["prompt"]], 16, speculative=True)
        assert out[0, len(entry["prompt"]) :].tolist() == entry["tokens"]
        assert entry["tokens"][0] == entry["mtp"]["main_token"]
        assert drafts[0][0].tolist() == [entry["mtp"]["draft_tokens"]]


def drafted_by_definition(model, ids: list[int], count: int) -> np.ndarray:
    """The distributions (count, words) of the last ids: every module over all of them at once, no cache."""
    known, found = len(ids) - count, []
    h = model.hidden(np.array([ids[: known - 1]]))
    for depth in range(1, count + 1):
        read = np.array([ids[depth : known + depth - 1]])
        h = model.mtp_hidden(depth, read, h[:, : read.shape[1]])[0]
        found.append(probabilities(model.head(h).data[0, -1], 1.0, 1.0))
    return np.array(found)


@pytest.mark.parametrize("prompts", [[[1]], [[3, 1, 2, 0, 2]], [[0], [1, 3, 3, 2, 1], [2, 2]]])
def test_every_draft_is_drawn_as_defined(monkeypatch, prompts):
    """The modules' caches, moved and cut as drafts fail, against modules that begin anew every time."""
    model, new, propose, seen = drafting_model(3), 12, Drafter.propose, []

    def heard(self, h, tokens, known, first, count, sampler, made):
        drafts, q = propose(self, h, tokens, known, first, count, sampler, made)
        seen.append((made.copy(), drafts, q))
        return drafts, q

    monkeypatch.setattr(Drafter, "propose", heard)
    stats = SpeculationStats()
    out = generate(model, prompts, new, temperature=1.0, speculative=True, stats=stats)
    assert 0 < stats.accepted < stats.drafted, "both outcomes occur"
    for made, drafts, q in seen:
        for row, prompt in enumerate(prompts):
            if made[row] < new:
                ids = [*prompt, *out[row, -new:][: made[row]].tolist(), *drafts[row].tolist()]
                assert q[row] == pytest.approx(drafted_by_definition(model, ids, drafts.shape[1]), abs=1e-12)


def test_a_drafter_that_knows_is_always_believed():
    """Modules that give the trunk's own tokens: every pass yields 1 + their number."""
    model = drafting_model(2)
    model.lm_head.weight.data[...] = 0  # all words are equally likely: both take the first
    stats = SpeculationStats()
    out = generate(model, [[1, 2]], 9, speculative=True, stats=stats)
    assert out[0, 2:].tolist() == [0] * 9
    assert (stats.passes, stats.accepted, stats.drafted) == (4, 5, 5)  # 1 + 3 + 3 + 2 tokens
    assert stats.acceptance_rate == 1 and stats.tokens_per_pass == 9 / 4
    assert "100.0% of 5 drafted" in str(stats) and "2.25 tokens per trunk pass" in str(stats)


def chi_square(counts: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The statistic, rare outcomes put together, and the value that chance passes once in a million."""
    rare = expected < 8
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    free = len(counts) - 1
    limit = free * (1 - 2 / (9 * free) + 4.753 * math.sqrt(2 / (9 * free))) ** 3  # Wilson and Hilferty
    return float(((counts - expected) ** 2 / expected).sum()), limit


def exact_probabilities(model, prompt: list[int], new: int, **sampling) -> np.ndarray:
    """The chance of every continuation of length `new`, in the order of counting."""
    words = model.config.vocab_size
    tails = np.array(list(itertools.product(range(words), repeat=new)))
    ids = np.concatenate([np.tile(prompt, (len(tails), 1)), tails], axis=1)
    p = probabilities(model(ids).data[:, len(prompt) - 1 : -1], **sampling)
    return np.take_along_axis(p, tails[..., None], axis=-1)[..., 0].prod(axis=1)


@pytest.mark.parametrize("sampling", [{"temperature": 1.3, "top_p": 1.0}, {"temperature": 2.0, "top_p": 0.8}])
@pytest.mark.parametrize("speculative", [False, True])
def test_samples_follow_the_exact_distribution(speculative, sampling):
    model, prompt, new, samples = drafting_model(2, initializer_range=0.8), [1, 3], 4, 6000
    exact = exact_probabilities(model, prompt, new, **sampling)
    assert exact.sum() == pytest.approx(1)
    stats = SpeculationStats()
    out = generate(model, [prompt] * samples, new, speculative=speculative, seed=11, stats=stats, **sampling)
    numbers = (out[:, len(prompt) :] * FEW ** np.arange(new)[::-1]).sum(axis=1)
    statistic, limit = chi_square(np.bincount(numbers, minlength=FEW**new), samples * exact)
    assert statistic < limit
    uniform, _ = chi_square(np.bincount(numbers, minlength=FEW**new), np.full(FEW**new, samples / FEW**new))
    assert uniform > 5 * limit, "the distribution has a shape that a wrong rule would miss"
    if speculative:
        assert 0.2 < stats.acceptance_rate < 0.9


@given(st.integers(0, 10**6))
def test_one_draft_makes_the_trunk_s_distribution_exactly(seed):
    """Over all drafts and all random numbers, in closed form: sum_d q(d) P(x | d) = p(x)."""
    rng = np.random.default_rng(seed)
    words = 5
    p, q = rng.dirichlet(np.full(words, 0.5), size=2)
    p[rng.integers(words)] = 0.0
    p, grid = p / p.sum(), 400
    total = np.zeros(words)
    u = (np.arange(grid) + 0.5) / grid
    for d in range(words):
        accepts = np.zeros((2 * grid, 2, 3))
        accepts[:grid, 0, 1] = u  # ACCEPT, refused draws take the middle; then CHOOSE of refused ones
        accepts[grid:, 0, 1] = 1 - 1e-12
        accepts[grid:, 0, 2] = u
        twice = np.broadcast_to(np.stack([p, p]), (2 * grid, 2, words))
        accepted, following = verify(
            twice, np.full((2 * grid, 1), d), np.broadcast_to(q, (2 * grid, 1, words)), accepts
        )
        share = accepted[:grid].mean()
        assert share == pytest.approx(min(1.0, p[d] / q[d]), abs=1 / grid)
        total[d] += q[d] * share
        refused = accepted[grid:] == 0
        if refused.all():
            total += q[d] * (1 - share) * np.bincount(following[grid:], minlength=words) / grid
    assert total == pytest.approx(p, abs=4 / grid)


def test_rows_of_uneven_luck_use_the_room_to_the_last_position():
    """Rows whose drafts fail move right: there are more columns than positions, and positions count."""
    room = 40
    model = drafting_model(2, max_position_embeddings=room)
    prompts = [[0], [1], [2], [3], [1, 2], [3, 0]]
    new = room - 2 - 2
    out = generate(model, prompts, new, speculative=True)
    assert (out == generate(model, prompts, new)).all()
    with pytest.raises(ValueError, match=r"37 are to follow \(and 2 may be drafted past them\), but max_pos"):
        generate(model, prompts, new + 1, speculative=True)
    assert generate(model, [[1, 2]], room - 2, speculative=True).shape == (1, room)
