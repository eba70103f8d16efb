"""Group relative policy optimisation: sample, judge, learn from what did better than its group.

A step of the training loop is one update. Completions are sampled when a step's number is a multiple of
`updates`; the steps after it learn from the same ones, whose log-probabilities are kept from sampling. All
random numbers come from (seed, step, sequence), so a run that goes on from a checkpoint is the same run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

import tinygrad_ds as tg
from layers import DeepSeekModel
from posttrain.advantages import group_advantages, has_signal
from posttrain.completion import Completion, thinks
from posttrain.models import copy_weights
from posttrain.packing import Packed, packed_experts, packed_samples
from posttrain.rewards import Reward, Rewards, judge
from posttrain.rollout import Sample, rollout
from posttrain.scoring import Table, log_probs, replayed, table
from posttrain.tasks import Problem, Task, draw
from tinygrad_ds import Tensor
from tinygrad_ds.device import place, to_host
from train.errors import UserError
from train.tokenizer import Tokenizer
from train.trainer import Record, State, TrainingStopped, Work

NEAR, SHARE, MEAN = 1e-4, 0.999, 1e-5  # how well sampled and recomputed log-probabilities must agree


@dataclass(frozen=True)
class Objective:
    """What is optimised; see tg.grpo_objective."""

    prompts: int = 32
    """Prompts in a batch."""
    group: int = 8
    """Completions of each prompt."""
    max_new_tokens: int = 32
    """The longest completion; a longer one is cut off, and has no answer."""
    temperature: float = 1.0
    """For sampling, and for the log-probabilities that are learnt from."""
    updates: int = 1
    """Steps that learn from one batch of completions."""
    micro_batch: int = 256
    """Completions that go through the network at once when it learns."""
    eps_low: float = 0.2
    eps_high: float = 0.28
    """The ratio of new to old probability is clipped to 1 - eps_low .. 1 + eps_high."""
    beta: float = 0.0
    """Weight of the pull towards the reference; 0 needs no reference."""
    refresh_every: int = 0
    """Steps after which the reference becomes the policy of that moment; 0: never."""
    weighted_k3: bool = False
    """Weigh the pull by the ratio, which makes it exact after the first of several updates."""
    aggregate: Literal["grpo", "bnpo", "dr_grpo"] = "grpo"
    ratio: Literal["token", "sequence"] = "token"
    scale: bool = True
    """Divide advantages by the standard deviation of the group (dr_grpo never does)."""
    routing_replay: bool = False
    """Learn with the experts that were chosen while sampling."""
    patience: int = 5
    """Batches in a row without any signal after which there is a warning."""

    def __post_init__(self) -> None:
        for name in ("prompts", "max_new_tokens", "updates", "micro_batch", "patience"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)} but must be at least 1")
        if self.group < 2:
            raise UserError(f"group is {self.group} but a completion is compared with others: at least 2")
        if not self.temperature > 0:
            raise UserError(
                f"temperature is {self.temperature} but must be above 0: all samples would be equal"
            )
        if self.beta < 0 or self.eps_low < 0 or self.eps_high < 0:
            raise UserError("beta, eps_low and eps_high must be at least 0")


class Part(NamedTuple):
    """A micro-batch: completions that have something to say, with all that their loss needs."""

    packed: Packed
    table: Table
    old: np.ndarray  # (n, longest)
    ref: np.ndarray | None  # (n, longest)
    advantages: np.ndarray  # (n,)
    experts: dict[str, np.ndarray]


class Sampled(NamedTuple):
    """A batch of completions with what they earned."""

    problems: list[Problem]  # one for each completion
    samples: list[Sample]
    completions: list[Completion]
    rewards: Rewards
    signal: np.ndarray  # (prompts,) whether the group has something to learn from
    parts: list[Part]


@dataclass
class Reinforcement:
    """What the training loop needs of GRPO: `next_work`, `loss`, and `after` behind each step.

    reference: the network that beta pulls to; it is changed where `refresh_every` says so. inspect is called
    with every batch of completions.
    """

    model: DeepSeekModel
    tokenizer: Tokenizer
    task: Task
    rewards: Sequence[Reward]
    objective: Objective = Objective()
    reference: DeepSeekModel | None = None
    seed: int = 0
    say: Callable[[str], None] = lambda line: None
    inspect: Callable[[State, Sampled], None] = lambda state, sampled: None
    agreement: "Agreement | None" = None
    silent: int = 0
    sampled: Sampled | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.objective.beta and self.reference is None:
            raise UserError(f"beta is {self.objective.beta} but there is no reference to pull to: give one")

    def next_work(self, state: State) -> Work:
        """New completions, or those of the last steps where there are updates left. Raises RewardError."""
        objective = self.objective
        if state.step % objective.updates == 0 or self.sampled is None:
            if state.step % objective.updates:
                raise UserError(
                    f"step {state.step} stands between two batches of {objective.updates} updates: go on "
                    "from a checkpoint at a multiple of them"
                )
            with state.phase("sampling"):
                self.sampled = self.sample(state)
            self.inspect(state, self.sampled)
        parts = self.sampled.parts
        rows = sum(len(part.advantages) for part in parts)
        tokens = sum(int(part.table.mask.sum()) for part in parts)
        count = {"objective": tokens if objective.aggregate == "bnpo" else rows, "tokens": tokens}
        return Work(parts, count, 1.0)

    def sample(self, state: State) -> Sampled:
        """Draw prompts, sample, judge, and lay out what has a signal."""
        objective, count = self.objective, self.objective.prompts * self.objective.group
        drawn = [draw(self.task, (self.seed, 1, state.step, i)) for i in range(objective.prompts)]
        samples = rollout(
            self.model,
            [
                self.tokenizer.encode(problem.prompt, special=not getattr(problem, "plain", False))
                for problem in drawn
            ],
            end_id=self.tokenizer.end_id,
            max_new_tokens=objective.max_new_tokens,
            samples=objective.group,
            temperature=objective.temperature,
            seed=(self.seed, 2, state.step),
            experts=objective.routing_replay,
        )
        if self.agreement is None:
            self.agreement = self.compare(samples)
        problems = [problem for problem in drawn for _ in range(objective.group)]
        completions = [sample.completion(self.tokenizer) for sample in samples]
        rewards = judge(self.rewards, problems, completions)
        signal = has_signal(rewards.deciding, objective.group)
        scale = objective.scale and objective.aggregate != "dr_grpo"
        advantages = group_advantages(rewards.total, objective.group, scale=scale)
        kept = [i for i in range(count) if signal[i // objective.group]]
        cut = range(0, len(kept), objective.micro_batch)
        parts = [self.part(samples, advantages, kept[i : i + objective.micro_batch]) for i in cut]
        return Sampled(problems, samples, completions, rewards, signal, parts)

    def part(self, samples: list[Sample], advantages: np.ndarray, kept: list[int]) -> Part:
        """Some of the completions as a micro-batch."""
        chosen = [samples[i] for i in kept]
        packed, rows, experts = self.laid_out(chosen)
        ref = None
        if self.objective.beta and self.reference is not None:
            with tg.no_grad(), replayed(self.reference, experts):
                ref = to_host(rows.spread(self.scored(self.reference, packed)).data) * rows.mask
        old = rows.fill([sample.logp for sample in chosen])
        return Part(packed, rows, old, ref, advantages[kept], experts)

    def laid_out(self, samples: list[Sample]) -> tuple[Packed, Table, dict[str, np.ndarray]]:
        """Completions in packed rows: where their tokens stand, and their experts if those are replayed."""
        longest = max(len(sample.prompt) + len(sample.tokens) - 1 for sample in samples)
        packed = packed_samples(samples, longest)
        lengths = [len(sample.prompt) for sample in samples], [len(sample.tokens) for sample in samples]
        return packed, table(packed, *lengths), packed_experts(samples, packed)

    def scored(self, model: DeepSeekModel, packed: Packed) -> Tensor:
        """Log-probabilities at the temperature of sampling."""
        return log_probs(model, packed, self.objective.temperature)

    def loss(
        self, model: DeepSeekModel, part: Part, count: dict[str, int]
    ) -> tuple[Tensor, dict[str, float]]:
        """The objective of a micro-batch, and its share of the batch's clip fractions and of k3."""
        objective = self.objective
        with replayed(model, part.experts):
            logp = part.table.spread(self.scored(model, part.packed))
        kind, mask = logp.dtype, part.table.mask
        arrays = [logp, *(place(array, dtype=kind) for array in (part.old, part.advantages)), place(mask)]
        if part.ref is not None:
            arrays.append(place(part.ref, dtype=kind))
        value = tg.grpo_objective(
            *arrays,
            beta=objective.beta,
            eps_low=objective.eps_low,
            eps_high=objective.eps_high,
            aggregate=objective.aggregate,
            ratio=objective.ratio,
            max_length=objective.max_new_tokens,
            weighted_k3=objective.weighted_k3,
            count=count["objective"],
        )
        return value, self.told(to_host(logp.data), part, count["tokens"])

    def told(self, logp: np.ndarray, part: Part, tokens: int) -> dict[str, float]:
        """Which tokens the clip holds back, and how far the policy has moved; parts of a mean over tokens."""
        mask, gain = part.table.mask, np.where(part.table.mask, logp - part.old, 0.0)
        if self.objective.ratio == "sequence":
            gain = np.broadcast_to(
                gain.sum(axis=1, keepdims=True) / mask.sum(axis=1, keepdims=True), gain.shape
            )
        rho, good = np.exp(gain), part.advantages[:, None] > 0
        high = mask & good & (rho > 1 + self.objective.eps_high)
        low = mask & ~good & (rho < 1 - self.objective.eps_low)
        named = {
            "clip_high": high.sum() / tokens,
            "clip_low": low.sum() / tokens,
            "ratio": rho[mask].sum() / tokens,
        }
        if part.ref is not None:
            behind = np.where(mask, part.ref - logp, 0.0)
            named["k3"] = (np.exp(behind) - behind - 1).sum() / tokens
        return {name: float(number) for name, number in named.items()}

    def compare(self, samples: list[Sample]) -> "Agreement":
        """Sampled against recomputed log-probabilities, before the first update. Raises TrainingStopped."""
        packed, rows, experts = self.laid_out(samples)
        with tg.no_grad(), replayed(self.model, experts):
            logp = to_host(rows.spread(self.scored(self.model, packed)).data)
        return agree(logp[rows.mask], rows.fill([sample.logp for sample in samples])[rows.mask])

    def after(self, state: State, record: Record) -> None:
        """Add what was sampled to the record of the step; renew the reference; warn of silence."""
        sampled, objective = self.sampled, self.objective
        if sampled is None:
            return
        lengths = np.array([len(sample.tokens) for sample in sampled.samples])
        record |= {
            "reward": float(sampled.rewards.total.mean()),
            "reward_std": float(sampled.rewards.total.std()),
            "rewards": sampled.rewards.means(),
            "think_rate": float(np.mean([thinks(each) for each in sampled.completions])),
            "length": float(lengths.mean()),
            "ended": float(np.mean([sample.ended for sample in sampled.samples])),
            "entropy": float(sum(sample.entropy.sum() for sample in sampled.samples) / lengths.sum()),
            "signal": float(sampled.signal.mean()),
            "timeouts": sampled.rewards.timeouts,
        }
        if state.step == 1 and self.agreement is not None:
            record["agreement"] = self.agreement._asdict()
        if state.step % objective.updates == 0:
            self.count_silence(sampled)
        if (
            self.reference is not None
            and objective.refresh_every
            and state.step % objective.refresh_every == 0
        ):
            copy_weights(self.model, self.reference)

    def count_silence(self, sampled: Sampled) -> None:
        """Warn where no group has had a signal for some time."""
        self.silent = 0 if sampled.signal.any() else self.silent + 1
        if self.silent and self.silent % self.objective.patience == 0:
            right = sampled.rewards.deciding.mean()
            self.say(
                f"no group has had a signal for {self.silent} batches (mean reward {right:.2f}): "
                + (
                    "all samples do equally well, so take harder prompts or stop here"
                    if right > 0.5
                    else "all samples fail, so take easier prompts, a larger group or temperature, longer "
                    "completions, or fine-tune first"
                )
            )


class Agreement(NamedTuple):
    """How sampled and recomputed log-probabilities compare."""

    share: float  # of the tokens, within 1e-4
    mean: float  # of the differences, without sign
    largest: float
    tokens: int


def agree(recomputed: np.ndarray, sampled: np.ndarray) -> Agreement:
    """Compare, and raise TrainingStopped where the policy that is scored is not the one that sampled.

    99.9 % of the tokens must be within 1e-4 and the mean within 1e-5: in float32 a near-tie in a router may
    send a token elsewhere, and no more than that.
    """
    apart = np.abs(recomputed - sampled)
    found = Agreement(float((apart <= NEAR).mean()), float(apart.mean()), float(apart.max()), apart.size)
    if not (found.share >= SHARE and found.mean <= MEAN):
        raise TrainingStopped(
            f"sampled and recomputed log-probabilities differ before the first update: {found.share:.2%} of "
            f"{found.tokens} tokens are within {NEAR:g} (at least {SHARE:.1%}), their mean difference is "
            f"{found.mean:.2g} (at most {MEAN:g}), the largest {found.largest:.2g}: the weights that sample "
            "are not those that learn, or the router is close to ties (routing_replay helps then)"
        )
    return found
