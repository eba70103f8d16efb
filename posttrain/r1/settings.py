"""What the road needs, as a frozen dataclass: sizes, steps, and how much is looked at."""

from dataclasses import dataclass
from pathlib import Path

from layers import DeepSeekConfig
from layers.config import ConfigError
from posttrain.config import at_least_one
from posttrain.notation import LANGUAGES
from train.errors import UserError

TIME = 128  # columns of a row of text, and of packed sequences
ANSWER = 32  # tokens that a completion may have


@dataclass(frozen=True)
class Road:
    """Go the whole road to R1: base, R1-Zero, the five stages, and students."""

    out: Path = Path("runs/r1")
    """Folder of all stages, each in a folder of its own. What is done there already is not done again."""
    stages: tuple[str, ...] = ()
    """Stages to go through, with what they need; without it all. `--stages list` shows them."""
    text: tuple[Path, ...] = ()
    """Your own general text. Without it: documentation that comes with Python."""
    languages: tuple[str, ...] = ("latin",)
    """Notations of the ledger: latin, greek. With both, the base's chains mix them, and one more stage
    rewards keeping to one."""
    seed: int = 0
    seeds: tuple[int, ...] = ()
    """Go the road once with each of these, in folders of their own, and compare stages over them. The prompts
    that are judged are drawn by the seed: take seeds that no setting was chosen with."""
    teacher: Path | None = None
    """Folder of a road that was gone: its model teaches with its lessons, and there are students only."""
    hidden_size: int = 64
    """Of the teacher."""
    students: tuple[int, ...] = (48, 40)
    """Hidden sizes of the students."""
    vocab_size: int = 512
    """Tokens of text; the words of the task come on top."""
    base_steps: int = 1270
    student_steps: int = 450
    think_share: float = 0.2
    """How often the base thinks: the weight of a chain's first token is set for it."""
    zero_steps: int = 50
    cold_chains: int = 300
    """Clean chains for the cold start."""
    cold_steps: int = 15
    policy_steps: int = 40
    harvest: int = 1024
    """Prompts for rejection sampling, four completions each; for the students four times as many."""
    blend_steps: int = 100
    pairs: int = 4096
    """Pairs of a real and a sampled continuation, for the preference."""
    preference_steps: int = 200
    final_steps: int = 40
    distil_steps: int = 800
    student_rl_steps: int = 40
    prompts: int = 192
    """Held-out prompts that every stage is judged on, eight completions each."""

    def __post_init__(self) -> None:
        at_least_one(
            self,
            *("hidden_size", "base_steps", "student_steps", "zero_steps", "cold_chains", "cold_steps"),
            *("policy_steps", "harvest", "blend_steps", "pairs", "preference_steps", "final_steps"),
            *("distil_steps", "student_rl_steps"),
        )
        if self.prompts < 2:
            raise UserError(f"prompts is {self.prompts} but an error needs at least 2")
        if not 0 < self.think_share < 1:
            raise UserError(f"think_share is {self.think_share} but must be between 0 and 1")
        if not self.languages or not set(self.languages) <= set(LANGUAGES):
            raise UserError(f"languages are {self.languages} but can be {' and '.join(LANGUAGES)}")
        if len(set(self.seeds)) < len(self.seeds) or len(self.seeds) == 1:
            raise UserError(f"seeds are {self.seeds} but a comparison needs at least two that differ")
        if self.teacher is not None and not self.students:
            raise UserError(
                f"there are no students for the teacher of {self.teacher}: name sizes by --students"
            )
        if len(set(self.students)) < len(self.students) or any(size < 8 for size in self.students):
            raise UserError(f"students are {self.students} but must be different sizes from 8 up")

    @property
    def school(self) -> Path:
        """The folder of the stages that students learn from."""
        return self.teacher or self.out

    def network(self, hidden_size: int, vocab_size: int, end_id: int) -> DeepSeekConfig:
        """A DeepSeek of two layers, the second with experts. Raises UserError."""
        try:
            return DeepSeekConfig(
                vocab_size=vocab_size,
                hidden_size=hidden_size,
                num_hidden_layers=2,
                num_attention_heads=4,
                q_lora_rank=None,
                kv_lora_rank=32,
                qk_nope_head_dim=16,
                qk_rope_head_dim=16,
                v_head_dim=32,
                first_k_dense_replace=1,
                intermediate_size=3 * hidden_size,
                moe_intermediate_size=hidden_size,
                n_routed_experts=8,
                n_shared_experts=1,
                num_experts_per_tok=2,
                n_group=1,
                topk_group=1,
                routed_scaling_factor=1.0,
                num_nextn_predict_layers=0,
                max_position_embeddings=TIME,
                initializer_range=0.1,
                bos_token_id=end_id,
                eos_token_id=end_id,
            )
        except ConfigError as error:
            raise UserError(str(error)) from error


DEMO = Road(out=Path("runs/demo"), students=(48,), prompts=128, final_steps=20, distil_steps=400)
