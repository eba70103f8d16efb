"""tinygrad_ds: an engine whose every gradient is a short function beside its forward, written by hand.

import tinygrad_ds as tg
x = tg.Tensor([1.0, 2.0], requires_grad=True)
(x * x).sum().backward()
x.grad                                    # array([2., 4.])
"""

from tinygrad_ds.runtime import set_threads  # isort: skip - before NumPy and BLAS load
from tinygrad_ds.deferred import defer_weight_gradients
from tinygrad_ds.gradient_check import gradcheck
from tinygrad_ds.observation import Profile, observe
from tinygrad_ds.ops.activation import gelu, log_softmax, relu, sigmoid, silu, softmax, swiglu
from tinygrad_ds.ops.attention import attention
from tinygrad_ds.ops.divergence import jensen_shannon
from tinygrad_ds.ops.elementwise import (
    abs,
    add,
    astype,
    clip,
    divide,
    exp,
    log,
    maximum,
    minimum,
    multiply,
    negative,
    power,
    rsqrt,
    sqrt,
    subtract,
    tanh,
    where,
)
from tinygrad_ds.ops.experts import experts_in, experts_out
from tinygrad_ds.ops.fp8 import fp8_linear
from tinygrad_ds.ops.fp8_experts import fp8_experts_in, fp8_experts_out
from tinygrad_ds.ops.fp8_swiglu import fp8_swiglu_linear
from tinygrad_ds.ops.head import linear_cross_entropy
from tinygrad_ds.ops.indexing import embedding, getitem, scatter_add, take_along_axis
from tinygrad_ds.ops.loss import cross_entropy
from tinygrad_ds.ops.matmul import einsum, linear, matmul
from tinygrad_ds.ops.moe import combine, dispatch, grouped_linear
from tinygrad_ds.ops.norm import rmsnorm
from tinygrad_ds.ops.policy import grpo_objective
from tinygrad_ds.ops.quantize import dequantize, quantize
from tinygrad_ds.ops.recipe import Fp8Recipe
from tinygrad_ds.ops.reduction import cumsum, logsumexp, max, mean, min, sum, var
from tinygrad_ds.ops.rope import rope
from tinygrad_ds.ops.routing import router_selection
from tinygrad_ds.ops.shape import (
    broadcast_to,
    concatenate,
    expand_dims,
    pad,
    reshape,
    split,
    squeeze,
    stack,
    transpose,
)
from tinygrad_ds.primitive import primitives
from tinygrad_ds.recomputation import recompute
from tinygrad_ds.settings import no_grad, using
from tinygrad_ds.tensor import Tensor

__all__ = [
    "Fp8Recipe",
    "Profile",
    "Tensor",
    "defer_weight_gradients",
    "gradcheck",
    "no_grad",
    "observe",
    "primitives",
    "recompute",
    "set_threads",
    "using",
    "abs",
    "add",
    "astype",
    "attention",
    "broadcast_to",
    "clip",
    "combine",
    "concatenate",
    "cross_entropy",
    "cumsum",
    "dequantize",
    "dispatch",
    "divide",
    "einsum",
    "embedding",
    "exp",
    "expand_dims",
    "experts_in",
    "experts_out",
    "fp8_experts_in",
    "fp8_experts_out",
    "fp8_linear",
    "fp8_swiglu_linear",
    "gelu",
    "getitem",
    "grouped_linear",
    "grpo_objective",
    "jensen_shannon",
    "linear",
    "linear_cross_entropy",
    "log",
    "log_softmax",
    "logsumexp",
    "matmul",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "multiply",
    "negative",
    "pad",
    "power",
    "quantize",
    "relu",
    "reshape",
    "rmsnorm",
    "rope",
    "router_selection",
    "rsqrt",
    "scatter_add",
    "sigmoid",
    "silu",
    "softmax",
    "split",
    "sqrt",
    "squeeze",
    "stack",
    "subtract",
    "sum",
    "swiglu",
    "take_along_axis",
    "tanh",
    "transpose",
    "var",
    "where",
]
