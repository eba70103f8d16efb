"""DeepSeekConfig: what a network is, under the names of the published `config.json` files.

Files of DeepSeek-V2, V2-Lite, V3 and R1 are read unchanged, in the old spelling (`rope_theta`,
`rope_scaling`, `torch_dtype`) and in that of transformers 5 (`rope_parameters`, `dtype`). Keys that mean
nothing here are kept in `extra` and written back.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from layers.config_checks import problems

# Where the two families differ when nothing is said: (V2, V3).
BY_FAMILY = {
    "scoring_func": ("softmax", "sigmoid"),
    "topk_method": ("greedy", "noaux_tc"),
    "n_group": (1, 8),
    "topk_group": (1, 4),
    "norm_topk_prob": (False, True),
    "routed_scaling_factor": (1.0, 2.5),
    "num_nextn_predict_layers": (0, 1),
}
RESOLVED: Any = None  # the default of a field that is settled, and no longer None, once the config exists
# Left out of a written file while None: readers take the bare presence of these keys for a setting.
ABSENT_WHEN_NONE = ("quantization_config", "torch_dtype")


class ConfigError(ValueError):
    """A configuration that cannot be: the message has one sentence for each problem, all of them at once."""


@dataclass(frozen=True)
class RopeScaling:
    """YaRN (Peng et al. 2023): how rotary frequencies are stretched to read `factor` times further.

    `mscale` and `mscale_all_dim` are 0 where a file does not set them; `attention_factor` None: computed.
    """

    factor: float
    original_max_position_embeddings: int
    type: str = "yarn"
    beta_fast: float = 32
    beta_slow: float = 1
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The settings as a published file has them: those that are not set stay away."""
        unset = {"mscale": 0.0, "mscale_all_dim": 0.0, "attention_factor": None}
        return {name: value for name, value in asdict(self).items() if unset.get(name, ...) != value}


@dataclass(frozen=True)
class DeepSeekConfig:
    """The sizes and switches of one network. What is not given is as in DeepSeek-V3 before its context grew.

    The seven settings in which V2 and V3 differ (`BY_FAMILY`) are resolved from `model_type` where they are
    None: a config that exists has them all, and has passed every check of `config_checks`.

    `num_nextn_predict_layers` absent means 1 for V3, as its published class has it, although a file may hold
    no MTP tensors (transformers drops them when it saves): whoever loads weights goes by the tensors there.
    """

    model_type: str = "deepseek_v3"
    vocab_size: int = 129280
    hidden_size: int = 7168
    num_hidden_layers: int = 61
    max_position_embeddings: int = 4096
    # attention
    num_attention_heads: int = 128
    num_key_value_heads: int = RESOLVED  # resolved: as many as heads, one for "mqa"
    q_lora_rank: int | None = 1536  # None: a plain q_proj
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    attention_bias: bool = False
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_interleave: bool = True
    # feed-forward
    hidden_act: str = "silu"
    intermediate_size: int = 18432
    first_k_dense_replace: int = 3
    moe_layer_freq: int = 1
    moe_intermediate_size: int = 2048
    n_routed_experts: int = 256
    n_shared_experts: int = 1
    num_experts_per_tok: int = 8
    n_group: int = RESOLVED
    topk_group: int = RESOLVED
    topk_method: str = RESOLVED
    scoring_func: str = RESOLVED
    norm_topk_prob: bool = RESOLVED
    routed_scaling_factor: float = RESOLVED
    # the rest
    num_nextn_predict_layers: int = RESOLVED
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = field(default=1, hash=False)
    pad_token_id: int | None = None
    torch_dtype: str | None = None
    quantization_config: dict[str, Any] | None = field(default=None, hash=False)
    extra: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        family = 0 if self.model_type == "deepseek_v2" else 1
        settle = {name: values[family] for name, values in BY_FAMILY.items() if getattr(self, name) is None}
        if vars(self)["num_key_value_heads"] is None:
            settle["num_key_value_heads"] = 1 if self.attention_kind == "mqa" else self.num_attention_heads
        found: list[str] = []
        given = vars(self)["rope_scaling"]
        if isinstance(given, Mapping):
            try:
                settle["rope_scaling"] = read_rope_scaling(given, self.max_position_embeddings)
            except ConfigError as error:
                settle["rope_scaling"] = None
                found.append(str(error))
        for name, value in settle.items():
            object.__setattr__(self, name, value)
        if found := [*found, *problems(self)]:
            raise ConfigError("\n".join(found))

    @property
    def qk_head_dim(self) -> int:
        """Numbers in one head's query or key: the part without position, then the rotary part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def attention_kind(self) -> str:
        """The attention of every layer: mla, or in its place mha, gqa or mqa with heads of qk_head_dim."""
        return self.extra.get("attention_kind", "mla")

    @property
    def balance_counts(self) -> str:
        """What the balance loss counts: the highest scores (as the paper has it), or the router's choices."""
        return self.extra.get("balance_counts", "scores")

    @property
    def has_correction_bias(self) -> bool:
        """Does the router add `e_score_correction_bias` where it chooses (V3), or nothing (V2)?"""
        return self.topk_method == "noaux_tc"

    def is_moe(self, layer: int) -> bool:
        """Has this layer experts? The blocks of MTP modules, numbered on after the last layer, always do."""
        return layer >= self.first_k_dense_replace

    def replace(self, **changes: Any) -> "DeepSeekConfig":
        """A copy with some fields changed, checked anew."""
        return replace(self, **changes)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "DeepSeekConfig":
        """The config that a parsed `config.json` describes. Raises ConfigError with every problem at once."""
        known = {each.name for each in fields(cls)} - {"extra"}
        given = {name: value for name, value in settings.items() if name in known}
        extra = {name: value for name, value in settings.items() if name not in known}
        if extra.get("architectures") == [architecture(settings.get("model_type", cls.model_type))]:
            del extra["architectures"]  # follows from model_type
        if "dtype" in extra:
            given["torch_dtype"] = extra.pop("dtype")
        if "rope_parameters" in extra:  # {"rope_theta", "rope_type", ...}, the spelling of transformers 5
            rope = dict(extra.pop("rope_parameters") or {})
            given["rope_theta"] = rope.pop("rope_theta", given.get("rope_theta", cls.rope_theta))
            given["rope_scaling"] = rope
        for name in ("n_group", "topk_group"):  # null: all experts are one group
            if name in given and given[name] is None:
                given[name] = 1
        if "n_shared_experts" in given and given["n_shared_experts"] is None:
            given["n_shared_experts"] = 0
        return cls(**given, extra=extra)

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> "DeepSeekConfig":
        """Read a `config.json`, or the one in a folder. Raises ConfigError where none can be made of it."""
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be read ({error.strerror}): name a config.json or its folder"
            ) from None
        except ValueError as error:  # not JSON, or not text at all
            raise ConfigError(f"{path} is not JSON ({error}): a published config.json is wanted") from None
        if not isinstance(settings, dict):
            raise ConfigError(
                f"{path} holds a JSON {type(settings).__name__}: a published config.json is an object"
            )
        return cls.from_dict(settings)

    def to_dict(self) -> dict[str, Any]:
        """Everything, `extra` included, in the published spelling; `from_dict` reads it back the same."""
        kept = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "extra"}
        kept["rope_scaling"] = self.rope_scaling and self.rope_scaling.to_dict()
        written = {"architectures": [architecture(self.model_type)]} | kept | self.extra
        return {
            key: value for key, value in written.items() if not (key in ABSENT_WHEN_NONE and value is None)
        }

    def save(self, path: str | os.PathLike) -> None:
        """Write a `config.json` (into `path` if that is a folder): aside first, then renamed, never half."""
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        aside = path.with_name(f"{path.name}.part")
        aside.write_text(json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
        aside.replace(path)


def architecture(model_type: str) -> str:
    """The class that other libraries load such a network into."""
    return "DeepseekV2ForCausalLM" if model_type == "deepseek_v2" else "DeepseekV3ForCausalLM"


def read_rope_scaling(settings: Mapping[str, Any], max_position_embeddings: int) -> RopeScaling | None:
    """The `rope_scaling` of a file, or its `rope_parameters` less the theta; type "default" gives None."""
    settings = dict(settings)
    kinds = {settings.pop(key) for key in ("type", "rope_type") if key in settings}
    if kinds == {"default"} or not (kinds or settings):
        return None
    if kinds != {"yarn"}:
        spelt = " and ".join(map(repr, sorted(kinds, key=str))) or "missing"
        raise ConfigError(f"the type of rope_scaling is {spelt} but only 'yarn' and 'default' are known here")
    settings.setdefault("original_max_position_embeddings", max_position_embeddings)
    known = [each.name for each in fields(RopeScaling)]
    if unknown := sorted(set(settings) - set(known)):
        raise ConfigError(
            f"rope_scaling has {', '.join(unknown)}, which YaRN does not know: only {', '.join(known)}"
        )
    if "factor" not in settings:
        raise ConfigError("rope_scaling has no factor: YaRN must know how many times further to read")
    unset = ("mscale", "mscale_all_dim", "attention_factor")
    return RopeScaling(
        **{key: value for key, value in settings.items() if key not in unset or value is not None}
    )
