"""Cases for the elementwise part of ops/activation.py."""

from tests.tinygrad_ds.harness import strategy
from tests.tinygrad_ds.strategies.elementwise import one_array

sigmoid_cases = strategy("sigmoid")(one_array(low=-4.0, high=4.0))
silu_cases = strategy("silu")(one_array(low=-4.0, high=4.0))
gelu_cases = strategy("gelu")(one_array(low=-3.0, high=3.0))
relu_cases = strategy("relu")(one_array(kinks=(0.0,)))
