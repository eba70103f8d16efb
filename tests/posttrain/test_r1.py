"""The road to R1 on a tiny network: every stage runs, and a road that was cut short ends where others do."""

import html
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from layers import DeepSeekModel
from posttrain.__main__ import command
from posttrain.ledger import Ledger
from posttrain.models import load
from posttrain.r1 import Road, base, go, preference, stages, travel, works
from posttrain.r1.report import write_report
from posttrain.r1.road import DONE, choose, prepare
from posttrain.r1.seeds import differences, over
from posttrain.rejection import Chain, Harvest
from posttrain.stage import run_stage
from posttrain.tasks import draw_many
from train.cache import write_aside
from train.checkpoint import Checkpoints, load_model
from train.errors import UserError
from train.progress import Display

WORDS = "the end of a long line is where the next one begins and nobody knows why it is so".split()
TOLD = {"pass_1", "greedy", "pass_k", "cons_k", "think_rate", "length", "by_level", "bits_per_byte"}


def harvest(model, tokenizer, task, *, prompts, **others):
    """A network of three steps answers nothing rightly, so the task writes the chains in its place."""
    return Harvest([Chain(q.prompt, q.chain, q.level) for q in draw_many(task, 70, 1)], prompts, {})


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Fewer problems and pairs than a real road has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(works, "reject", harvest)
        patch.setattr(works, "LIKELIEST", 8)
        patch.setattr(base, "POOL", 200)
        patch.setattr(preference, "HELD_OUT_PAIRS", 16)
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Some text to read."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("text")
    for number in range(60):
        (folder / f"{number}.txt").write_text(" ".join(rng.choice(WORDS, 150)))
    return folder


def tiny(out: Path, text: Path, **changes) -> Road:
    steps = "zero cold policy blend final preference distil student_rl".split()
    few = {f"{name}_steps": 2 for name in steps}
    sizes = {"hidden_size": 16, "students": (8,), "vocab_size": 280, "harvest": 8, "pairs": 16, "prompts": 4}
    road = Road(out=out, text=(text,), base_steps=3, student_steps=2, cold_chains=20, **few, **sizes)
    return replace(road, **changes)


def went(asked: Road):
    return travel(asked, stages(asked), Display(), after=write_report)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text):
    """A road from its beginning to its end."""
    asked = tiny(tmp_path_factory.mktemp("roads") / "whole", text)
    return asked, went(asked)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {name: p.data for name, p in load(folder).model.named_parameters()}


def equal(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_every_stage_is_judged_on_its_own_prompts_and_told(whole):
    asked, results = whole
    assert list(results) == [stage.name for stage in stages(asked)]
    for stage in stages(asked):
        found = json.loads((asked.out / stage.name / DONE).read_text())
        assert found == results[stage.name] and found["seconds"] > 0
        assert ("evaluation" in found) == stage.speaks
        if stage.speaks:
            assert TOLD <= set(found["evaluation"]) and found["evaluation"]["pass_1"]["n"] == asked.prompts
    assert 0 <= results["preference"]["held_out_accuracy"]["value"] <= 1
    page = (asked.out / "report.html").read_text()
    assert page.count("<svg") >= 6 and all(html.escape(stage.title) in page for stage in stages(asked))


def test_each_stage_starts_from_what_it_needs(whole):
    """Reinforcement without a right answer changes nothing; fine-tuning does."""
    out = whole[0].out
    assert equal(out / "base", out / "zero")
    for source, name in (("base", "cold"), ("base", "blend"), ("student-8", "student-8-sft")):
        assert not equal(out / source, out / name)
    assert not equal(out / "blend", out / "no-text")
    assert not equal(out / "student-8-sft", out / "student-8-logits")


def test_a_road_that_was_stopped_goes_on_to_the_same_networks(whole, text, tmp_path, monkeypatch):
    """Stopped within the base, within the blend, and between stages."""
    asked = tiny(tmp_path / "cut", text)

    class Killed(Exception):
        pass

    def until(folder, start, subject, *, after=(), **options):
        def stop(state, record):
            if folder.name in ("base", "blend") and state.step == 2 and folder not in stopped:
                stopped.add(folder)
                raise Killed

        run_stage(folder, start, subject, after=[*after, stop], **options | {"save_every": 1})

    stopped: set[Path] = set()
    monkeypatch.setattr(works, "run_stage", until)
    for _ in range(2):
        with pytest.raises(Killed):
            went(replace(asked, stages=("blend",)))
    went(replace(asked, stages=("blend",)))
    assert len(stopped) == 2
    for name in ("base", "cold", "policy", "blend"):
        assert equal(asked.out / name, whole[0].out / name), name
    assert not (asked.out / "final").exists()


def test_what_is_done_is_not_done_again(whole):
    asked, results = whole
    before = {path: path.stat().st_mtime_ns for path in asked.out.glob("*/done.json")}
    assert went(asked) == results
    assert {path: path.stat().st_mtime_ns for path in asked.out.glob("*/done.json")} == before


def test_ones_own_checkpoint_takes_the_place_of_a_stage(whole, text, tmp_path, capsys):
    asked = tiny(tmp_path / "own", text, stages=("zero",))
    newest = Checkpoints(whole[0].out / "cold" / "checkpoints").latest()
    shutil.copytree(newest, asked.out / "base")
    shutil.copy(whole[0].out / "cold" / "tokenizer.json", asked.out / "base")
    results = went(asked)
    assert results["base"]["taken"] and "as it was found" in capsys.readouterr().out
    ours = load_model(newest).named_parameters()
    assert all(np.array_equal(weights(asked.out / "zero")[name], p.data) for name, p in ours)


def test_a_checkpoint_of_another_vocabulary_is_refused(whole, text, tmp_path):
    asked = tiny(tmp_path / "other", text, stages=("zero",), vocab_size=270)
    prepare(asked)
    shutil.copytree(whole[0].out / "base", asked.out / "base", ignore=shutil.ignore_patterns("begun", DONE))
    with pytest.raises(UserError, match="another vocabulary"):
        went(asked)


def test_stages_are_chosen_with_what_they_need(tmp_path, text):
    found = stages(tiny(tmp_path, text))
    assert [s.name for s in choose(found, ("chains",))] == ["base", "cold", "policy", "chains"]
    assert [s.name for s in choose(found, ())] == [s.name for s in found]
    for number, stage in enumerate(found):
        assert set(stage.needs) <= {each.name for each in found[:number]}
    with pytest.raises(UserError, match="no stage 'hot', only base, zero"):
        choose(found, ("cold", "hot"))


def test_students_of_several_seeds_share_a_teacher_and_are_compared(whole, text, tmp_path, capsys):
    out = tmp_path / "students"
    asked = tiny(out, text, teacher=whole[0].out, seeds=(5, 6), students=(8,))
    assert [s.name for s in stages(asked)] == [f"student-8{way}" for way in ("", "-rl", "-sft", "-logits")]
    go(asked, Display())
    told = capsys.readouterr().out
    found = json.loads((out / "seeds.json").read_text())
    each = [json.loads((out / f"seed-{seed}" / "student-8-sft" / DONE).read_text()) for seed in (5, 6)]
    bits = [one["evaluation"]["bits_per_byte"] for one in each]
    mean = found["stages"]["student-8-sft"]["bits_per_byte"]
    assert mean["each"] == bits and mean["value"] == pytest.approx(np.mean(bits))
    assert mean["of_seeds"] == pytest.approx(np.std(bits, ddof=1) / 2**0.5)
    names = ("student-8", "student-8-rl", "student-8-sft", "student-8-logits")
    expected = {"rl": "", "sft": "-rl", "logits": "-rl"}
    assert set(found["stages"]) == set(names)
    assert {f"student-8-{a} against student-8{b}" for a, b in expected.items()} < set(found["against"])
    assert not equal(out / "seed-5" / "student-8", out / "seed-6" / "student-8")
    assert (out / "seeds.md").read_text() in told
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/done.json")}
    go(asked, Display())
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*/done.json")} == before


@pytest.mark.parametrize("stage", ["student-8", "student-8-sft", "student-8-logits"])
def test_a_teacher_of_another_vocabulary_is_refused_before_anything_is_done(whole, text, tmp_path, stage):
    asked = tiny(tmp_path / "s", text, teacher=whole[0].out, vocab_size=270, stages=(stage,))
    with pytest.raises(UserError, match="blend is of another vocabulary"):
        went(asked)
    assert not asked.out.exists()


def test_a_teacher_that_is_not_there_is_refused_before_anything_is_done(text, tmp_path):
    asked = tiny(tmp_path / "s", text, teacher=tmp_path / "typo")
    with pytest.raises(UserError, match="there is no .*typo/lessons/chains.jsonl: name a road"):
        went(asked)
    assert not asked.out.exists()


def test_means_over_seeds_by_hand():
    """Two values 1 and 3 with errors 3 and 4: mean 2, of seeds sqrt(2) / sqrt(2), of prompts 5 / 2."""
    found = over([1.0, 3.0], [3.0, 4.0])
    assert found.pop("each") == [1.0, 3.0]
    assert found == pytest.approx({"value": 2.0, "of_seeds": 1.0, "of_prompts": 2.5})
    assert over([1.0, 3.0], [])["of_prompts"] is None  # not 0, which would be no error at all


def test_differences_over_seeds_by_hand():
    """Of each seed b - a; its error the root of both squares: 5 and 13, so of prompts sqrt(194) / 2."""

    def told(value, error):
        shares = {key: {"value": value, "error": error} for key in ("pass_1", "mixed_rate")}
        return {**shares, "bits_per_byte": 2 * value}

    pairs = {"base": [told(1.0, 3.0), told(1.0, 5.0)], "zero": [told(2.0, 4.0), told(4.0, 12.0)]}
    found = differences(pairs)["zero against base"]
    for key in ("pass_1", "mixed_rate"):
        assert found[key]["each"] == [1.0, 3.0] and found[key]["of_prompts"] == pytest.approx(194**0.5 / 2)
    assert found["bits_per_byte"]["each"] == [2.0, 6.0] and found["bits_per_byte"]["of_prompts"] is None


def test_two_notations_add_a_stage(tmp_path, text):
    names = [s.name for s in stages(tiny(tmp_path, text, languages=("latin", "greek")))]
    assert names[:3] == ["base", "zero", "zero-language"]


def test_a_folder_keeps_to_its_settings(tmp_path):
    asked = Road(out=tmp_path / "r")
    prepare(asked)
    prepare(replace(asked, stages=("zero",), students=()))
    with pytest.raises(UserError, match="hidden_size is 64 in .* and cannot become 32"):
        prepare(replace(asked, hidden_size=32))
    write_aside(tmp_path / "x" / "notes.txt", b"mine")
    with pytest.raises(UserError, match="holds something else"):
        prepare(replace(asked, out=tmp_path / "x"))


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("prompts", 1, "prompts is 1"),
        ("think_share", 1.0, "think_share is 1.0"),
        ("languages", ("latin", "runic"), "runic"),
        ("students", (48, 48), "different sizes"),
        ("students", (4,), "from 8 up"),
        ("zero_steps", 0, "zero_steps is 0"),
        ("seeds", (3,), "at least two"),
        ("seeds", (3, 3), "at least two"),
    ],
)
def test_settings_that_cannot_be(setting, value, words):
    with pytest.raises(UserError, match=words):
        Road(**{setting: value})


def test_a_teacher_needs_students(tmp_path):
    with pytest.raises(UserError, match="no students"):
        Road(teacher=tmp_path, students=())


def test_stages_can_be_listed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command(["r1", "--stages", "list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [stage.name for stage in stages(Road())]
    assert list(tmp_path.iterdir()) == []  # nothing is begun by asking


def test_a_network_of_the_road_reads_its_vocabulary():
    model = DeepSeekModel(Road().network(16, 300, 256), seed=0)
    assert model.config.vocab_size == 300 and model.config.first_k_dense_replace == 1
    with pytest.raises(UserError):
        Road().network(-1, 300, 256)


def test_the_task_of_the_road_is_the_ledger(whole):
    prompts = {each["prompt"] for each in whole[1]["base"]["evaluation"]["examples"]}
    assert prompts <= {p.prompt for p in draw_many(Ledger(), 4, (0, 3), held_out=True)}
