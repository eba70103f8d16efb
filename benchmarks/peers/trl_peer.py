"""TRL's GRPOTrainer on the same task, from the same weights, with the same rewards and objective.

The network is transformers' DeepSeek in PyTorch, with attention and experts as in training's peer. TRL
samples by `generate`, and its words of the task are decoded by our tokenizer, since it leaves special tokens
out.
"""

import contextlib
import sys
import tempfile
from pathlib import Path
from time import perf_counter as clock
from typing import Any

import datasets
import torch
import transformers
import trl
from transformers import DeepseekV3ForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from benchmarks.policy import GROUP, LR, PROMPTS, REWARDS, TOKENS, network, vocabulary
from layers import save_pretrained
from posttrain.completion import Completion
from posttrain.ledger import Ledger
from posttrain.rewards import judge
from posttrain.tasks import draw_many

PROBLEMS = 4096


class Trl:
    """The peer."""

    def __init__(self, config: dict[str, Any]) -> None:
        """The benchmark's config is of another network."""

    def versions(self) -> dict[str, str]:
        """What the figures depend on."""
        return {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}

    def build(self) -> dict[str, int]:
        """The network with our weights, the vocabulary, the task."""
        self.ours = vocabulary()
        self.folder = tempfile.TemporaryDirectory()
        save_pretrained(network(self.ours), Path(self.folder.name))
        self.model = DeepseekV3ForCausalLM.from_pretrained(
            self.folder.name, attn_implementation="sdpa", experts_implementation="grouped_mm"
        )
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=self.ours.backend, eos_token=self.ours.end, pad_token=self.ours.end
        )
        self.problems = draw_many(Ledger(), PROBLEMS, 0)
        self.length = 0.0
        return {"parameters": self.model.num_parameters()}

    def reward(self, completion_ids: list[list[int]], number: list[int], **others: Any) -> list[float]:
        """What our rules give, for the problems of these numbers."""
        self.length = sum(map(len, completion_ids)) / len(completion_ids)
        completions = []
        for ids in completion_ids:
            ended = bool(ids) and ids[-1] == self.ours.end_id
            text = self.ours.decode(ids[:-1] if ended else ids, special=True)
            completions.append(Completion(text, ended, len(ids)))
        return judge(REWARDS, [self.problems[i] for i in number], completions).total.tolist()

    def grpo(self, steps: int) -> dict[str, Any]:
        """Seconds of each of so many steps, behind one that is not counted; tokens of a completion."""
        ends: list[float] = []
        rows = [{"prompt": problem.prompt, "number": i} for i, problem in enumerate(self.problems)]
        trainer = trl.GRPOTrainer(
            self.model,
            reward_funcs=self.reward,
            args=trl.GRPOConfig(
                output_dir=self.folder.name,
                per_device_train_batch_size=PROMPTS * GROUP,
                num_generations=GROUP,
                max_completion_length=TOKENS,
                max_steps=steps + 1,
                learning_rate=LR,
                loss_type="grpo",
                epsilon_high=0.28,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to="none",
                logging_strategy="no",
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=self.tokenizer,
            callbacks=[Clock(ends)],
        )
        with contextlib.redirect_stdout(sys.stderr):  # it prints a summary, and answers here are JSON
            trainer.train()
        return {"each": [b - a for a, b in zip(ends, ends[1:])], "length": self.length}


class Clock(TrainerCallback):
    """Notes when steps end."""

    def __init__(self, ends: list[float]) -> None:
        self.ends = ends

    def on_step_end(self, *given: Any, **named: Any) -> None:
        """A step has ended."""
        self.ends.append(clock())
