"""The commands from end to end on a network of a few thousand numbers, and what they refuse."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from posttrain.__main__ import command, main
from posttrain.chat import Dimmer, chat, spoken
from posttrain.config import Chat, Grpo, load_settings, save_settings
from posttrain.models import load
from posttrain.sources import FromFile, TaskSettings, check_task
from tests.posttrain.small import make_home, vocabulary
from train.errors import UserError


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A published checkpoint, chains and a task."""
    return make_home(tmp_path_factory.mktemp("posttrain"))


@pytest.fixture(scope="module")
def tuned(home):
    """The model, fine-tuned until it knows the answer."""
    command(f"sft {home}/model {home}/chains.jsonl --out {home}/sft --steps 25 --batch 8 --lr 0.02".split())
    return home / "sft"


def test_the_road_from_chains_to_a_student(home, tuned, capsys):
    task = f"--task {home}/task.jsonl --max-new-tokens 6"
    command(f"eval {tuned} {task} --prompts 2 --samples 4 --temperature 0.3 --json {home}/eval.json".split())
    figures = json.loads((home / "eval.json").read_text())
    assert figures["pass_1"]["value"] > 0.6 and figures["pass_1"]["n"] == 2
    assert "pass@4" in capsys.readouterr().out
    small = "--steps 2 --prompts 2 --group 2 --beta 0.1 --updates 2"
    command(f"grpo {tuned} {task} --out {home}/grpo {small}".split())
    records = [json.loads(line) for line in (home / "grpo" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2] and "k3" in records[0]
    command(f"grpo --resume {home}/grpo --steps 4".split())
    assert len((home / "grpo" / "metrics.jsonl").read_text().splitlines()) == 4
    assert load(home / "grpo").model.config.vocab_size == vocabulary().vocab_size
    small = f"--teacher {tuned} --out {home}/kd --steps 2 --batch 4"
    command(f"distill {home}/model {home}/chains.jsonl {small}".split())
    assert (home / "kd" / "config.toml").read_text().count("beta")


def test_settings_come_back_from_their_file(tmp_path):
    asked = Grpo(steps=7, problems=TaskSettings(levels=(3, 4)))
    save_settings(asked, tmp_path / "config.toml")
    assert load_settings(Grpo(), tmp_path / "config.toml") == asked


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("bogus", "there is no command 'bogus', only sft, grpo"),
        ("sft", "sft needs model"),
        ("sft {0}/model", "sft needs chains"),
        ("sft {0}/nowhere {0}/chains.jsonl", "nowhere is no folder"),
        ("sft {0} {0}/chains.jsonl --out {0}/new", "holds neither checkpoints nor a config.json"),
        ("sft {0}/model {0}/chains.jsonl --out {0}/model", "model exists: go on with --resume"),
        ("sft {0}/model {0}/nothing.jsonl", "nothing.jsonl cannot be read"),
        ("sft {0}/model {0}/chains.jsonl --steps 0", "steps is 0 but must be at least 1"),
        ("sft {0}/model {0}/chains.jsonl --out {0}/new --text-rows 1 --text-time 128", "text_time is 128"),
        ("grpo {0}/model --task norse", "there is no task 'norse'"),
        (
            "grpo {0}/model --task {0}/task.jsonl --max-new-tokens 62 --out {0}/new",
            "the network reads 64 at once",
        ),
        ("grpo {0}/model --out {0}/new --steps 3 --updates 2", "a multiple of updates, which is 2"),
        ("grpo --resume {0}/nowhere", "config.toml does not exist"),
        ("reject {0}/model --out {0}/chains.jsonl", "chains.jsonl exists"),
        ("reject {0}/model --resume {0}/model", "reject has nothing to resume"),
        ("eval {0}/model --prompts 1", "prompts is 1"),
        (
            "eval {0}/model --task {0}/task.jsonl --prompts 60 --max-new-tokens 4",
            "60 different held-out prompts",
        ),
        ("distill {0}/model {0}/chains.jsonl", "distill needs teacher"),
        ("chat {0}/model --threads 0", "threads"),
    ],
)
def test_what_cannot_be_used_is_told_and_nothing_is_written(home, arguments, words):
    before = sorted(home.rglob("*"))
    with pytest.raises(UserError, match=words):
        command(arguments.format(home).split())
    assert sorted(home.rglob("*")) == before


def test_exit_codes_and_help(home, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["posttrain", "bogus"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "error: there is no command" in capsys.readouterr().err
    command(["--help"])
    assert "python -m posttrain grpo MODEL" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{}", "is not like"),
        ('{"prompt": "", "answer": "1"}', "prompt must be a text"),
        ('{"prompt": "x", "answer": null}', "answer a text or number"),
        ('{"prompt": "x", "answer": "1", "level": "hard"}', "level an integer"),
        ("", "holds no problem"),
    ],
)
def test_damaged_tasks_are_told_by_their_line(tmp_path, line, words):
    (tmp_path / "task.jsonl").write_text(line)
    with pytest.raises(UserError, match=words):
        TaskSettings(task=str(tmp_path / "task.jsonl")).make()


def test_problems_of_a_file_are_judged_by_text_or_exact_number(home):
    task = FromFile(home / "task.jsonl")
    problem = task.problems[0]
    assert problem.check("1") and problem.check("1.0") and problem.check("2/2")
    assert not problem.check("1e0") and not problem.check("one")
    assert {p.level for p in FromFile(home / "task.jsonl", (1,)).problems} == {1}
    assert 0 < task.held_out() < 64
    with pytest.raises(UserError, match="holds no problem of levels"):
        FromFile(home / "task.jsonl", (9,))
    check_task(task, vocabulary(), 64, 8)


def test_reasoning_gym_is_asked_for_where_it_is_missing():
    try:
        import reasoning_gym  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="needs the package reasoning-gym"):
            TaskSettings(task="reasoning-gym:chain_sum").make()
    else:
        problem = TaskSettings(task="reasoning-gym:chain_sum").make().sample(np.random.default_rng(0))
        assert problem.check(problem.entry["answer"]) and not problem.check("nothing")


@pytest.mark.parametrize("size", [1, 3, 100])
def test_thoughts_are_told_from_the_rest_however_the_text_is_cut(size):
    text = "a < b <think> x <y </think> so <thinking <answer> 1 </answer> <thi"
    dimmer, found = Dimmer(), []
    for start in range(0, len(text), size):
        found += dimmer.push(text[start : start + size])
    found += dimmer.finish()
    assert "".join(piece for piece, _ in found) == text
    thought = "".join(piece for piece, dim in found if dim)
    assert thought == "<think> x <y </think>"


def test_chat_answers_dims_and_judges(home, tuned, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a i =\n\n" + "a " * 70 + "\n"))
    out = io.StringIO()
    task = TaskSettings(task=str(home / "task.jsonl"))
    asked = Chat(model=tuned, max_new_tokens=6, problems=task)
    chat(asked, Console(file=out, soft_wrap=True, force_terminal=True))
    said = out.getvalue()
    assert "<answer> 1 </answer>" in said and "right" in said
    assert "the network reads 64 at once" in said.replace("\n", " ")
    out = io.StringIO()
    chat(Chat(model=tuned, prompt="a i =", max_new_tokens=6), Console(file=out, soft_wrap=True))
    assert out.getvalue().strip() == "<answer> 1 </answer>"
    assert spoken(vocabulary(), "a i =") == " a i ="
