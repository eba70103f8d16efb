"""What a prediction of DeepSeek-V3's training rests on: each number with its unit, its source and its doubt.

`low` and `high` span what the number might as well have been. Where both are missing the number is a fact of
the plan. Sources, each number compared with them:

    V3          arXiv 2412.19437v2, the technical report
    Insights    arXiv 2505.09343, table 4: a measured step
    DeepGEMM    github.com/deepseek-ai/DeepGEMM, README.md at commit a6d97a1 (February 2025), H800, the shapes
                of V3 (in March 2025 rates were up to 1.27 times as high, by kernels of a later time)
    DeepEP      github.com/deepseek-ai/DeepEP, docs/legacy.md, H800, 4096 tokens, 4 groups, 8 experts
    profile     github.com/deepseek-ai/profile-data, train.json at commit 4496024: the kernels of one F&B of
                two chunks of 4 layers each, 4096 tokens, experts on 64 ranks, all equally busy

Of the profile are counted the kernels that do not communicate, each with the part of the pass (attn, mlp; F,
B, W) in whose annotation it was launched: products in FP8, attention, and the rest. What has no source says
that it is assumed; so are all low and high ends.
"""

from dataclasses import Field, dataclass, field, fields
from typing import Any

from train.errors import UserError


def number(value: float, unit: str, source: str, low: float | None = None, high: float | None = None) -> Any:
    """A field of the assumptions."""
    return field(default=value, metadata={"unit": unit, "source": source, "low": low, "high": high})


@dataclass(frozen=True)
class Assumptions:
    """The plan, the machines, and what is not published and had to be assumed."""

    # the plan
    tokens: float = number(14.8e12, "tokens", "V3, section 4")
    gpus: int = number(2048, "H800", "V3, section 3.1")
    pipeline_ranks: int = number(16, "ranks", "V3, section 3.2")
    expert_ranks: int = number(64, "ranks on 8 nodes", "V3, section 3.2")
    batch: int = number(15360, "sequences", "V3, section 4.2, after the first 469 billion tokens")
    first_batch: int = number(3072, "sequences", "V3, section 4.2")
    ramp: float = number(469e9, "tokens", "V3, section 4.2: while the batch grows")
    length: int = number(4096, "tokens", "V3, section 4.2")
    microbatch: int = number(1, "sequence", "DeepEP: 4096 tokens a batch, as in pre-training")
    nodes_per_token: int = number(4, "nodes", "V3, section 2.1.2: at most so many")
    # published rates
    latent_in: float = number(1058e12, "FLOP/s", "DeepGEMM, 4096 x 2112 x 7168", 900e12, 1200e12)
    query_up: float = number(990e12, "FLOP/s", "DeepGEMM, 4096 x 24576 x 1536", 840e12, 1130e12)
    key_value_up: float = number(590e12, "FLOP/s", "DeepGEMM, 4096 x 32768 x 512", 500e12, 680e12)
    attention_out: float = number(1358e12, "FLOP/s", "DeepGEMM, 4096 x 7168 x 16384", 1150e12, 1560e12)
    shared_in: float = number(1304e12, "FLOP/s", "DeepGEMM, 4096 x 4096 x 7168", 1100e12, 1500e12)
    shared_out: float = number(1025e12, "FLOP/s", "DeepGEMM, 4096 x 7168 x 2048", 870e12, 1180e12)
    experts_in: float = number(1297e12, "FLOP/s", "DeepGEMM, 4 of 8192 x 4096 x 7168", 1100e12, 1490e12)
    experts_out: float = number(1099e12, "FLOP/s", "DeepGEMM, 4 of 8192 x 7168 x 2048", 930e12, 1260e12)
    dispatch: float = number(51e9, "B/s", "DeepEP, 64 ranks between nodes", 46e9, 58e9)
    combine: float = number(50e9, "B/s", "DeepEP, 64 ranks between nodes", 45e9, 57e9)
    network: float = number(50e9, "B/s", "V3, section 3.2.2: InfiniBand, each GPU", 40e9, 50e9)
    memory: float = number(3.35e12, "B/s", "assumed: as the H100 SXM has by its data sheet", 2.5e12, 3.35e12)
    share_of_sms: float = number(112 / 132, "of the SMs", "V3, section 3.5.1: 20 of 132 send", 0.82, 1.0)
    # read off the profile
    input_rate: float = number(1.0, "of the rate forward", "profile: 21.9 ms, for 21.6", 0.9, 1.05)
    weight_rate: float = number(0.58, "of the rate forward", "profile: 32.8 ms, for 19.0", 0.5, 0.7)
    attention: float = number(556e12, "FLOP/s", "profile: 4.95 ms, causal", 500e12, 600e12)
    attention_backward: float = number(404e12, "FLOP/s", "profile: 17.0 ms", 360e12, 440e12)
    forward_moves: float = number(6.5, "moves", "profile: 11.3 ms of F are neither", 4.0, 8.0)
    input_moves: float = number(11.8, "moves", "profile: 20.4 ms of first halves are neither", 9.0, 14.0)
    weight_moves: float = number(1.3, "moves", "profile: 2.3 ms of W are no products", 0.0, 2.0)
    # assumed
    bf16: float = number(650e12, "FLOP/s", "assumed for head and routers: 2/3 of 989", 550e12, 750e12)
    imbalance: float = number(1.1, "x the mean load", "assumed of the fullest expert rank", 1.0, 1.3)
    exposed: float = number(0.0, "of the all-to-all", "V3, section 3.2.1: hidden in F&B", 0.0, 0.3)

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.name not in ("exposed", "weight_moves") and not getattr(self, each.name) > 0:
                raise UserError(f"{each.name} is {getattr(self, each.name)}: it has to be more than 0")

        if self.gpus < self.pipeline_ranks:
            raise UserError(
                f"gpus is {self.gpus} for {self.pipeline_ranks} pipeline_ranks: every rank needs at least one"
            )

    @property
    def microbatches(self) -> int:
        """Micro-batches that one pipeline gets in a step."""
        pipelines = self.gpus // self.pipeline_ranks
        return self.batch // (pipelines * self.microbatch)


def doubtful() -> list[Field]:
    """The fields that might have been otherwise."""
    return [each for each in fields(Assumptions) if each.metadata["low"] is not None]
