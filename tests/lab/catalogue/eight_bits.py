"""Wrong answers to the exercises in FP8."""

import numpy as np

from tests.lab.catalogue.making import wrong


@wrong("straight_through", "zero")
def straight_through_true_slope(saved, g):
    return (np.zeros_like(g),)


@wrong("straight_through", "scale")
def straight_through_identity(saved, g):
    return (g.copy(),)


@wrong("straight_through", "scale")
def straight_through_times_the_scale(saved, g):
    return (g * saved[1],)


@wrong("straight_through", "sign")
def straight_through_backwards(saved, g):
    return (-g / saved[1],)


@wrong("straight_through")
def straight_through_only_the_inside(saved, g):
    x, s = saved
    return (np.where(np.abs(x / s) < 448, g / s, 0),)


@wrong("fp8_linear", "axis")
def fp8_linear_x_as_it_was_kept(saved, g):
    kept, factor, q, side = saved
    return q(g, 1, side) @ factor, q(g, side, 1).T @ kept


@wrong("fp8_linear", "axis")
def fp8_linear_g_tiled_once(saved, g):
    kept, factor, q, side = saved
    sent = q(g, 1, side)
    return sent @ factor, sent.T @ q(kept, side, 1)


@wrong("fp8_linear", "axis")
def fp8_linear_g_down_for_both(saved, g):
    kept, factor, q, side = saved
    down = q(g, side, 1)
    return down @ factor, down.T @ q(kept, side, 1)


@wrong("fp8_linear", "missing factor")
def fp8_linear_g_in_full(saved, g):
    kept, factor, q, side = saved
    return g @ factor, g.T @ q(kept, side, 1)


@wrong("fp8_linear", "missing factor")
def fp8_linear_never_re_tiled(saved, g):
    kept, factor, q, side = saved
    sent = q(g, 1, side)
    return sent @ factor, sent.T @ kept


@wrong("fp8_linear", "shape", "transposed", "crash")
def fp8_linear_weight_transposed(saved, g):
    kept, factor, q, side = saved
    return q(g, 1, side) @ factor, q(kept, side, 1).T @ q(g, side, 1)
