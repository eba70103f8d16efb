"""What each command does: load, check, run, tell. Nothing is written before all of it can be used."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain import config
from posttrain.config import save_settings
from posttrain.distill import Distillation, likeliest
from posttrain.evaluation import evaluate
from posttrain.grpo import Reinforcement
from posttrain.learning import Learning
from posttrain.models import Speaker, copy_of, load, require_one_vocabulary
from posttrain.progress import StageDisplay
from posttrain.rejection import load_chains, reject, save_chains
from posttrain.rewards import ACCURACY, FORMAT, LANGUAGE
from posttrain.sft import FineTuning, example
from posttrain.sources import check_task
from posttrain.stage import Start, restored, run_stage
from train.batches import Tokens, TrainingBatches, tokenize
from train.cache import write_aside
from train.data import load_corpus
from train.errors import UserError


def begun(model: Path, out: Path, learning: Learning, steps: int, going_on: bool) -> Start:
    """Where a run starts: from a model, or from its own newest checkpoint."""
    if going_on:
        return restored(out, learning, steps)
    if out.exists():
        raise UserError(f"{out} exists: go on with --resume {out}, name another by --out, or delete it")
    return Start.of(load(model), learning, steps)


def text_of(asked: config.Text, speaker: Speaker, display: StageDisplay) -> tuple[Tokens, Tokens]:
    """General text as ids: to train on, and held out."""
    if asked.text_time > speaker.model.config.max_position_embeddings:
        raise UserError(
            f"text_time is {asked.text_time} but the network reads "
            f"{speaker.model.config.max_position_embeddings} tokens at once"
        )
    corpus = load_corpus(asked.text, display.say)
    return tokenize(corpus.train, speaker.tokenizer), tokenize(corpus.held_out, speaker.tokenizer)


def sft(asked: config.Sft, going_on: bool, display: StageDisplay) -> None:
    """Fine-tune, by the chains alone or by a teacher's logits too."""
    chains = load_chains(asked.chains)
    start = begun(asked.model, asked.out, asked.learning, asked.steps, going_on)
    speaker = start.speaker
    examples = [example(speaker.tokenizer, chain.prompt, chain.completion) for chain in chains]
    given: dict[str, Any] = {
        "examples": examples,
        "time": speaker.model.config.max_position_embeddings,
        "batch": asked.batch,
        "micro_batch": asked.micro_batch,
        "text_weight": asked.text.text_weight,
        "seed": asked.seed,
    }
    check_lengths(examples, given["time"])
    if asked.text.text_rows:
        train_text, _ = text_of(asked.text, speaker, display)
        given["text"] = TrainingBatches(train_text, time=asked.text.text_time, seed=asked.seed)
        given["text_rows"] = asked.text.text_rows
    subject = FineTuning(**given)
    if isinstance(asked, config.Distill):
        teacher = load(asked.teacher)
        require_one_vocabulary(teacher.tokenizer, speaker.tokenizer)
        display.say(f"the teacher reads {len(examples)} chains")
        found = likeliest(teacher.model, examples, asked.k)
        subject = Distillation(**given, beta=asked.beta, temperature=asked.temperature).taught_by(found)
    asked.out.mkdir(parents=True, exist_ok=True)
    save_settings(asked, asked.out / "config.toml")
    with display:
        run_stage(asked.out, start, subject, display=display, save_every=asked.save_every)
    display.say(f"{asked.out} holds the model: python -m posttrain eval {asked.out}")


def check_lengths(examples: list, limit: int) -> None:
    """Raise UserError for a chain that the network cannot read whole."""
    for number, each in enumerate(examples, start=1):
        if len(each.prompt) == 0 or len(each.prompt) + len(each.completion) - 1 > limit:
            raise UserError(
                f"chain {number} has {len(each.prompt)} + {len(each.completion)} tokens but the network "
                f"reads {limit} at once, at least one of them a prompt: leave it out or shorten it"
            )


def grpo(asked: config.Grpo, going_on: bool, display: StageDisplay) -> None:
    """Reinforce by accuracy, shape and, if asked, notation."""
    task, objective = asked.problems.make(), asked.objective
    start = begun(asked.model, asked.out, asked.learning, asked.steps, going_on)
    model, tokenizer = start.speaker
    check_task(task, tokenizer, model.config.max_position_embeddings, objective.max_new_tokens)
    if objective.beta and start.reference is None:
        start = replace(start, reference=copy_of(model))
    rewards = [ACCURACY]
    for rule, weight in ((FORMAT, asked.format_weight), (LANGUAGE, asked.language_weight)):
        if weight:
            rewards.append(replace(rule, weight=weight))
    subject = Reinforcement(
        model, tokenizer, task, rewards, objective, start.reference, seed=asked.seed, say=display.say
    )
    asked.out.mkdir(parents=True, exist_ok=True)
    save_settings(asked, asked.out / "config.toml")
    with display:
        run_stage(
            asked.out,
            start,
            subject,
            after=[subject.after],
            display=display,
            save_every=asked.save_every,
            multiple=objective.updates,
        )
    display.say(f"{asked.out} holds the model: python -m posttrain eval {asked.out}")


def rejected(asked: config.Reject, display: StageDisplay) -> None:
    """Sample and keep."""
    if asked.out.exists():
        raise UserError(f"{asked.out} exists: name another file by --out, or delete it")
    task, (model, tokenizer) = asked.problems.make(), load(asked.model)
    check_task(task, tokenizer, model.config.max_position_embeddings, asked.max_new_tokens)
    harvest = reject(
        model,
        tokenizer,
        task,
        prompts=asked.prompts,
        samples=asked.samples,
        cap=asked.cap,
        max_new_tokens=asked.max_new_tokens,
        temperature=asked.temperature,
        seed=asked.seed,
    )
    save_chains(asked.out, harvest.chains)
    for line in harvest.lines():
        display.say(line)
    display.say(f"{asked.out} holds the chains: python -m posttrain sft MODEL {asked.out}")


def evaluated(asked: config.Eval, display: StageDisplay) -> None:
    """Judge and show."""
    task, speaker = asked.problems.make(), load(asked.model)
    model, tokenizer = speaker
    check_task(task, tokenizer, model.config.max_position_embeddings, asked.max_new_tokens)
    held_out = text_of(asked.text, speaker, display)[1] if asked.text.text_rows else None
    found = evaluate(
        model,
        tokenizer,
        task,
        prompts=asked.prompts,
        samples=asked.samples,
        max_new_tokens=asked.max_new_tokens,
        temperature=asked.temperature,
        seed=asked.seed,
        text=held_out,
        text_rows={"batch": asked.text.text_rows, "time": asked.text.text_time},
    )
    for each in found.judged[: asked.examples]:
        display.say(f"{each.problem.prompt}{each.texts[0]}   [{'right' if each.right[0] else 'wrong'}]")
    for line in found.lines():
        display.say(line)
    if asked.json is not None:
        write_aside(asked.json, (json.dumps(found.to_dict(), indent=2) + "\n").encode())
