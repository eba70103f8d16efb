"""tinygrad_ds: an engine whose every gradient is a short function beside its forward, written by hand.

import tinygrad_ds as tg
x = tg.Tensor([1.0, 2.0], requires_grad=True)
(x * x).sum().backward()
x.grad                                    # array([2., 4.])
"""

from tinygrad_ds import runtime  # isort: skip - before NumPy and BLAS load
from tinygrad_ds import ops
from tinygrad_ds.deferred import defer_weight_gradients
from tinygrad_ds.gradient_check import gradcheck
from tinygrad_ds.primitive import primitives
from tinygrad_ds.recomputation import recompute
from tinygrad_ds.runtime import set_threads
from tinygrad_ds.settings import no_grad, using
from tinygrad_ds.tensor import Tensor

globals().update(primitives)
