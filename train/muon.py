"""Muon: the momentum of a matrix is made orthogonal before it is applied. AdamW serves all the rest."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from layers.module import Module
from tinygrad_ds import Tensor
from tinygrad_ds.device import Array, device_of, namespace, owner, to_host
from train.optimizer import AdamW, at_once, fill

COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
Group = tuple[Array, list[Tensor]]  # momentum (count, rows, columns) and the matrices, all of one shape
# The embedding, the output heads and the router: matrices whose rows stand for tokens or experts.
ELSEWHERE = ("embed_tokens.", "lm_head.", "shared_head.head.", "mlp.gate.")


def orthogonalize(g: Array, steps: int = ITERATIONS) -> Array:
    """U V^T for g = U S V^T, nearly: all singular values come close to 1. g (..., m, n), each matrix alone.

    Newton-Schulz with an odd polynomial (Jordan et al. 2024): x <- a x + (b A + c A A) x with A = x x^T
    replaces every singular value s by a s + b s^3 + c s^5 and leaves U and V alone. It starts from g over its
    Frobenius norm, so that no s is above 1; after five steps those above about 0.01 lie between 0.7 and 1.2,
    which serves as well as 1. The steps cost min(m, n)^2 max(m, n) each, which is why a tall matrix is worked
    on transposed. A zero matrix stays 0.
    """
    xp = namespace(g)
    a, b, c = COEFFICIENTS
    tall = g.shape[-2] > g.shape[-1]
    x = xp.ascontiguousarray(g.swapaxes(-1, -2)) if tall else g
    x = x / (xp.sqrt(xp.sum(x * x, axis=(-2, -1), keepdims=True)) + 1e-7)
    for _ in range(steps):
        gram = x @ x.swapaxes(-1, -2)  # (..., k, k) with k = min(m, n)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.swapaxes(-1, -2) if tall else x


def orthogonalize_all(stacks: Sequence[Array]) -> list[Array]:
    """`orthogonalize` of every stack (count, m, n), on as many threads as BLAS has, each product on one.

    Left to itself BLAS would divide each of thousands of small products among its threads, which then wait
    for each other longer than they work: on two busy cores 72 matrices of 128 x 128 took 2.9 s that way and
    0.08 s this way.
    """
    if not stacks or device_of(stacks[0]) != "cpu":
        return [orthogonalize(stack) for stack in stacks]
    blas = ThreadpoolController().select(user_api="blas")
    threads = max((library["num_threads"] for library in blas.info()), default=1)
    cut = [[piece for piece in np.array_split(stack, threads) if len(piece)] for stack in stacks]
    with blas.limit(limits=1), ThreadPoolExecutor(threads) as pool:
        done = pool.map(orthogonalize, [piece for pieces in cut for piece in pieces])
        return [np.concatenate([next(done) for _ in pieces]) for pieces in cut]


def is_hidden_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether Muon takes the parameter of this published name: any matrix in the layers but the router's."""
    return len(shape) == 2 and not any(part in name for part in ELSEWHERE)


class Muon:
    """Muon for hidden matrices, AdamW for embedding, head, norms and router.

    Works on published matrices: each expert's gate_proj, up_proj and down_proj is orthogonalised by itself,
    however they are stacked in memory, and those of one shape go through the products together. An update is

        m = momentum m + g
        p = p - lr (weight_decay p + sqrt(max(1, rows / columns)) orthogonalize(g + momentum m))

    (Jordan et al. 2024, Nesterov form). `lr` is that of the matrices and may be set before each step; the
    rest follows in proportion, at adamw_lr when lr is what it was in the beginning. moments: the dtype of
    AdamW's; the momentum of matrices has theirs.
    """

    def __init__(
        self,
        model: Module,
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        adamw_lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        adamw_decay: float = 0.0,
        moments: str | None = None,
    ) -> None:
        self.model, self.momentum, self.weight_decay = model, momentum, weight_decay
        self.ratio = adamw_lr / lr
        groups: dict[tuple, list[str]] = {}
        memory = set()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and is_hidden_matrix(name, parameter.shape):
                groups.setdefault(parameter.shape, []).append(name)
                memory.add(id(owner(parameter.data)))
        self.leaves = [leaf for _, leaf in model.named_leaves() if id(owner(leaf.data)) in memory]
        self.rest = AdamW(
            model,
            lr=adamw_lr,
            betas=betas,
            weight_decay=adamw_decay,
            choose=lambda path, leaf: id(owner(leaf.data)) not in memory,
            moments=moments,
        )
        xp, kind = (namespace(self.leaves[0].data), self.leaves[0].dtype) if self.leaves else (np, np.float32)
        self.groups = [(names, xp.zeros((len(names), *shape), kind)) for shape, names in groups.items()]
        self.lr = lr
        self.tables: Any = None  # of addresses, where matrices are on a GPU

    def step(self, control: Array | None = None) -> None:
        """Move every parameter, in place. A matrix without a gradient counts as one whose gradient is 0.

        control: on a GPU, the decision of kernels/cuda/optimizer.py, for gradients that are clipped already.
        """
        parameters = dict(self.model.named_parameters())
        groups = [(m, [parameters[name] for name in names]) for names, m in self.groups]
        if not self._at_once(groups, control):
            self._in_turn(groups, 1.0 if control is None else control[2].astype(self.leaves[0].dtype))
        for leaf in self.leaves:
            leaf.written()
        self.rest.lr = self.lr * self.ratio
        self.rest.step(control)

    def _at_once(self, groups: list[Group], control: Array | None) -> bool:
        """Move all matrices by the kernels for a GPU; False where those do not cover them."""
        rows = [(m, [(p.data, p.grad) for p in parameters]) for m, parameters in groups]
        arrays = [m for m, _ in groups]
        arrays += [array for _, pairs in rows for pair in pairs for array in pair if array is not None]
        if (kernels := at_once(arrays)) is None:
            return False
        self.tables = self.tables or kernels.Tables()
        importlib.import_module("tinygrad_ds.kernels.cuda.muon").step(
            self.tables,
            rows,
            control,
            lr=self.lr,
            momentum=self.momentum,
            keep=1 - self.lr * self.weight_decay,
            coefficients=COEFFICIENTS,
            iterations=ITERATIONS,
        )
        return True

    def _in_turn(self, groups: list[Group], taken: float | Array) -> None:
        """The same in array code; nothing changes where `taken` is 0."""
        ahead = [self._momentum_ahead(m, parameters, taken) for m, parameters in groups]
        for (m, parameters), update in zip(groups, orthogonalize_all(ahead)):
            rows, columns = m.shape[1:]
            update *= taken * (self.lr * max(1.0, rows / columns) ** 0.5)
            for parameter, change in zip(parameters, update):
                p = parameter.data
                namespace(p).subtract((1 - taken * (self.lr * self.weight_decay)) * p, change, out=p)

    def _momentum_ahead(self, m: Array, parameters: list[Tensor], taken: float | Array) -> Array:
        """Take the gradients of one group into m (count, rows, columns); g + momentum m for each."""
        m *= 1 - taken * (1 - self.momentum)
        ahead = self.momentum * m
        for i, parameter in enumerate(parameters):
            if (g := parameter.grad) is not None:
                m[i] += g
                ahead[i] += (1 + self.momentum) * g
        return ahead

    def moment_arrays(self) -> Iterator[Array]:
        """All arrays of the state."""
        yield from (m for _, m in self.groups)
        yield from self.rest.moment_arrays()

    def zero_grad(self) -> None:
        """Forget the gradients of the whole model."""
        self.model.zero_grad()

    def state_dict(self) -> dict[str, np.ndarray]:
        """What a checkpoint needs to go on bit for bit: the momentum of every matrix and AdamW's state."""
        return {name: to_host(array) for name, array in self._momenta().items()} | self.rest.state_dict()

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state_dict` gave. UserError if it belongs to another model."""
        self.rest.load_state_dict(state)
        fill(state, self._momenta())

    def _momenta(self) -> dict[str, Array]:
        return {f"momentum.{name}": m[i] for names, m in self.groups for i, name in enumerate(names)}
