"""The network: DeepSeek's attention, experts, multi-token prediction, caches and checkpoints."""

from layers.cache import KVCache, LatentCache
from layers.config import DeepSeekConfig
from layers.generation import generate
from layers.model import DeepSeekModel
from layers.weights import load_pretrained, save_pretrained

__all__ = [
    "DeepSeekConfig",
    "DeepSeekModel",
    "KVCache",
    "LatentCache",
    "generate",
    "load_pretrained",
    "save_pretrained",
]
