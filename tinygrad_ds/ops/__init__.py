"""Reference primitives, a file per family. Importing this package fills the registry."""

from tinygrad_ds.ops import (
    activation,
    attention,
    elementwise,
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
