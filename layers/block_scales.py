"""FP8 weights with a scale for each block of 128 x 128, as DeepSeek-V3 publishes them.

`X.weight` is float8_e4m3fn, `X.weight_scale_inv` (ceil(rows/128), ceil(columns/128)) float32, and in spite of
its name it is multiplied: W = W8 * scale. Blocks at the lower and right edge are smaller where 128 does not
divide.
"""

import numpy as np

from tinygrad_ds.dtypes import dtype as named_dtype
from tinygrad_ds.ops.quantize import SIDE as BLOCK
from tinygrad_ds.ops.quantize import expand, scales_shape

LARGEST = np.float32(448)  # of float8_e4m3fn
E4M3 = named_dtype("float8_e4m3fn")
SUFFIX = "_scale_inv"


def block_scales(weight: np.ndarray) -> np.ndarray:
    """Scales (down, across), float32: the largest entry of a block becomes 448. 1 for a block of zeros."""
    down, across = scales_shape(weight.shape, (BLOCK, BLOCK))
    padded = np.zeros((down * BLOCK, across * BLOCK), np.float32)
    np.abs(weight, out=padded[: weight.shape[0], : weight.shape[1]], casting="same_kind")
    largest = padded.reshape(down, BLOCK, across, BLOCK).max(axis=(1, 3))
    return np.where(largest == 0, np.float32(1), largest / LARGEST)


def quantise(weight: np.ndarray) -> np.ndarray:
    """W8 (rows, columns): the nearest float8_e4m3fn to W / scale."""
    return (weight / expand(block_scales(weight), weight.shape, (BLOCK, BLOCK))).astype(E4M3)


def is_quantised(name: str) -> bool:
    """Is this published tensor kept in FP8? Projections are; gate, head, embedding and eh_proj are not."""
    return name.endswith(("_proj.weight", "_with_mqa.weight")) and not name.endswith("eh_proj.weight")
