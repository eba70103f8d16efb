"""What each stage does in its folder: it goes on from what stands there, and returns what it has to say."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from layers import DeepSeekModel
from posttrain.distill import Distillation, likeliest
from posttrain.grpo import Objective, Reinforcement
from posttrain.learning import Learning
from posttrain.models import Speaker, load, require_one_vocabulary
from posttrain.progress import StageDisplay
from posttrain.r1 import base, preference
from posttrain.r1.road import CHAINS, OURS
from posttrain.r1.settings import ANSWER, TIME
from posttrain.r1.taste import Apart, Continuations, Mixed, Taste
from posttrain.r1.world import World
from posttrain.rejection import load_chains, reject, save_chains
from posttrain.rewards import ACCURACY, FORMAT, LANGUAGE, Reward
from posttrain.sft import FineTuning, example
from posttrain.stage import Start, Subject, has_begun, restored, run_stage
from train.batches import TrainingBatches
from train.checkpoint import Checkpoints
from train.observe import HeldOut
from train.trainer import Record, State

RL = Learning(optimizer="adamw", lr=5e-4, warmup_steps=5)
FINAL = Learning(optimizer="adamw", lr=5e-4, warmup_steps=5, decay="linear")
COLD = Learning(optimizer="adamw", lr=5e-4, warmup_steps=5, decay="linear")
BLEND = Learning(optimizer="adamw", lr=1e-3, warmup_steps=5, decay="linear")
DISTIL = Learning(optimizer="muon", lr=2e-3, matrix_lr=0.01, warmup_steps=5, decay="linear")
TASTE = 0.1  # share of the prompts of the last stage that are general text
TEXT_ROWS, STUDENT_TEXT_ROWS = 12, 6  # rows of text beside 64 chains
LIKELIEST = 64  # tokens of the teacher's that a student learns from

Work = Callable[[World, Path], dict[str, Any]]


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
    if has_begun(folder):
        if Checkpoints(folder / "checkpoints").latest().name == f"step-{steps:08d}":
            return
        start = restored(folder, learning, steps)
    else:
        start = Start.of(begin(), learning, steps)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OURS).touch()
    subject = make(start)
    after = [*watch(start.speaker.model)]
    if isinstance(subject, Reinforcement):
        after.append(subject.after)
    with StageDisplay(world.display.console) as display:
        run_stage(folder, start, subject, after=after, display=display, save_every=200, bias_speed=bias_speed)


def base_of(hidden_size: int, steps: int, number: int = 0) -> Work:
    """A network of this size from random weights; `number` keeps the seeds of several apart."""

    def work(world: World, folder: Path) -> dict[str, Any]:
        seed = world.road.seed + 1000 * number

        def begin() -> Speaker:
            config = world.road.network(hidden_size, world.tokenizer.vocab_size, world.tokenizer.end_id)
            return Speaker(base.fresh(config, seed), world.tokenizer)

        def make(start: Start) -> FineTuning:
            return base.mixture(world, seed)

        learn(world, folder, begin, make, base.LEARNING, steps, bias_speed=base.BIAS_SPEED)
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
        questions = world.questions(road.cold_chains, 9)
        examples = [example(world.tokenizer, each.prompt, each.chain) for each in questions]
        return FineTuning(examples, TIME, seed=road.seed)

    learn(world, folder, lambda: load(road.out / "base"), make, COLD, road.cold_steps)
    return {}


def harvested(source: str, prompts: int, samples: int) -> Work:
    """Chains by rejection sampling."""

    def work(world: World, folder: Path) -> dict[str, Any]:
        harvest = reject(
            *load(world.road.out / source),
            world.task,
            prompts=prompts,
            samples=samples,
            max_new_tokens=ANSWER,
            seed=world.road.seed,
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / OURS).touch()
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
        text = world.batches(road.seed + 2)
        pairs = preference.make_pairs(load(road.out / "base"), text, road.pairs, (road.seed, 10))
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
    """GRPO with the task's rules and the preference for general text, whose held-out loss is watched.

    Most problems are answered rightly by all samples and hold nothing, so that it is text that moves the
    network. Hence the small share of text, and a learning rate that falls to 0: what is shaken loose of the
    task settles again. (docs/r1.md has what other settings cost.)
    """
    road = world.road
    prefixes = Continuations(world.batches(road.seed + 3), world.tokenizer)
    apart = Apart()

    def make(start: Start) -> Reinforcement:
        more = (LANGUAGE,) if len(road.languages) > 1 else ()
        return Reinforcement(
            *start.speaker,
            Mixed(world.task, prefixes, TASTE),
            (ACCURACY, FORMAT, *more, Taste(load(road.out / "preference")).reward()),
            Objective(max_new_tokens=ANSWER),
            seed=road.seed,
            say=world.display.say,
            inspect=apart.inspect,
        )

    def watch(model: DeepSeekModel) -> list[Callable[[State, Record], None]]:
        return [apart, HeldOut(model, world.held_out, steps=5, batch=32, time=TIME)]

    learn(world, folder, lambda: load(road.out / "blend"), make, FINAL, road.final_steps, watch=watch)
    return {}


def taught(student: str, logits: bool = False) -> Work:
    """Teach a student's base the teacher's chains, or the teacher's distributions over their tokens."""

    def work(world: World, folder: Path) -> dict[str, Any]:
        road = world.road

        def make(start: Start) -> FineTuning:
            chains = load_chains(road.school / "lessons" / CHAINS)
            examples = [example(world.tokenizer, chain.prompt, chain.completion) for chain in chains]
            given: dict[str, Any] = {"examples": examples, "time": TIME, "seed": road.seed}
            given |= {"text": world.batches(road.seed + 4), "text_rows": STUDENT_TEXT_ROWS}
            if not logits:
                return FineTuning(**given)
            teacher = load(road.school / "blend")
            require_one_vocabulary(teacher.tokenizer, world.tokenizer)
            return Distillation(**given).taught_by(likeliest(teacher.model, examples, LIKELIEST))

        learn(world, folder, lambda: load(road.out / student), make, DISTIL, road.distil_steps)
        return {}

    return work
