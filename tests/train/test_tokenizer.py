import json
from functools import cache

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from train.errors import UserError
from train.tokenizer import END, Tokenizer, train_bpe

PROSE = [
    f"The number {i} is {'odd' if i % 2 else 'even'}, naïve readers think; 数字 {i} 😀.\n    So?"
    for i in range(300)
]
TEXT = st.text(max_size=80) | st.lists(st.sampled_from([*PROSE[:5], END, "<think>", "😀", "\n    "])).map(
    "".join
)


@cache
def trained() -> Tokenizer:
    return Tokenizer.train(PROSE, 400, ["<think>", "</think>"])


@cache
def published() -> tokenizers.Tokenizer:
    """As others publish them: with a first token, padding, truncation, and special tokens at the end."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(PROSE, trainer)
    backend.add_special_tokens(["<|begin|>", "<|stop|>"])
    backend.post_processor = processors.TemplateProcessing(
        "<|begin|> $A", special_tokens=[("<|begin|>", 300)]
    )
    backend.enable_padding(length=16)
    backend.enable_truncation(max_length=8)
    return backend


@cache
def unlike_ours() -> Tokenizer:
    """Sentence pieces, where a space is a letter, the first one is dropped and rare characters are bytes."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token=None, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_names = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[END, *byte_names], show_progress=False)
    backend.train_from_iterator([text.replace("😀", "") for text in PROSE], trainer)
    return Tokenizer(tokenizers.Tokenizer.from_str(backend.to_str()), END)


@given(TEXT)
def test_any_text_comes_back_unchanged(text):
    tokenizer = trained()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@given(st.lists(TEXT, max_size=5))
def test_many_texts_are_encoded_as_one_by_one(texts):
    assert trained().encode_batch(texts) == [trained().encode(text) for text in texts]


@given(TEXT)
def test_text_cannot_name_a_special_token_unless_asked(text):
    tokenizer = trained()
    special = {0, 1, 2}
    assert not special & set(tokenizer.encode(text))
    parsed = tokenizer.encode(text, special=True)
    assert parsed.count(tokenizer.end_id) == text.count(END)
    assert tokenizer.decode(parsed, special=True) == text
    plain = text.replace("</think>", "").replace("<think>", "").replace(END, "")
    assert tokenizer.decode(parsed) == plain


def test_special_tokens_come_first_in_the_order_given():
    tokenizer = trained()
    assert [tokenizer.token_id(token) for token in (END, "<think>", "</think>")] == [0, 1, 2]
    assert tokenizer.end_id == 0
    with pytest.raises(UserError, match="no token '<answer>'"):
        tokenizer.token_id("<answer>")


def test_the_same_documents_give_the_same_vocabulary():
    assert train_bpe(PROSE, 350, [END]) == train_bpe(PROSE, 350, [END])
    assert Tokenizer.train(PROSE, 350).sha256 == Tokenizer.train(PROSE, 350).sha256 != trained().sha256


@pytest.mark.parametrize("vocab_size", [257, 300])
def test_vocab_size_is_what_was_asked_for_while_there_are_pairs(vocab_size):
    assert Tokenizer.train(PROSE, vocab_size).vocab_size == vocab_size
    assert Tokenizer.train(["aaaa"], vocab_size).vocab_size <= 259


def test_merges_learn_the_text():
    text = "".join(PROSE)
    lengths = [len(Tokenizer.train(PROSE, size).encode(text)) for size in (257, 300, 400)]
    assert lengths[0] == len(text.encode()) > lengths[1] > lengths[2]


@pytest.mark.parametrize("vocab_size, special", [(256, []), (0, []), (257, ["<a>"])])
def test_a_vocabulary_without_room_for_bytes_is_refused(vocab_size, special):
    with pytest.raises(UserError, match=rf"vocab_size is {vocab_size}, but .* at least that many"):
        Tokenizer.train(PROSE, vocab_size, special)


@pytest.mark.parametrize("special", [["<a>", "<a>"], [END], [""]])
def test_special_tokens_must_differ(special):
    with pytest.raises(UserError, match="must be different and not empty"):
        Tokenizer.train(PROSE, 300, special)


@given(TEXT)
def test_streaming_gives_the_text_in_whole_characters(text):
    tokenizer = trained()
    stream = tokenizer.stream()
    ids = tokenizer.encode(text)
    pieces = [stream.push(i) for i in ids]
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text
    assert text.startswith("".join(pieces))
    assert "".join(pieces) + stream.finish() == text
    assert stream.finish() == ""


@given(data=st.data(), special=st.booleans())
def test_streaming_any_ids_adds_up_to_decoding_them(data, special):
    """Also ids that are no UTF-8, which a model may well produce, several at a time, special ones too."""
    tokenizer = trained()
    ids = st.integers(0, tokenizer.vocab_size - 1) | st.integers(0, 3)
    groups = data.draw(st.lists(st.lists(ids, max_size=3), max_size=12))
    stream = tokenizer.stream(special)
    pieces = [stream.push(*group) for group in groups] + [stream.finish()]
    assert "".join(pieces) == tokenizer.decode([i for group in groups for i in group], special)


@given(TEXT)
def test_streaming_does_what_other_decoders_do(text):
    """Such as dropping the space before the first word, and no later one."""
    tokenizer = unlike_ours()
    stream = tokenizer.stream()
    ids = tokenizer.encode(text)
    assert "".join([stream.push(i) for i in ids]) + stream.finish() == tokenizer.decode(ids)


def test_streaming_waits_no_longer_than_the_character_takes():
    tokenizer = Tokenizer.train(["aa"], 257)
    stream = tokenizer.stream()
    assert [stream.push(i) for i in tokenizer.encode("a😀b")] == ["a", "", "", "", "😀", "b"]


def test_saved_and_loaded_is_the_same(tmp_path):
    trained().save(tmp_path / "tokenizer.json")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.sha256 == trained().sha256 and loaded.vocab_size == trained().vocab_size
        assert loaded.encode(PROSE[7]) == trained().encode(PROSE[7])


@pytest.mark.parametrize("eos", ["<|stop|>", {"content": "<|stop|>", "special": True}])
def test_a_published_tokenizer_is_taken_with_its_end_token(tmp_path, eos):
    published().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.end == "<|stop|>" and tokenizer.end_id == 301 and tokenizer.vocab_size == 302
    assert len(tokenizer.encode("a")) == 1  # neither padded nor with a first token
    assert tokenizer.decode(tokenizer.encode(PROSE[3])) == PROSE[3]  # nor cut
    assert Tokenizer.load(tmp_path, end="<|begin|>").end_id == 300


def test_what_is_no_tokenizer_is_refused(tmp_path):
    published().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="no token '<｜end▁of▁sentence｜>' to close a document with"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="no token '<eos>'"):
        Tokenizer.load(tmp_path, end="<eos>")
    (tmp_path / "other.json").write_text(trained().backend.to_str()[:-100])
    with pytest.raises(UserError, match=r"other.json is no tokenizer that this library can read"):
        Tokenizer.load(tmp_path / "other.json")
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        Tokenizer.load(tmp_path / "nowhere")
