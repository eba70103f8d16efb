"""Wrong answers to the first steps of the ladder."""

import numpy as np

from tests.lab import answers
from tests.lab.answers import back
from tests.lab.catalogue.making import wrong
from tinygrad_ds.ops.broadcast import sum_to


@wrong("add", "broadcast")
def add_not_summed(saved, g):
    return g, g


@wrong("add", "shape", "broadcast")
def add_takes_the_first_copy(saved, g):
    a, b = saved
    return g[(0,) * (g.ndim - len(a))], g[(0,) * (g.ndim - len(b))]


@wrong("add", "sign")
def add_like_subtract(saved, g):
    a, b = saved
    return sum_to(g, a), -sum_to(g, b)


@wrong("add", "count")
def add_no_tuple(saved, g):
    return g


@wrong("add", "factor")
def add_mean_over_copies(saved, g):
    a, b = saved
    return sum_to(g, a) * np.prod(a) / g.size, sum_to(g, b) * np.prod(b) / g.size


@wrong("multiply", "swapped", "missing factor")
def multiply_own_factor(saved, g):
    a, b = saved
    return sum_to(g * a, a.shape) if a.shape == g.shape else sum_to(g * a, a.shape), sum_to(g * b, b.shape)


@wrong("multiply", "broadcast")
def multiply_not_summed(saved, g):
    a, b = saved
    return g * b, g * a


@wrong("multiply", "missing factor")
def multiply_without_g(saved, g):
    a, b = saved
    ones = np.ones_like(g)
    return sum_to(ones * b, a.shape), sum_to(ones * a, b.shape)


@wrong("multiply", "none")
def multiply_forgets_one(saved, g):
    a, b = saved
    return sum_to(g * b, a.shape), None


@wrong("divide", "sign")
def divide_sign(saved, g):
    a, b = saved
    return sum_to(g / b, a.shape), sum_to(g * a / b**2, b.shape)


@wrong("divide", "broadcast")
def divide_sums_only_the_divisor(saved, g):
    return g / saved[1], answers.divide(saved, g)[1]


@wrong("divide", "term")
def divide_power(saved, g):
    a, b = saved
    return sum_to(g / b, a.shape), sum_to(-g * a / b, b.shape)


@wrong("exp", "missing factor")
def exp_forgets_y(y, g):
    return (g,)


@wrong("exp", "missing factor")
def exp_forgets_g(y, g):
    return (y,)


@wrong("exp", "factor")
def exp_half(y, g):
    return (g * y / 2,)


@wrong("tanh", "term")
def tanh_no_square(y, g):
    return (g * (1 - y),)


@wrong("tanh", "sign")
def tanh_sign(y, g):
    return (g * (y * y - 1),)


@wrong("sigmoid", "term")
def sigmoid_one_factor(y, g):
    return (g * y,)


@wrong("sigmoid", "sign")
def sigmoid_sign(y, g):
    return (g * y * (y - 1),)


@wrong("relu", "term")
def relu_times_x(x, g):
    return (g * np.maximum(x, 0),)


@wrong("relu", "mask")
def relu_no_mask(x, g):
    return (g,)


@wrong("relu", "mask")
def relu_other_side(x, g):
    return (np.where(x < 0, g, 0),)


@wrong("silu", "term")
def silu_drops_the_second(saved, g):
    _, sigma = saved
    return (g * sigma,)


@wrong("silu", "term")
def silu_drops_the_first(saved, g):
    x, sigma = saved
    return (g * x * sigma * (1 - sigma),)


@wrong("gelu", "term")
def gelu_drops_the_inner(saved, g):
    x, t = saved
    return (g * (1 + t) / 2,)


@wrong("gelu", "term")
def gelu_forgets_the_three(saved, g):
    x, t = saved
    du = np.sqrt(2 / np.pi) * (1 + 0.044715 * x * x)
    return (g * ((1 + t) / 2 + x / 2 * (1 - t * t) * du),)


@wrong("transpose", "shape", "axis", "transposed", "partly")
def transpose_same_again(axes, g):
    return (g.transpose(axes),)


@wrong("transpose", "shape", "transposed")
def transpose_reversed(axes, g):
    return (g.T,)


@wrong("concatenate", "shape")
def concatenate_equal_parts(shapes, g):
    return tuple(np.array_split(g, len(shapes), axis=-1))


@wrong("concatenate", "swapped", "shape")
def concatenate_backwards(shapes, g):
    ends = np.cumsum([shape[-1] for shape in shapes])[:-1]
    return tuple(np.split(g, ends, axis=-1)[::-1])


@wrong("broadcast_to", "broadcast")
def broadcast_to_not_summed(shape, g):
    return (g,)


@wrong("broadcast_to", "factor")
def broadcast_to_mean(shape, g):
    return (sum_to(g, shape) * np.prod(shape) / g.size,)


@wrong("sum", "shape")
def sum_not_spread(saved, g):
    return (g,)


@wrong("sum", "factor")
def sum_like_mean(saved, g):
    shape, axis, keepdims = saved
    n = int(np.prod(shape)) if axis is None else shape[axis]
    return (back(g / n, shape, axis, keepdims),)


@wrong("sum", "crash", "axis")
def sum_last_axis_always(saved, g):
    shape, _, keepdims = saved
    return (np.broadcast_to(g if keepdims else np.expand_dims(g, -1), shape),)


@wrong("mean", "factor")
def mean_like_sum(saved, g):
    return (back(g, *saved),)


@wrong("mean", "factor")
def mean_of_everything(saved, g):
    shape, axis, keepdims = saved
    return (back(g / np.prod(shape), shape, axis, keepdims),)


@wrong("max", "mask")
def max_no_mask(saved, g):
    x, axis, keepdims = saved
    return (back(g, x.shape, axis, keepdims),)


@wrong("max", "partly")
def max_of_all(saved, g):
    x, axis, keepdims = saved
    return (np.where(x == x.max(), back(g, x.shape, axis, keepdims), 0),)


@wrong("var", "factor")
def var_no_two(saved, g):
    d, divisor, axis, keepdims = saved
    return (d * back(g / divisor, d.shape, axis, keepdims),)


@wrong("var", "scale", "factor")
def var_wrong_divisor(saved, g):
    d, _, axis, keepdims = saved
    n = d.size if axis is None else d.shape[axis]
    return (2 * d * back(g / n, d.shape, axis, keepdims),)


@wrong("embedding", "repeats")
def embedding_overwrites(saved, g):
    shape, ids = saved
    grad = np.zeros(shape)
    grad[ids] = g
    return grad, None


@wrong("embedding", "none")
def embedding_gives_ids_one(saved, g):
    shape, ids = saved
    grad = np.zeros(shape)
    np.add.at(grad, ids, g)
    return grad, np.zeros(ids.shape)
