import gc
import weakref
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ds as tg
from layers import DeepSeekModel, decoding, load_pretrained
from layers.generation import generate
from tests.layers.cases import CASES, FORWARD_ONLY, GOLDEN, facts_of, model_of, some_ids, tiny
from tinygrad_ds import Tensor

VOCAB = 13


def by_recomputing(model, prompt, new: int) -> list[int]:
    """The definition: the likeliest token after a full forward over everything so far, again and again."""
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(model(np.array([ids])).data[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", [*CASES, *FORWARD_ONLY])
def test_greedy_tokens_are_those_of_transformers(case, dtype):
    model, greedy = load_pretrained(GOLDEN / case, dtype), facts_of(case)["greedy"]
    prompts = [entry["prompt"] for entry in greedy]
    for entry in greedy:
        new = generate(model, [entry["prompt"]], len(entry["tokens"]))[0, len(entry["prompt"]) :]
        assert new.tolist() == entry["tokens"]
    together = generate(model, prompts, 16)[:, max(map(len, prompts)) :]
    assert together.tolist() == [entry["tokens"] for entry in greedy]


@pytest.mark.parametrize("kind", ["mla", "mha", "gqa", "mqa"])
def test_every_cached_step_is_a_full_forward(kind):
    kv_heads = {"gqa": 1, "mha": 2}.get(kind)
    model = model_of(attention_kind=kind, num_key_value_heads=kv_heads)
    prompts = [[3], [1, 2, 3, 4, 5, 6, 7], [12, 0]]
    out = generate(model, prompts, 9)
    assert out.shape == (3, 16)
    for row, prompt in zip(out, prompts):
        assert row[: 7 - len(prompt)].tolist() == [0] * (7 - len(prompt))
        assert row[7 - len(prompt) : 7].tolist() == prompt
        assert row[7:].tolist() == by_recomputing(model, prompt, 9)


@settings(max_examples=15)
@given(
    st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9), min_size=1, max_size=4), st.data()
)
def test_ragged_rows_are_each_prompt_alone(prompts, data):
    model = model_of()
    time = max(map(len, prompts))
    settings = {"temperature": data.draw(st.sampled_from([0.0, 0.5, 1.5])), "top_p": 0.9, "seed": 3}
    out = generate(model, prompts, 5, **settings)
    row = data.draw(st.integers(0, len(prompts) - 1))
    # The numbers of row r are drawn for row r: other rows may be anything.
    others = [prompts[row]] * (row + 1)
    assert out[row, time:].tolist() == generate(model, others, 5, **settings)[row, -5:].tolist()


def test_seeds_are_reproducible_and_differ():
    model, ids = model_of(), some_ids(3, 4)
    first, again, other = (generate(model, ids, 12, temperature=1.0, seed=seed) for seed in (5, 5, 6))
    assert (first == again).all() and (first != other).any()
    rows = generate(model, ids[[0, 0, 0]], 12, temperature=1.0, seed=5)[:, 4:].tolist()
    assert rows[0] != rows[1] != rows[2] != rows[0], "rows draw numbers of their own"


def test_going_on_from_what_was_said_says_the_same():
    """Random numbers belong to positions, so a text may be generated in pieces."""
    model, ids = model_of(), some_ids(2, 4)
    whole = generate(model, ids, 9, temperature=1.0, seed=1)
    part = generate(model, generate(model, ids, 4, temperature=1.0, seed=1), 5, temperature=1.0, seed=1)
    assert (whole == part).all()


def test_streamed_tokens_are_those_returned():
    model, prompts, heard = model_of(), [[1, 2], [5]], [[], []]
    stop = generate(model, prompts, 10)[0, 2 + 4]
    out = generate(
        model, prompts, 10, stop_tokens=[stop], on_token=lambda row, token: heard[row].append(token)
    )
    for said, row in zip(heard, out):
        assert row[2 : 2 + len(said)].tolist() == said
        assert set(row[2 + len(said) :].tolist()) <= {stop}
        assert (said[-1] == stop or len(said) == 10) and stop not in said[:-1]
    assert len(heard[0]) <= 5


def test_rows_that_end_are_padded():
    model, ids = model_of(), some_ids(3, 4)
    plain = generate(model, ids, 8, temperature=1.0)
    stop = int(plain[1, 4])  # row 1 ends at once
    out = generate(model, ids, 8, temperature=1.0, stop_tokens=stop, pad_token=7)
    assert out[1, 4:].tolist() == [stop] + [7] * 7
    for before, after in zip(plain[:, 4:].tolist(), out[:, 4:].tolist()):
        end = before.index(stop) + 1 if stop in before else 8
        assert after == before[:end] + [7] * (8 - end)
    assert (generate(model, ids, 8, temperature=1.0, stop_tokens=[stop])[1, 5:] == stop).all()


def test_the_pad_is_the_config_s_then_the_stop_token_then_0():
    prompts, stop = [[1, 2, 3], [4]], [9, 8]
    padded = model_of(pad_token_id=6)
    assert generate(padded, prompts, 0, stop_tokens=stop)[1].tolist() == [6, 6, 4]
    assert generate(model_of(), prompts, 0, stop_tokens=stop)[1].tolist() == [9, 9, 4]
    assert generate(model_of(), prompts, 0)[1].tolist() == [0, 0, 4]


def test_any_form_of_ids_will_do():
    model, ids = model_of(), some_ids(2, 4)
    expected = generate(model, ids, 3)
    for form in (ids.tolist(), list(ids), Tensor(ids), ids.astype(np.int32), iter(ids.tolist())):
        assert (generate(model, form, 3) == expected).all()


def test_cold_sampling_and_a_narrow_nucleus_are_greedy():
    model, ids = model_of(), some_ids(2, 4)
    greedy = generate(model, ids, 8)
    assert (generate(model, ids, 8, temperature=1e-300) == greedy).all()
    assert (generate(model, ids, 8, temperature=1.0, top_p=1e-9) == greedy).all()


@pytest.mark.parametrize("kind", ["mla", "mha"])
def test_nothing_is_recorded_and_the_batch_needs_one_pass_a_token(monkeypatch, kind):
    model, widths = model_of(attention_kind=kind), []
    new_cache = model.new_cache

    def watched(batch):
        cache = new_cache(batch)
        room = cache.room

        def seen(layer, rows, time):
            assert rows == batch
            if layer in (0, slice(None)):  # of all layers at once, or of one after the other
                widths.append(time)
            return room(layer, rows, time)

        cache.room = seen
        return cache

    monkeypatch.setattr(model, "new_cache", watched)
    with tg.observe(tg.Profile()) as profile:
        generate(model, some_ids(2, 4), 6)
    assert widths == [4, 1, 1, 1, 1, 1]
    assert all(share.saved_bytes == 0 or share.backward == 0 for share in profile.shares.values())


BAD = [
    ({"ids": []}, "there is no prompt: pass ids"),
    ({"ids": [[1], []]}, "prompt 1 is empty: begin with bos_token_id, which is 0"),
    ({"ids": [[1, 13]]}, "prompt 0 holds id 13 but vocab_size is 13: 0 to 12"),
    ({"ids": [[1], [-2, 4]]}, "prompt 1 holds id -2 but vocab_size is 13: 0 to 12"),
    ({"ids": [[1.5]]}, "prompt 0 is float64(1,) but must be a row of integers"),
    ({"ids": [1, 2]}, "prompt 0 is int64() but must be a row of integers"),
    (
        {"ids": [[1] * 60], "max_new_tokens": 5},
        "prompt 0 has 60 tokens and 5 are to follow, but max_position",
    ),
    ({"max_new_tokens": -1}, "max_new_tokens is -1 but must be at least 0"),
    ({"temperature": -0.5}, "temperature is -0.5 but must be 0"),
    ({"temperature": float("nan")}, "temperature is nan but must be 0"),
    ({"top_p": 0.0}, "top_p is 0.0 but must be above 0 and at most 1"),
    ({"top_p": 1.5}, "top_p is 1.5 but must be above 0 and at most 1"),
    ({"seed": -1}, "seed is -1 but must be a whole number"),
    ({"pad_token": 13}, "pad_token is 13 but vocab_size is 13"),
    ({"speculative": True}, "speculative=True but the model has no MTP module"),
]


@pytest.mark.parametrize(("bad", "sentence"), BAD, ids=[sentence[:40] for _, sentence in BAD])
def test_what_cannot_be_gets_one_sentence(bad, sentence):
    with pytest.raises(ValueError) as caught:
        generate(model_of(), **({"ids": [[1]], "max_new_tokens": 2} | bad))
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


def test_the_room_is_used_to_the_last_position():
    assert generate(model_of(), [[1] * 60], 4).shape == (1, 64)


def test_a_model_without_an_answer_says_so():
    model = model_of()
    model.norm.weight.data[2] = np.nan
    with pytest.raises(ValueError, match="the logits of row 0 are not finite after 2 tokens"):
        generate(model, [[1, 2]], 3)


def test_shorter_answers_are_beginnings_of_longer_ones():
    model, ids = model_of(), some_ids(2, 3)
    for short, long in pairwise(generate(model, ids, new, temperature=0.8, seed=2) for new in range(5)):
        assert (long[:, : short.shape[1]] == short).all()


def test_what_decoding_found_of_a_network_can_be_let_go():
    """A network whose memory is given back, as rank 0 does between samples, must not be kept by a plan."""
    model = DeepSeekModel(tiny(), seed=0)
    generate(model, [np.array([1, 2])], max_new_tokens=2)
    arrays = [weakref.ref(leaf.data) for leaf in model.parameters()]
    decoding.forget(model)
    model.release()
    gc.collect()
    assert arrays and all(array() is None for array in arrays)
