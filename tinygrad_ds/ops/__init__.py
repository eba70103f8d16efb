"""Reference primitives, a file per family. Importing this package fills the registry."""

from tinygrad_ds.ops import (
    activation,
    attention,
    elementwise,
    experts,
    indexing,
    loss,
    matmul,
    moe,
    norm,
    reduction,
    rope,
    routing,
    shape,
)

__all__ = [
    "activation",
    "attention",
    "elementwise",
    "experts",
    "indexing",
    "loss",
    "matmul",
    "moe",
    "norm",
    "reduction",
    "rope",
    "routing",
    "shape",
]
