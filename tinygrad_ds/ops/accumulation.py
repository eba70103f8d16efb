"""What a product of matrices comes to in the tensor cores of an H100, which add with few bits.

DeepSeek-V3, section 3.3.2: "accumulation precision of FP8 GEMM on NVIDIA H800 GPUs is limited to retaining
around 14 bits". One instruction adds 32 products to a sum that is kept in a register:

    e   = the largest exponent of the 32 products and of the sum
    sum = sum + p_1 + .. + p_32, each of the 33 cut off below 2^(e - 13), towards zero

so what is below 2^-13 of the largest is lost, and the longer the sum, the more. Every N_C terms the sum may
be moved to a register of float32 and begun anew ("promoted"), which bounds the loss.
"""

from tinygrad_ds.device import Array, namespace

TERMS = 32  # of one instruction
BITS = 13  # behind the leading one
ROWS = 16  # of the result at a time: all products of a row stand in memory at once


def multiply(a: Array, b: Array, accumulation: str = "float32", promote_every: int | None = None) -> Array:
    """a b, a (N, K), b (K, M) -> (N, M).

    accumulation: "float32" multiplies as usual, in the arrays' own dtype; "tensor_core" as above, and
    promote_every is N_C, a multiple of 32, or None for a sum that is never promoted. Raises ValueError for
    others.
    """
    if accumulation == "float32":
        return a @ b
    check_accumulation(accumulation, promote_every)
    xp = namespace(a)
    y = xp.zeros((a.shape[0], b.shape[1]), dtype=xp.result_type(a, b))
    columns = b.T.copy()
    for start in range(0, a.shape[0], ROWS):
        y[start : start + ROWS] = _rows_of_product(a[start : start + ROWS], columns, promote_every)
    return y


def check_accumulation(accumulation: str, promote_every: int | None) -> None:
    """Raise ValueError for what is no way to add."""
    if accumulation not in ("float32", "tensor_core"):
        raise ValueError(f"accumulation is {accumulation!r}, but it is 'float32' or 'tensor_core'")
    if promote_every is not None and (promote_every < TERMS or promote_every % TERMS):
        raise ValueError(
            f"promote_every is {promote_every}, but an instruction adds {TERMS} terms: choose a multiple"
        )


def _rows_of_product(a: Array, columns: Array, promote_every: int | None) -> Array:
    """Some rows of the product; columns (M, K) are those of b."""
    xp = namespace(a)
    total = kept = xp.zeros((len(a), len(columns)), dtype=xp.result_type(a, columns))
    for k in range(0, a.shape[1], TERMS):
        products = a[:, None, k : k + TERMS] * columns[None, :, k : k + TERMS]  # (rows, M, TERMS)
        addends = xp.concatenate([products, kept[:, :, None]], axis=-1)
        kept = _cut(addends, abs(addends).max(axis=-1, keepdims=True)).sum(axis=-1)
        kept = _cut(kept, kept)
        if promote_every is not None and (k + TERMS) % promote_every == 0:
            total, kept = total + kept, xp.zeros_like(kept)
    return total + kept


def _cut(x: Array, largest: Array) -> Array:
    """x without what is below 2^(e - 13), e the exponent of `largest`."""
    xp = namespace(x)
    step = xp.ldexp(xp.ones_like(largest), xp.frexp(largest)[1] - 1 - BITS)
    return xp.trunc(x / step) * step
