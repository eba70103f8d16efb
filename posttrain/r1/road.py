"""Stages one after the other, each in its folder: done ones are kept, begun ones go on, others begin.

A stage is done when its folder has `done.json`. To replace one, put a run or a published checkpoint of your
own in its place: it is taken as it is, and judged. To do one anew, delete its folder, and those of the stages
that come from it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from posttrain.config import load_settings, save_settings
from posttrain.evaluation import evaluate
from posttrain.models import Speaker, load
from posttrain.r1.settings import ANSWER, Road
from posttrain.r1.world import World, make_world
from train.cache import write_aside
from train.errors import UserError
from train.progress import Display, minutes

DONE, SETTINGS = "done.json", "road.toml"
CHAINS = "chains.jsonl"
OURS = "begun"  # a stage that we began; without it what stands in its folder is somebody's own
JUDGING = 2.0  # seconds, about, that a network is judged
EXAMPLES = 4

Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """One stage. work(world, folder) does it, going on from what stands in the folder, and returns what it
    has to say beside the evaluation.
    """

    name: str
    title: str
    shows: str  # in a sentence
    needs: tuple[str, ...]
    work: Callable[[World, Path], dict[str, Any]]
    speaks: bool = True
    """Whether it ends with a network that is judged."""
    seconds: float = 20.0
    """About how long the work takes, for the time that is left."""


def travel(
    road: Road,
    stages: Sequence[Stage],
    display: Display,
    after: Callable[[Path, Results], object] = lambda out, results: None,
) -> Results:
    """Do what is not done yet of the road; the results of all stages by name. Raises UserError.

    after(out, results) is called behind each stage.
    """
    chosen = choose(stages, road.stages)
    world = make_world(road, display)
    if road.teacher is not None:
        require_teacher(world, road.teacher)
    prepare(road, [stage.name for stage in stages])
    results: Results = {}
    planned = spent = 0.0
    for number, stage in enumerate(chosen, start=1):
        folder = road.out / stage.name
        if (folder / DONE).exists():
            results[stage.name] = json.loads((folder / DONE).read_text("utf-8"))
            display.say(f"[{number}/{len(chosen)}] {stage.title}: done before")
            continue
        left = sum(map(expected, (each for each in chosen[number - 1 :] if not is_done(road, each))))
        left *= spent / planned if planned else 1.0  # this machine may be slower, or faster
        display.say(f"[{number}/{len(chosen)}] {stage.title}. {stage.shows} (all: {minutes(left)} left)")
        began = perf_counter()
        results[stage.name] = do(stage, world, folder)
        planned, spent = planned + expected(stage), spent + perf_counter() - began
        display.say(f"    {summary(results[stage.name])}")
        after(road.out, results)
    return results


def is_done(road: Road, stage: Stage) -> bool:
    """Whether a stage has its results."""
    return (road.out / stage.name / DONE).exists()


def expected(stage: Stage) -> float:
    """Seconds that a stage takes, about."""
    return stage.seconds + JUDGING * stage.speaks


def choose(stages: Sequence[Stage], names: Sequence[str]) -> list[Stage]:
    """The named stages with all that they need, in order; all of them if none is named."""
    known = {stage.name: stage for stage in stages}
    for name in names:
        if name not in known:
            raise UserError(f"there is no stage {name!r}, only {', '.join(known)}")
    wanted = list(names or known)
    for name in wanted:
        wanted += [need for need in known[name].needs if need not in wanted]
    return [stage for stage in stages if stage.name in wanted]


def prepare(road: Road, names: Sequence[str] = ()) -> None:
    """Make the road's folder and write its settings, or see that what stands there is of the same road.

    In a new one, folders of these names may stand already: somebody put them in the place of stages.
    """
    settings = road.out / SETTINGS
    if settings.exists():
        before = load_settings(Road(), settings)
        for name, value in vars(before).items():
            if name not in ("out", "stages", "students", "seeds") and value != getattr(road, name):
                raise UserError(
                    f"{name} is {value} in {road.out} and cannot become {getattr(road, name)}: name another "
                    "folder by --out, or delete it"
                )
    elif road.out.exists() and any(found.name not in names for found in road.out.iterdir()):
        raise UserError(f"{road.out} holds something else: name another folder by --out, or delete it")
    road.out.mkdir(parents=True, exist_ok=True)
    save_settings(road, settings)


def require_teacher(world: World, teacher: Path) -> None:
    """Raise UserError where another road has not what students learn from, or speaks otherwise."""
    if not (lessons := teacher / "lessons" / CHAINS).is_file():
        raise UserError(
            f"there is no {lessons}: name a road by --teacher whose stages blend and lessons are done"
        )
    require_vocabulary(world, teacher / "blend", "take the teacher's text, vocab_size and languages")


def require_vocabulary(world: World, folder: Path, remedy: str) -> None:
    """Raise UserError where the network of a folder reads another vocabulary than the road's."""
    theirs = load(folder).tokenizer
    if theirs.sha256 != world.tokenizer.sha256:
        raise UserError(
            f"{folder} is of another vocabulary ({theirs.vocab_size} tokens, sha256 {theirs.sha256[:12]}) "
            f"than this road ({world.tokenizer.vocab_size}, {world.tokenizer.sha256[:12]}): {remedy}"
        )


def do(stage: Stage, world: World, folder: Path) -> dict[str, Any]:
    """Do one stage, judge its network, write down that it is done."""
    began = perf_counter()
    told = taken(world, folder) if is_foreign(folder) else stage.work(world, folder)
    results = {"title": stage.title, "shows": stage.shows, "seconds": perf_counter() - began, **told}
    if stage.speaks:
        results["evaluation"] = judged(world, load(folder))
    text = json.dumps(results, indent=2) + "\n"
    write_aside(folder / DONE, text.encode())
    return json.loads(text)


def is_foreign(folder: Path) -> bool:
    """Whether somebody put something of their own in a stage's place."""
    return folder.exists() and any(folder.iterdir()) and not (folder / OURS).exists()


def taken(world: World, folder: Path) -> dict[str, Any]:
    """Somebody's own network in place of a stage. Raises UserError where it reads another vocabulary."""
    remedy = "take a network of a road with the same text, vocab_size and languages, or delete the folder"
    require_vocabulary(world, folder, remedy)
    return {"taken": True, "lines": ["as it was found"]}


def judged(world: World, speaker: Speaker) -> dict[str, Any]:
    """All figures of a network, with some of its answers."""
    found = evaluate(
        speaker.model,
        speaker.tokenizer,
        world.task,
        prompts=world.road.prompts,
        max_new_tokens=ANSWER,
        seed=world.road.seed,
        **world.judged_text(),
    )
    examples = [
        {"prompt": each.problem.prompt, "said": each.texts[0], "right": bool(each.right[0])}
        for each in found.judged[:EXAMPLES]
    ]
    return {**found.to_dict(), "examples": examples}


def summary(results: Mapping[str, Any]) -> str:
    """A stage in one line."""
    found = [f"{results['seconds']:.0f} s"]
    if evaluation := results.get("evaluation"):
        pass_1 = evaluation["pass_1"]
        found += [
            f"pass@1 {pass_1['value']:.3f} ± {pass_1['error']:.3f}",
            f"greedy {evaluation['greedy']['value']:.3f}",
            f"pass@{evaluation['k']} {evaluation['pass_k']['value']:.3f}",
            f"think {evaluation['think_rate']['value']:.3f}",
            f"length {evaluation['length']['value']:.1f}",
            f"{evaluation['bits_per_byte']:.3f} bits/byte",
        ]
    return "  ".join(found + results.get("lines", []))
