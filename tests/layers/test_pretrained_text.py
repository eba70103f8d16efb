import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from layers import DeepSeekModel, generate, save_pretrained
from layers.pretrained_text import R1_TEMPLATE, PretrainedText
from layers.tensor_file import CheckpointError
from tests.layers.cases import tiny

BEGIN, END, USER, ASSISTANT = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
)
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "<think>\nA sum.\n</think>\n\n4"},
    {"role": "user", "content": "And 3 + 3?"},
]
# In the manner of published files: variables, namespaces, None where nothing is, and words of refusal.
TEMPLATE = """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{% set ns = namespace(system='') %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{% set ns.system = message['content'] %}{% endif %}
    {%- if message['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}
{%- endfor %}
{{- bos_token }}{{ ns.system }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{% endif %}
    {%- if message['role'] == 'assistant' and message['content'] is not none %}
        {%- set content = message['content'] %}
        {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
        {{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not tools %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""


def byte_tokenizer() -> Tokenizer:
    """A token for every byte, and DeepSeek's special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken(t, normalized=False) for t in (BEGIN, END, USER, ASSISTANT)])
    return made


@pytest.fixture
def folder(tmp_path):
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tiny(vocab_size=260, bos_token_id=256, eos_token_id=257).save(tmp_path)
    told = {"bos_token": {"content": BEGIN}, "eos_token": END, "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    return tmp_path


def tell(folder, name: str, **settings) -> PretrainedText:
    path = folder / name
    told = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(told | settings))
    return PretrainedText(folder)


def test_r1_format(folder):
    text = PretrainedText(folder)
    written = f"{BEGIN}Be brief.{USER}2 + 2?{ASSISTANT}\n\n4{END}{USER}And 3 + 3?{ASSISTANT}<think>\n"
    assert text.chat_text(MESSAGES) == written
    assert text.chat_text(MESSAGES, add_generation_prompt=False) == written.removesuffix(
        f"{ASSISTANT}<think>\n"
    )
    ids = text.chat(MESSAGES)
    assert ids.count(256) == 1 and ids[0] == 256, "the template begins the sentence, nobody else"
    assert [i for i in ids if i > 255] == [256, 258, 259, 257, 258, 259]
    assert text.decode(ids) == "Be brief.2 + 2?\n\n4And 3 + 3?<think>\n"


def test_the_template_of_the_folder_comes_first(folder):
    assert tell(folder, "tokenizer_config.json", chat_template="a").chat_text([]) == "a"
    named = [{"name": "tools", "template": "b"}, {"name": "default", "template": "c"}]
    assert tell(folder, "tokenizer_config.json", chat_template=named).chat_text([]) == "c"
    (folder / "chat_template.jinja").write_text("{{ {'é': [1]} | tojson }}")
    assert PretrainedText(folder).chat_text([]) == '{"é": [1]}'


words = st.text(st.characters(codec="utf-8", exclude_characters="｜"), max_size=8)
turns = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), words), max_size=4)


@given(words, turns, st.booleans())
def test_a_published_manner_of_template_and_ours_agree(system, turns, ask):
    import jinja2

    messages = [{"role": "system", "content": system}] + [{"role": r, "content": c} for r, c in turns]
    told = {"messages": messages, "add_generation_prompt": ask, "bos_token": BEGIN, "eos_token": END}
    both = [
        jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template).render(told)
        for template in (TEMPLATE, R1_TEMPLATE)
    ]
    assert both[0] == both[1]


def test_templates_refuse_and_are_kept_from_harm(folder):
    text = tell(folder, "tokenizer_config.json", chat_template=TEMPLATE)
    with pytest.raises(CheckpointError, match="cannot write these messages: no tools here"):
        text.chat_text([{"role": "tool", "content": "x"}])
    for harm in (
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ nothing.at.all }}",
        "{% for",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
    ):
        with pytest.raises(CheckpointError, match="the chat template cannot write these messages"):
            tell(folder, "tokenizer_config.json", chat_template=harm).chat_text(MESSAGES)


def test_text_begins_as_the_files_ask(folder):
    assert PretrainedText(folder).encode("ab")[0] == 256
    assert PretrainedText(folder).encode(f"{BEGIN}ab").count(256) == 1
    assert len(tell(folder, "tokenizer_config.json", add_bos_token=False).encode("ab")) == 2


@given(st.text(max_size=12))
def test_streamed_text_is_the_text(text):
    tokenizer = byte_tokenizer()
    stream = PretrainedText.stream(type("Text", (), {"tokenizer": tokenizer}))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(map(stream, ids)) == text


def test_generation_settings_are_those_of_the_file(folder):
    assert PretrainedText(folder).settings == {"temperature": 0.0, "top_p": 1.0, "stop_tokens": [257]}
    told = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": [257, 258]}
    expected = {"temperature": 0.6, "top_p": 0.95, "stop_tokens": [257, 258], "pad_token": 9}
    assert tell(folder, "generation_config.json", pad_token_id=9, **told).settings == expected
    assert tell(folder, "generation_config.json", do_sample=False).settings["temperature"] == 0
    out = generate(DeepSeekModel(PretrainedText(folder).config), [[1]], 4, **PretrainedText(folder).settings)
    assert out.shape == (1, 5)


DAMAGE = [
    ("tokenizer.json", None, "does not exist: without it ids are numbers only"),
    ("tokenizer.json", "{}", "is no tokenizer"),
    ("tokenizer_config.json", "[]", "holds a JSON list but should hold an object"),
    ("generation_config.json", "{", "is not JSON"),
    ("generation_config.json", '{"do_sample": true, "top_p": "x"}', "numbers are wanted"),
]


@pytest.mark.parametrize(("name", "content", "said"), DAMAGE, ids=[said[:20] for *_, said in DAMAGE])
def test_damaged_files_get_one_sentence(folder, name, content, said):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=said) as caught:
        PretrainedText(folder)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_of_another_network_is_refused(folder):
    tiny(vocab_size=100).save(folder)
    with pytest.raises(CheckpointError, match="has ids up to 259 but vocab_size is 100"):
        PretrainedText(folder)


def run_generate(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    from layers.__main__ import main

    monkeypatch.setattr("sys.argv", ["layers", "generate", *arguments])
    try:
        main()
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_says_what_generate_says(folder, capsys, monkeypatch):
    config = tiny(vocab_size=260, bos_token_id=256, eos_token_id=257, num_nextn_predict_layers=1)
    model = DeepSeekModel(config, seed=3)
    save_pretrained(model, folder)
    text = PretrainedText(folder)
    for chat in (False, True):
        ids = text.chat([{"role": "user", "content": "Go"}]) if chat else text.encode("Go")
        expected = text.decode(generate(model, [ids], 12, **text.settings)[0, len(ids) :])
        for flag in ("--no-speculative", "--speculative"):
            flags = ["--prompt", "Go", "--tokens", "12", flag, "--chat" if chat else "--no-chat"]
            code, out, err = run_generate(capsys, monkeypatch, str(folder), *flags)
            assert code == 0 and out.removesuffix("\n") == expected.rstrip("�")
            assert ("tokens per trunk pass" in err) == (flag == "--speculative")
    code, out, err = run_generate(capsys, monkeypatch, str(folder / "none"), "--prompt", "Go")
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
