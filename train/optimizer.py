"""AdamW, and clipping by the norm. Writes are in place, and told to the tape through `Tensor.written`."""

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from layers.module import Module
from tinygrad_ds import Tensor, settings
from tinygrad_ds.device import Array, device_of, namespace, to_host
from tinygrad_ds.dtypes import dtype as named_dtype
from train.errors import UserError

BLOCK = 1 << 16  # entries worked on at once: parameter, gradient and both moments then stay in the cache


def blocks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """The same rows of arrays of one shape, some at a time, as views: what is written to them stays."""
    shape, size = arrays[0].shape, arrays[0].size
    if not shape or not size:
        yield arrays
        return
    rows = max(1, BLOCK * shape[0] // size)
    for start in range(0, shape[0], rows):
        yield tuple(array[start : start + rows] for array in arrays)


def clip_grad_norm(model: Module, max_norm: float) -> float:
    """The norm of all gradients as one vector; where it is above `max_norm` they are scaled to it in place.

    Pascanu, Mikolov and Bengio 2013; V3 clips at 1.0. A norm that is not finite is returned and nothing is
    scaled.
    """
    grads = [leaf.grad for leaf in model.parameters() if leaf.grad is not None]
    if kernels := at_once(grads):
        tables = kernels.Tables().of([(grad, grad) for grad in grads])
        control = kernels.decide(tables, max_norm)
        kernels.clip(tables, control)
        return float(control[0])
    norm = math.sqrt(sum(squares(grad) for grad in grads))
    if max_norm < norm < math.inf:
        for grad in grads:
            grad *= max_norm / norm
    return norm


def fused(array: Array) -> ModuleType | None:
    """The kernels that do in one pass what the functions here do in many, where they cover `array`."""
    if settings.current().kernels == "reference" or device_of(array) != "cpu" or not array.flags.carray:
        return None
    return importlib.import_module("tinygrad_ds.kernels.cpu.optimizer")


def at_once(arrays: Sequence[Array], moments: Sequence[Array] = ()) -> ModuleType | None:
    """The kernels that work on all leaves in one launch, where they cover these: on a GPU, of one dtype.

    moments: AdamW's, which may be of another one.
    """
    if settings.current().kernels == "reference" or not arrays or device_of(arrays[0]) == "cpu":
        return None
    kernels = importlib.import_module("tinygrad_ds.kernels.cuda.optimizer")
    return kernels if kernels.covers(arrays, moments) else None


def squares(array: Array) -> float:
    """The sum of the squares; sums of blocks are added in float64."""
    if kernels := fused(array):
        return kernels.sum_of_squares(array)
    return sum(float(namespace(block).vdot(block, block)) for (block,) in blocks(array))


def adamw_update(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    t: int,
    lr: float,
    betas: tuple[float, float],
    decay: float,
    eps: float,
) -> None:
    """Step t (from 1) of AdamW on arrays of one shape, of which p, m and v change in place.

        m = b1 m + (1 - b1) g                       the mean of the gradients
        v = b2 v + (1 - b2) g^2                     the mean of their squares
        p = p - lr decay p                          the decay does not go through m and v
        p = p - lr m^ / (sqrt(v^) + eps),           m^ = m / (1 - b1^t), v^ = v / (1 - b2^t)

    m and v start at 0 and lean towards it; the divisors take that out. Loshchilov and Hutter 2019, algorithm
    2. Moments of a narrower dtype than p are widened, moved and rounded again, a block at a time.
    """
    if m.dtype != p.dtype:
        for p_b, g_b, m_b, v_b in blocks(p, g, m, v):
            wide = m_b.astype(p.dtype), v_b.astype(p.dtype)
            adamw_update(p_b, g_b, *wide, t=t, lr=lr, betas=betas, decay=decay, eps=eps)
            m_b[...], v_b[...] = wide
        return
    b1, b2 = betas
    c1, c2 = 1 - b1**t, 1 - b2**t
    if kernels := fused(p):
        options = {"lr": lr, "beta1": b1, "beta2": b2, "eps": eps, "weight_decay": decay}
        kernels.adamw_step(p, g, m, v, **options, correction1=c1, correction2=c2)
        return
    for p_b, g_b, m_b, v_b in blocks(p, g, m, v):
        m_b *= b1
        m_b += (1 - b1) * g_b
        v_b *= b2
        v_b += (1 - b2) * (g_b * g_b)
        p_b *= 1 - lr * decay
        p_b -= (lr / c1) * m_b / (namespace(p).sqrt(v_b * (1 / c2)) + eps)


class AdamW:
    """AdamW over the leaves of a model; all experts of one projection are one stacked leaf.

    Matrices decay, the embedding and the output head among them (stacks of matrices too); vectors, which are
    the norms' weights and biases, do not. The router's `e_score_correction_bias` is no trainable leaf:
    nothing here ever touches it. A leaf whose gradient is None is left as it is. `lr` may be set before each
    step.

    choose(path, leaf): which of the leaves to take, by default all. moments: the dtype of both moments, None
    for that of the parameters; "bfloat16" halves their memory (DeepSeek-V3, section 3.3.3).
    """

    def __init__(
        self,
        model: Module,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
        eps: float = 1e-8,
        choose: Callable[[str, Tensor], bool] = lambda path, leaf: True,
        moments: str | None = None,
    ) -> None:
        self.model = model
        self.lr, self.betas, self.weight_decay, self.eps = lr, betas, weight_decay, eps
        self.steps = 0
        self.tables: Any = None  # of addresses, where leaves are on a GPU
        self.leaves = {path: leaf for path, leaf in model.named_leaves() if choose(path, leaf)}
        self.moments = {
            path: tuple(
                namespace(leaf.data).zeros(leaf.shape, dtype=named_dtype(moments or leaf.dtype))
                for _ in range(2)
            )
            for path, leaf in self.leaves.items()
        }

    def step(self, control: Array | None = None) -> None:
        """Move every leaf that has a gradient, in place.

        control: on a GPU, the factor and the decision of kernels/cuda/optimizer.py.
        """
        self.steps += 1
        moving = {path: leaf for path, leaf in self.leaves.items() if leaf.grad is not None}
        rows = [(leaf.data, leaf.grad, *self.moments[path]) for path, leaf in moving.items()]
        moments = [moment for _, _, *pair in rows for moment in pair]
        if kernels := at_once([array for row in rows for array in row[:2]], moments):
            self.tables = self.tables or kernels.Tables()
            tables = self.tables.of(rows, [leaf.ndim >= 2 for leaf in moving.values()])
            numbers = {"lr": self.lr, "betas": self.betas, "decay": self.weight_decay, "eps": self.eps}
            kernels.adamw(tables, control, t=self.steps, moments=moments[0].dtype, **numbers)
            for leaf in moving.values():
                leaf.written()
            return
        for path, leaf in moving.items():
            adamw_update(
                *(leaf.data, leaf.grad, *self.moments[path]),
                t=self.steps,
                lr=self.lr,
                betas=self.betas,
                decay=self.weight_decay if leaf.ndim >= 2 else 0.0,
                eps=self.eps,
            )
            leaf.written()

    def moment_arrays(self) -> Iterator[Array]:
        """All arrays of the state."""
        return (moment for pair in self.moments.values() for moment in pair)

    def zero_grad(self) -> None:
        """Forget the gradients of the whole model."""
        self.model.zero_grad()

    def state_dict(self) -> dict[str, np.ndarray]:
        """What a checkpoint needs to go on bit for bit: both moments of every leaf, the number of steps."""
        state = {"steps": np.array(self.steps)}
        for path, (m, v) in self.moments.items():
            state[f"m.{path}"], state[f"v.{path}"] = to_host(m), to_host(v)
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state_dict` gave. UserError if it belongs to another model."""
        fill(
            state,
            {f"{name}.{path}": pair[i] for path, pair in self.moments.items() for i, name in enumerate("mv")},
        )
        self.steps = int(state["steps"])


def fill(state: Mapping[str, np.ndarray], targets: Mapping[str, Array]) -> None:
    """Copy a saved optimizer's arrays into the `targets` of their names, all or none. Raises UserError."""
    for name, target in targets.items():
        if name not in state:
            raise UserError(
                f"the saved optimizer state has no {name!r}: it belongs to another model or optimizer"
            )
        if state[name].shape != target.shape:
            raise UserError(
                f"{name!r} in the saved optimizer state has shape {state[name].shape} but the model needs "
                f"{target.shape}: it belongs to another model"
            )
    for name, target in targets.items():
        target[...] = namespace(target).asarray(state[name])
