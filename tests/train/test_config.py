import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest

from train.config import DEMO, Config, Learning, Sizes, to_toml
from train.errors import UserError
from train.learning_rate import Schedule


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        DEMO,
        Config(out=Path("a b/ü"), text=(Path('x"y'), Path("z")), seconds=2.5, threads=1, prompt='a\n"\\'),
        Config(sizes=Sizes(q_lora_rank=7, tie_word_embeddings=True), learning=Learning(optimizer="adamw")),
        Config(schedule=Schedule()),
    ],
)
def test_settings_come_back_from_toml(tmp_path, config):
    config.save(tmp_path / "config.toml")
    assert Config.load(tmp_path / "config.toml") == config


def test_file_need_not_name_everything(tmp_path):
    path = tmp_path / "some.toml"
    path.write_text("tokens = 5\n[learning]\nlr = 1\n")
    expected = Config(tokens=5, learning=replace(Config().learning, lr=1.0))
    assert Config.load(path) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tokns = 5", "sets 'tokns', which is unknown there: only out, text"),
        ("[sizes]\nhidden = 3", r"\[sizes\] of .* sets 'hidden', which is unknown"),
        ("tokens = 'many'", "sets tokens to 'many', which is no int"),
        ("tokens = true", "sets tokens to True, which is no int"),
        ("text = 3", "sets text to 3, which is no tuple"),
        ("sizes = 3", "sets sizes to 3, which is no Sizes"),
        ("[learning]\noptimizer = 'sgd'", "sets optimizer to 'sgd', which is no .*muon.*adamw"),
        ("tokens = ", "cannot be read as TOML"),
        ("tokens = 0", "tokens is 0 but must be at least 1"),
        ("seconds = -1", "seconds is -1.0 but must be above 0"),
    ],
)
def test_wrong_file_gets_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence) as error:
        Config.load(path)
    assert "\n" not in str(error.value).split(" as TOML")[0]


def test_missing_file_gets_a_sentence(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Config.load(tmp_path / "none.toml")


def test_sizes_are_published_names_and_impossible_ones_are_refused():
    config = Sizes().deepseek(vocab_size=300, time=64, end_id=0)
    assert config.vocab_size == 300 and config.max_position_embeddings == 64
    names = {field.name for field in fields(Sizes)}
    assert {name: config.to_dict()[name] for name in names - {"vocab_size"}}
    with pytest.raises(UserError, match="hidden_size is 0"):
        Sizes(hidden_size=0).deepseek(300, 64, 0)


def test_toml_is_what_a_parser_reads():
    settings = {"a": 1, "b": None, "c": (Path("x"), Path("y")), "d": {"e": "ü\t'\"", "f": 1e-4, "g": False}}
    parsed = tomllib.loads(to_toml(settings))
    assert parsed == {"a": 1, "c": ["x", "y"], "d": {"e": "ü\t'\"", "f": 1e-4, "g": False}}
