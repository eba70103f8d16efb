"""Elementary operations that every library has, with their inputs and the gradient that comes back.

A case is a function of arrays; each `with_*.py` has the same cases in its library's own best form, under the
names that stand here.
"""

import numpy as np

NAMES = ("add", "multiply", "matmul", "sum", "softmax", "rmsnorm", "swiglu", "cross_entropy")
SIZES = {"small": (16, 64), "large": (1024, 512)}  # rows and columns
EPS = 1e-6


def inputs(name: str, rows: int, columns: int) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Arrays to differentiate by, further ones, and the gradient of the result."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    x = draw(rows, columns)
    others = {
        "add": [draw(columns)],  # one row for all
        "multiply": [draw(rows, 1)],  # one number for each row
        "matmul": [draw(columns, columns)],
        "rmsnorm": [draw(columns)],
        "swiglu": [draw(rows, columns)],
    }
    further = [rng.integers(0, columns, rows)] if name == "cross_entropy" else []
    shape = {"sum": (rows,), "cross_entropy": ()}.get(name, (rows, columns))  # sum: over each row
    return [x, *others.get(name, [])], further, np.asarray(draw(*shape))
