import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ds as tg
from layers import DeepSeekConfig, KVCache, LatentCache
from layers.cache import BLOCK, make_cache
from tests.layers.cases import GOLDEN, SOFTMAX, YARN, model_of, some_ids, tiny

SIZES = {"num_attention_heads": 4}
KINDS = {
    "mla": SIZES | {"rope_scaling": YARN},
    "mla v2": SIZES | SOFTMAX,
    "mha": SIZES | {"attention_kind": "mha"},
    "gqa": SIZES | {"attention_kind": "gqa", "num_key_value_heads": 2},
    "mqa": SIZES | {"attention_kind": "mqa"},
}
MODELS = {kind: model_of(**changes) for kind, changes in KINDS.items()}


def in_pieces(model, ids, cuts, **options):
    """Logits of a cached run over pieces between the cuts."""
    cache, edges = model.new_cache(len(ids)), [0, *sorted(cuts), ids.shape[1]]
    parts = [model(ids[:, a:b], cache, **options).data for a, b in zip(edges, edges[1:])]
    assert cache.length == ids.shape[1]
    return np.concatenate(parts, axis=1)


@settings(max_examples=30)
@given(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from([None, "expanded", "absorbed"]),
    st.lists(st.integers(0, 9), max_size=4),
    st.lists(st.integers(0, 8), min_size=3, max_size=3) | st.none(),
)
def test_cached_pieces_equal_the_full_forward(kind, form, cuts, pads):
    """However the sequence is cut, empty pieces included, and however rows are padded on the left."""
    model, ids = MODELS[kind], some_ids(3, 9, seed=3)
    for block in model.layers:
        block.self_attn.form = form
    pieces, full = in_pieces(model, ids, cuts, first=pads), model(ids, first=pads).data
    for row, pad in enumerate(pads or [0, 0, 0]):
        np.testing.assert_allclose(pieces[row, pad:], full[row, pad:], rtol=1e-11, atol=1e-12)
        alone = model(ids[row : row + 1, pad:]).data  # as if there were no pads at all
        np.testing.assert_allclose(full[row, pad:], alone[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_padded_on_the_right_are_shifted_into_line_and_go_on(kind):
    model, ids, lengths = MODELS[kind], some_ids(3, 7), np.array([4, 7, 5])
    cache = model.new_cache(3)
    padded = np.where(np.arange(7) < lengths[:, None], ids, 0)
    logits = model(padded, cache).data
    cache.shift_right(7 - lengths)
    following = some_ids(3, 3, seed=9)
    after = [model(following[:, i : i + 1], cache, first=7 - lengths).data for i in range(3)]
    for row, length in enumerate(lengths):
        alone = model(np.concatenate([ids[row : row + 1, :length], following[row : row + 1]], axis=1)).data[0]
        np.testing.assert_allclose(logits[row, :length], alone[:length], rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(np.concatenate(after, axis=1)[row], alone[length:], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_selected_rows_go_on_as_if_they_had_been_alone(kind):
    """Rows leave, change places and are there twice."""
    model, ids, following = MODELS[kind], some_ids(3, 5), some_ids(4, 3, seed=9)
    cache, rows = model.new_cache(3), [2, 0, 2, 0]
    model(ids, cache)
    cache.select(rows)
    after = np.concatenate([model(following[:, i : i + 1], cache).data for i in range(3)], axis=1)
    whole = model(np.concatenate([ids[rows], following], axis=1)).data[:, 5:]
    np.testing.assert_allclose(after, whole, rtol=1e-11, atol=1e-12)
    with pytest.raises(ValueError, match="rows are .4. but must be from 0 to 3"):
        cache.select([4])


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_truncated_leaves_no_trace(kind):
    model, ids = MODELS[kind], some_ids(2, 8)
    cache = model.new_cache(2)
    model(ids[:, :3], cache)
    model(some_ids(2, 5, seed=7), cache)
    cache.truncate(3)
    rest = model(ids[:, 3:], cache).data
    np.testing.assert_allclose(rest, model(ids).data[:, 3:], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_the_formulas(kind):
    """MHA, GQA and MQA keep n_kv (d_qk + d_v) numbers for a token and layer, MLA r + d_r."""
    model, config = MODELS[kind], tiny(**KINDS[kind])
    cache = model.new_cache(3)
    model(some_ids(3, 5), cache)
    n_kv = {"mha": 4, "gqa": 2, "mqa": 1}.get(kind)
    numbers = 4 + 4 if n_kv is None else n_kv * (config.qk_head_dim + config.v_head_dim)
    assert isinstance(cache, LatentCache if n_kv is None else KVCache)
    assert cache.nbytes == 3 * 5 * config.num_hidden_layers * numbers * 8


@pytest.mark.parametrize(
    "name, numbers",
    [("deepseek_v3", 576 * 61), ("deepseek_v2", 576 * 60), ("deepseek_v2_lite", 576 * 27)],
)
def test_bytes_per_token_of_published_models(name, numbers):
    """512 + 64 numbers a layer, measured in bfloat16 on caches of full size."""
    config = DeepSeekConfig.from_json(GOLDEN / "configs" / f"{name}.json")
    dtype = tg.Tensor([0.0]).astype("float16").dtype
    cache = make_cache(config, config.num_hidden_layers, 2, dtype)
    for layer in range(config.num_hidden_layers):
        cache.append(layer, np.zeros((2, 1, 3, 576), dtype))
    cache.advance(3)
    assert cache.nbytes / (2 * 3) == numbers * 2


def test_published_ratio_of_v3_to_multi_head_attention():
    """576 numbers a token and layer in place of 2 h d_h = 32,768."""
    config = DeepSeekConfig.from_json(GOLDEN / "configs" / "deepseek_v3.json")
    plain = config.replace(qk_nope_head_dim=64, extra=config.extra | {"attention_kind": "mha"})
    rows = {}
    for each, shapes in ((config, [(1, 1, 1, 576)]), (plain, [(1, 128, 1, 128)] * 2)):
        cache = make_cache(each, 1, 1, np.dtype("float32"))
        cache.append(0, *(np.zeros(shape, np.float32) for shape in shapes))
        cache.advance(1)
        rows[each.attention_kind] = cache.nbytes // 4
    assert rows == {"mla": 576, "mha": 32768}


def test_growing_keeps_the_content_and_copies_rarely():
    cache, rng = LatentCache(2, 1, 3, np.dtype("float64")), np.random.default_rng(0)
    rows = rng.normal(size=(2, 1, 1, 1000, 3))
    capacities = []
    for column in range(1000):
        for layer in range(2):
            seen = cache.append(layer, rows[layer, :, :, column : column + 1])
            np.testing.assert_array_equal(seen, rows[layer, :, :, : column + 1])
        cache.advance(1)
        capacities.append(cache.capacity)
    assert set(np.diff(capacities)) == {0, BLOCK}
    assert cache.capacity == -(-1000 // BLOCK) * BLOCK
    assert cache.nbytes == rows.nbytes


def test_a_pass_that_failed_leaves_the_cache_as_it_was(monkeypatch):
    model, ids = model_of(), some_ids(1, 6)
    cache = model.new_cache(1)
    model(ids[:, :4], cache)

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model.layers[1], "mlp", fail)
        model(ids[:, 4:], cache)
    assert cache.length == 4
    np.testing.assert_allclose(model(ids[:, 4:], cache).data, model(ids).data[:, 4:], rtol=1e-11, atol=1e-12)


def test_nothing_is_recorded_over_a_cache():
    model = model_of()
    assert model(some_ids(1, 3)).requires_grad
    for call in (model, model.hidden):
        assert not call(some_ids(1, 3), model.new_cache(1)).requires_grad


def test_mistakes():
    model = model_of()
    cache = model.new_cache(2)
    model(some_ids(2, 3), cache)
    with pytest.raises(ValueError, match=r"holds 2 sequences but 3 came: make one with new_cache\(3\)"):
        model(some_ids(3, 1), cache)
    for length in (-1, 4):
        with pytest.raises(ValueError, match=f"length is {length} but the cache holds 3 columns: 0 to 3"):
            cache.truncate(length)
    for columns in ([1], [0, 4], [-1, 0]):
        with pytest.raises(ValueError, match="must be 2 numbers from 0 to 3"):
            cache.shift_right(columns)
    model(some_ids(2, 60), cache)
    with pytest.raises(ValueError, match="65 tokens but max_position_embeddings is 64"):
        model(some_ids(2, 2), cache)
    assert cache.length == 63
