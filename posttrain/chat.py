"""Talking to a model in a terminal: tokens as they come, thoughts dimmed."""

import sys

import numpy as np
from rich.console import Console

from layers import generate
from posttrain.completion import CLOSE_THINK, OPEN_THINK, Completion
from posttrain.config import Chat
from posttrain.models import Speaker, load
from posttrain.notation import TAGS
from posttrain.rewards import accuracy
from posttrain.tasks import Problem
from train.errors import UserError
from train.tokenizer import Tokenizer


class Dimmer:
    """Tells thoughts from the rest in text that comes in pieces; a tag that is not whole yet is held back."""

    def __init__(self) -> None:
        self.waiting, self.thinking = "", False

    def push(self, piece: str) -> list[tuple[str, bool]]:
        """Text that is certain, and whether it is part of a thought; the tags are."""
        self.waiting += piece
        certain: list[tuple[str, bool]] = []
        while self.waiting:
            tag = CLOSE_THINK if self.thinking else OPEN_THINK
            before, found, rest = self.waiting.partition(tag)
            if not found:
                held = next((n for n in range(len(tag) - 1, 0, -1) if before.endswith(tag[:n])), 0)
                certain.append((before[: len(before) - held], self.thinking))
                self.waiting = before[len(before) - held :]
                break
            if self.thinking:
                certain.append((before + tag, True))
            else:
                certain += [(before, False), (tag, True)]
            self.thinking, self.waiting = not self.thinking, rest
        return [(text, dim) for text, dim in certain if text]

    def finish(self) -> list[tuple[str, bool]]:
        """What was held back."""
        left, self.waiting = self.waiting, ""
        return [(left, self.thinking)] if left else []


def spoken(tokenizer: Tokenizer, line: str) -> str:
    """A line as a prompt: where words are tokens with their space in front, the first one needs its own."""
    knows_words = tokenizer.backend.token_to_id(f" {TAGS[0]}") is not None
    return f" {line.strip()}" if knows_words else line


def reply(speaker: Speaker, prompt: str, asked: Chat, console: Console, seed: int) -> Completion:
    """Write the answer to a prompt, token by token. Raises UserError for a prompt that does not fit."""
    model, tokenizer = speaker
    ids = tokenizer.encode(prompt, special=True)
    room = model.config.max_position_embeddings - len(ids)
    if not ids or room < 1:
        raise UserError(
            f"the prompt has {len(ids)} tokens but the network reads {len(ids) + room} at once: give "
            "at least one, and leave room for an answer"
        )
    stream, dimmer, said = tokenizer.stream(special=True), Dimmer(), []

    def show(parts: list[tuple[str, bool]]) -> None:
        for text, dim in parts:
            console.print(text, style="dim" if dim else "", end="", markup=False, highlight=False)

    def on_token(row: int, token: int) -> None:
        said.append(token)
        if token != tokenizer.end_id:
            show(dimmer.push(stream.push(token)))

    generate(
        model,
        np.array([ids]),
        min(asked.max_new_tokens, room),
        temperature=asked.temperature,
        top_p=asked.top_p,
        stop_tokens=tokenizer.end_id,
        seed=seed,
        on_token=on_token,
    )
    show([*dimmer.push(stream.finish()), *dimmer.finish()])
    console.print()
    ended = said[-1:] == [tokenizer.end_id]
    text = tokenizer.decode(said[:-1] if ended else said, special=True)
    return Completion(text, ended, len(said))


def chat(asked: Chat, console: Console | None = None) -> None:
    """Answer the prompt that was given, or one line after the other until there are no more."""
    speaker = load(asked.model)
    console = console or Console(file=sys.stdout, soft_wrap=True)
    if asked.prompt is not None:
        reply(speaker, spoken(speaker.tokenizer, asked.prompt), asked, console, asked.seed)
        return
    task, rng = asked.problems.make(), np.random.default_rng(asked.seed)
    console.print("A line is a prompt; an empty one draws a problem; the end of input ends.", style="dim")
    for number, line in enumerate(sys.stdin):
        problem: Problem | None = None
        prompt = spoken(speaker.tokenizer, line.rstrip("\n"))
        if not line.strip():
            problem = task.sample(rng)
            prompt = problem.prompt
            console.print(prompt, markup=False, highlight=False)
        try:
            completion = reply(speaker, prompt, asked, console, asked.seed + number)
        except UserError as error:
            console.print(str(error), style="red", markup=False, highlight=False)
            continue
        if problem is not None:
            console.print("right" if accuracy(problem, completion) else "wrong", style="dim")
