"""The stages of DeepSeek-R1 (section 2.3), R1-Zero before them and students after, in order.

base --------- R1-Zero                                     reinforcement on the base itself
base -- cold -- policy -- chains                           few clean chains; reinforcement; rejection
base -- blend (chains and text) -- final                   fine-tuning anew; reinforcement with taste
blend -- lessons --> students                              beside reinforcement of the same small base
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from layers import DeepSeekModel
from posttrain.distill import Distillation, likeliest
from posttrain.grpo import Objective, Reinforcement
from posttrain.learning import Learning
from posttrain.models import Speaker, load
from posttrain.progress import StageDisplay
from posttrain.r1 import base, preference
from posttrain.r1.road import Stage
from posttrain.r1.settings import ANSWER, TIME, Road
from posttrain.r1.world import World
from posttrain.rejection import load_chains, reject, save_chains
from posttrain.rewards import ACCURACY, FORMAT, LANGUAGE, Reward
from posttrain.sft import FineTuning, example
from posttrain.stage import Start, Subject, has_begun, restored, run_stage
from posttrain.tasks import draw_many
from train.batches import TrainingBatches
from train.checkpoint import Checkpoints
from train.observe import HeldOut

CHAINS = "chains.jsonl"
OURS = "begun"  # a stage that we began; without it a folder with checkpoints is somebody's own run
RL = Learning(optimizer="adamw", lr=5e-4, warmup_steps=5)
COLD = Learning(optimizer="adamw", lr=5e-4, warmup_steps=5, decay="linear")
BLEND = Learning(optimizer="adamw", lr=1e-3, warmup_steps=5, decay="linear")
DISTIL = Learning(optimizer="muon", lr=2e-3, matrix_lr=0.01, warmup_steps=5, decay="linear")
TASTE = 0.25  # share of the prompts of the last stage that are general text


def stages(road: Road) -> list[Stage]:
    """All stages of a road, each behind what it needs."""
    found = [
        Stage(
            "base",
            "base: text, and the task with few thoughts",
            (),
            base_of(road.hidden_size, 0),
            seconds=130,
        ),
        Stage(
            "zero",
            "R1-Zero: reinforcement on the base itself",
            ("base",),
            reinforced("base", road.zero_steps),
        ),
    ]
    if len(road.languages) > 1:
        found.append(
            Stage(
                "zero-language",
                "R1-Zero with a reward for keeping to one notation",
                ("base",),
                reinforced("base", road.zero_steps, (LANGUAGE,)),
            )
        )
    found += [
        Stage("cold", "1. cold start: a few clean chains", ("base",), cold, seconds=5),
        Stage(
            "policy",
            "2. reinforcement of the cold start",
            ("cold",),
            reinforced("cold", road.policy_steps, road_rewards(road)),
        ),
        Stage(
            "chains", "3. rejection sampling", ("policy",), harvested("policy", 1, 4), speaks=False, seconds=5
        ),
        Stage(
            "blend",
            "4. the base on chains and general text",
            ("base", "chains"),
            tuned("base", text_rows=12),
            seconds=12,
        ),
        Stage(
            "no-text",
            "the same without general text",
            ("base", "chains"),
            tuned("base", text_rows=0),
            seconds=9,
        ),
        Stage("preference", "a preference for real text", ("base",), preferred, speaks=False, seconds=45),
        Stage("final", "5. reinforcement with rules and taste", ("blend", "preference"), final, seconds=12),
        Stage(
            "lessons",
            "chains for the students",
            ("blend",),
            harvested("blend", 4, 1),
            speaks=False,
            seconds=6,
        ),
    ]
    for number, size in enumerate(road.students, start=1):
        name = f"student-{size}"
        found += [
            Stage(name, f"student {size}: its base", (), base_of(size, number), seconds=100),
            Stage(
                f"{name}-rl",
                f"student {size}: reinforcement",
                (name,),
                reinforced(name, road.student_rl_steps),
            ),
            Stage(
                f"{name}-sft",
                f"student {size}: the teacher's chains",
                (name, "lessons"),
                taught(name),
                seconds=15,
            ),
            Stage(
                f"{name}-logits",
                f"student {size}: the teacher's logits",
                (name, "lessons", "blend"),
                taught(name, logits=True),
                seconds=20,
            ),
        ]
    return found


def road_rewards(road: Road) -> Sequence[Reward]:
    """What reinforcement rewards beside accuracy and shape."""
    return (LANGUAGE,) if len(road.languages) > 1 else ()


def learn(
    world: World,
    folder: Path,
    begin: Callable[[], Speaker],
    make: Callable[[Start], Subject],
    learning: Learning,
    steps: int,
    *,
    bias_speed: float = 0.0,
    watch: Callable[[DeepSeekModel], Sequence[Any]] = lambda model: (),
) -> None:
    """Train in a folder: from the beginning, or from where it stopped; not at all where all is done."""
    mark = folder / OURS
    if has_begun(folder):
        if not mark.exists() or Checkpoints(folder / "checkpoints").latest().name == f"step-{steps:08d}":
            return
        start = restored(folder, learning, steps)
    else:
        start = Start.of(begin(), learning, steps)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    subject = make(start)
    after = [*watch(start.speaker.model)]
    if isinstance(subject, Reinforcement):
        after.append(subject.after)
    display = StageDisplay(world.display.console)
    with display:
        run_stage(folder, start, subject, after=after, display=display, save_every=200, bias_speed=bias_speed)


Work = Callable[[World, Path], dict[str, Any]]


def base_of(hidden_size: int, number: int) -> Work:
    """A network of this size from random weights; `number` keeps seeds of several apart."""

    def work(world: World, folder: Path) -> dict[str, Any]:
        road, seed = world.road, world.road.seed + 100 * number

        def begin() -> Speaker:
            config = road.network(hidden_size, world.tokenizer.vocab_size, world.tokenizer.end_id)
            return Speaker(DeepSeekModel(config, seed=seed), world.tokenizer)

        steps = road.student_steps if number else road.base_steps
        learn(
            world,
            folder,
            begin,
            lambda start: base.mixture(world, seed),
            base.LEARNING,
            steps,
            bias_speed=base.BIAS_SPEED,
        )
        return {"parameters": sum(p.data.size for _, p in load(folder).model.named_parameters())}

    return work


def reinforced(source: str, steps: int, more: Sequence[Reward] = ()) -> Work:
    """GRPO on what another stage left, by accuracy and shape and what else is rewarded."""

    def work(world: World, folder: Path) -> dict[str, Any]:
        def make(start: Start) -> Reinforcement:
            return Reinforcement(
                *start.speaker,
                world.task,
                (ACCURACY, FORMAT, *more),
                Objective(max_new_tokens=ANSWER),
                seed=world.road.seed,
                say=world.display.say,
            )

        learn(world, folder, lambda: load(world.road.out / source), make, RL, steps)
        return {}

    return work


def cold(world: World, folder: Path) -> dict[str, Any]:
    """Fine-tune the base on clean chains, which here the task itself writes."""
    road = world.road

    def make(start: Start) -> FineTuning:
        questions = draw_many(world.task, road.cold_chains, (road.seed, 9))
        examples = [example(world.tokenizer, each.prompt, each.chain) for each in questions]
        return FineTuning(examples, TIME, seed=road.seed)

    learn(world, folder, lambda: load(road.out / "base"), make, COLD, road.cold_steps)
    return {}


def harvested(source: str, times: int, samples: int) -> Work:
    """Chains by rejection sampling, of `times` the road's number of prompts."""

    def work(world: World, folder: Path) -> dict[str, Any]:
        harvest = reject(
            *load(world.road.out / source),
            world.task,
            prompts=times * world.road.harvest,
            samples=samples,
            max_new_tokens=ANSWER,
            seed=world.road.seed,
        )
        folder.mkdir(parents=True, exist_ok=True)
        save_chains(folder / CHAINS, harvest.chains)
        return {"kept": len(harvest.chains), "levels": harvest.levels, "lines": harvest.lines()}

    return work


def tuned(source: str, text_rows: int) -> Work:
    """Fine-tune what another stage left on the chains, beside so many rows of text."""

    def work(world: World, folder: Path) -> dict[str, Any]:
        road = world.road

        def make(start: Start) -> FineTuning:
            chains = load_chains(road.out / "chains" / CHAINS)
            examples = [example(world.tokenizer, chain.prompt, chain.completion) for chain in chains]
            text = world.batches(road.seed + 1)
            return FineTuning(examples, TIME, text=text, text_rows=text_rows, seed=road.seed)

        learn(world, folder, lambda: load(road.out / source), make, BLEND, road.blend_steps)
        return {}

    return work


def preferred(world: World, folder: Path) -> dict[str, Any]:
    """A network that tells real from sampled text; how well it does is measured on held-out text."""
    road, end_id = world.road, world.tokenizer.end_id

    def make(start: Start) -> preference.Preference:
        pairs = preference.make_pairs(
            load(road.out / "base"), world.batches(road.seed + 2), road.pairs, (road.seed, 10)
        )
        return preference.Preference(pairs, end_id, road.seed)

    learn(world, folder, lambda: load(road.out / "base"), make, preference.LEARNING, road.preference_steps)
    held_out = preference.make_pairs(
        load(road.out / "base"),
        TrainingBatches(world.held_out, time=TIME, seed=road.seed),
        preference.HELD_OUT_PAIRS,
        (road.seed, 11),
    )
    found = preference.accuracy(load(folder).model, held_out, end_id)
    return {"held_out_accuracy": found._asdict(), "lines": [f"prefers real text: {found}, chance 0.5"]}


def final(world: World, folder: Path) -> dict[str, Any]:
    """GRPO with the task's rules and the preference for general text, whose held-out loss is watched."""
    road = world.road
    taste = preference.Taste(load(road.out / "preference"))
    prefixes = preference.Continuations(world.batches(road.seed + 3), world.tokenizer)

    def make(start: Start) -> Reinforcement:
        return Reinforcement(
            *start.speaker,
            preference.Mixed(world.task, prefixes, TASTE),
            (ACCURACY, FORMAT, *road_rewards(road), taste.reward()),
            Objective(max_new_tokens=ANSWER),
            seed=road.seed,
            say=world.display.say,
        )

    def watch(model: DeepSeekModel) -> list[HeldOut]:
        return [HeldOut(model, world.held_out, steps=5, batch=32, time=TIME)]

    learn(world, folder, lambda: load(road.out / "blend"), make, RL, road.final_steps, watch=watch)
    return {}


def taught(student: str, logits: bool = False) -> Work:
    """Teach a student's base the teacher's chains, or the teacher's distributions over their tokens."""

    def work(world: World, folder: Path) -> dict[str, Any]:
        road = world.road

        def make(start: Start) -> FineTuning:
            chains = load_chains(road.out / "lessons" / CHAINS)
            examples = [example(world.tokenizer, chain.prompt, chain.completion) for chain in chains]
            text = world.batches(road.seed + 4)
            given = {"examples": examples, "time": TIME, "text": text, "text_rows": 6, "seed": road.seed}
            if not logits:
                return FineTuning(**given)
            teacher = load(road.out / "blend").model
            return Distillation(**given).taught_by(likeliest(teacher, examples, 64))

        learn(world, folder, lambda: load(road.out / student), make, DISTIL, road.distil_steps)
        return {}

    return work
