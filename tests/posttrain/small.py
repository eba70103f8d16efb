"""A vocabulary with the tasks' words, a network that speaks it, and problems that are quickly answered."""

import json
from functools import cache
from pathlib import Path

import numpy as np

from layers import DeepSeekConfig, DeepSeekModel, save_pretrained
from posttrain.completion import Completion
from posttrain.notation import with_words
from posttrain.packing import Example
from posttrain.rewards import Reward
from posttrain.rollout import Sample
from posttrain.tasks import Question
from train.tokenizer import Tokenizer


@cache
def vocabulary() -> Tokenizer:
    """Bytes, the end token, and the words of the tasks."""
    return with_words(Tokenizer.train(["one two three"] * 2, 257))


def network(seed: int = 0, dtype: str = "float64", **changes) -> DeepSeekModel:
    """MLA and experts in one layer each; its matrices are large, so that no two tokens are equally likely."""
    config = DeepSeekConfig(
        vocab_size=vocabulary().vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        q_lora_rank=None,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=6,
        first_k_dense_replace=1,
        intermediate_size=20,
        moe_intermediate_size=10,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.0,
        num_nextn_predict_layers=0,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return DeepSeekModel(config.replace(**changes), seed=seed, dtype=dtype)


class Letters:
    """Prompts of a few labels; nothing is right or wrong about them."""

    def sample(self, rng: np.random.Generator) -> Question:
        """From one to four labels."""
        words = [str(rng.choice(list("abcdefgh"))) for _ in range(rng.integers(1, 5))]
        return Question(" " + " ".join(words), "a", level=len(words))


def by_hash(problem, completion: Completion) -> float:
    """A reward that differs between completions, and is the same each time."""
    return float(sum(completion.text.encode()) % 5)


HASH = Reward("hash", by_hash, decides=True)


def sequences(lengths: list[tuple[int, int]], seed: int = 0, vocab: int = 400) -> list[Example]:
    """Random prompts and completions of these lengths."""
    rng = np.random.default_rng(seed)
    return [Example(rng.integers(1, vocab, n), rng.integers(1, vocab, m)) for n, m in lengths]


def same_samples(a: Sample, b: Sample) -> bool:
    """Whether two completions are the same, numbers and all."""
    return np.array_equal(a.tokens, b.tokens) and np.allclose(a.logp, b.logp, rtol=1e-9, atol=1e-9)


def make_home(folder: Path) -> Path:
    """Into a folder: a published checkpoint, chains and a task."""
    save_pretrained(network(dtype="float32"), folder / "model")
    vocabulary().save(folder / "model" / "tokenizer.json")
    letters = [f"{a} {b}" for a in "abcdefgh" for b in "ijklmnop"]
    lines = [{"prompt": f" {pair} =", "completion": " <answer> 1 </answer>"} for pair in letters]
    (folder / "chains.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"prompt": f" {pair} =", "answer": 1, "level": i % 3} for i, pair in enumerate(letters)]
    (folder / "task.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
