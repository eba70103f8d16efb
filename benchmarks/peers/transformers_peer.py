"""Hugging Face transformers' DeepseekV3ForCausalLM in PyTorch, with its fastest settings for this machine.

Tried at batch 8 x 256 on two cores: attention "sdpa" and "eager", experts "grouped_mm", "batched_mm" and
"eager", AdamW fused, foreach and plain. The fastest of each is taken. Decoding is a loop of our own around
the model with its own cache, in inference mode, which costs less than `generate`; compiled, with a cache of
fixed size, since a growing one would be compiled again and again.
"""

import time
from typing import Any

import torch
import transformers
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache, StaticCache


class Transformers:
    """The peer."""

    def __init__(self, config: dict[str, Any], compiled: bool) -> None:
        self.config = DeepseekV3Config(**config)
        self.config._attn_implementation = "sdpa"
        self.config._experts_implementation = "grouped_mm"
        self.compiled = compiled

    def versions(self) -> dict[str, str]:
        """What the figures depend on."""
        return {"torch": torch.__version__, "transformers": transformers.__version__}

    def build(self) -> None:
        """The model and its optimizer."""
        torch.manual_seed(0)
        self.model = DeepseekV3ForCausalLM(self.config)
        self.run = torch.compile(self.model, dynamic=False) if self.compiled else self.model
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )

    def train(self, batch: int, time: int) -> dict[str, float]:
        """One step: forward, backward, clipping, AdamW."""
        ids = torch.randint(0, self.config.vocab_size, (batch, time))
        loss = self.run(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": loss.item()}

    @torch.inference_mode()
    def decode(self, batch: int, context: int, new: int) -> dict[str, float]:
        """Seconds per step of decoding `new` tokens greedily behind a prompt of `context` tokens."""
        if self.compiled:
            cache = StaticCache(config=self.config, max_cache_len=context + new)
        else:
            cache = DynamicCache(config=self.config)
        ids = torch.randint(0, self.config.vocab_size, (batch, context))
        ids = self.model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        for _ in range(new):
            ids = self.run(input_ids=ids, past_key_values=cache).logits[:, -1:].argmax(-1)
        return {"seconds_per_step": (time.perf_counter() - start) / new}
