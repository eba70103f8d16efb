"""The objective of group relative policy optimisation (GRPO): a clipped ratio, and a pull to a reference."""

from typing import NamedTuple

from tinygrad_ds.device import Array, namespace
from tinygrad_ds.ops.broadcast import Form, fit, form
from tinygrad_ds.primitive import primitive

AGGREGATES = ("grpo", "bnpo", "dr_grpo")


class GrpoObjectiveSaved(NamedTuple):
    """The parts of the derivative, token by token; what is 0 outside the completions stays 0."""

    rho: Array  # (N, T)  the ratio, the same along a row where it is the sequence's
    slope: Array  # (N, T)  dL/drho
    pull: Array  # (N, T)  what k3 adds to dL/dlogp directly
    share: (
        Array | None
    )  # (N, T)  drho/dlogp / rho of a sequence's ratio, 1 over its tokens; None: the token's
    forms: tuple[Form, ...]  # of the arrays


@primitive
def grpo_objective(
    logp,
    old_logp,
    advantages,
    mask,
    ref_logp=None,
    *,
    beta=0.0,
    eps_low=0.2,
    eps_high=0.28,
    aggregate="grpo",
    ratio="token",
    max_length=None,
    weighted_k3=False,
    count=None,
):
    """What raises the likelihood of completions that did better than their group, and not too far at once.

    logp, old_logp, ref_logp (N, T): log-probabilities of the tokens of N completions under the policy, the
    policy that sampled them, and the reference; advantages A (N,); mask (N, T), not 0 at tokens of the
    completion -> the loss, 0-d.  Shao et al. 2024 (DeepSeekMath, section 4.1); Liu et al. 2025 (Dr. GRPO).

        rho_t  = exp(logp_t - old_t);  with ratio "sequence" its geometric mean over the n tokens of the row
        l_t    = -min(rho_t A, clip(rho_t, 1 - eps_low, 1 + eps_high) A) + beta k_t
        k_t    = r_t - ln r_t - 1,  r_t = exp(ref_t - logp_t);  times rho_t if weighted_k3
        L      = sum_t w_t l_t over the tokens of all completions, with w_t
                   grpo     1 / (n N)              the mean over rows of each row's mean
                   bnpo     1 / sum of all n       the mean over tokens
                   dr_grpo  1 / (N max_length)     a token counts the same in every batch

    k_t is at least 0, and its mean over tokens that the policy samples is KL(policy || reference) (Schulman
    2020, k3). count: what a micro-batch has of the whole batch in place of its own N (bnpo: sum of n), so
    that the losses of micro-batches add up. What stands outside the mask is not read. ValueError for shapes
    that do not match, no token at all, and dr_grpo without max_length.
    """
    xp = namespace(logp)
    check_policy(logp, old_logp, advantages, mask, ref_logp, aggregate, ratio, max_length, count)
    inside = mask != 0  # (N, T)
    n = inside.sum(axis=1, keepdims=True)  # (N, 1)
    w = _weights(inside, n, aggregate, max_length or 0, count).astype(logp.dtype)
    advantages, zero = advantages[:, None], xp.zeros_like(logp)

    share = None
    gain = xp.where(inside, logp - old_logp, zero)
    if ratio == "sequence":
        share = (inside / xp.maximum(n, 1)).astype(logp.dtype)
        gain = xp.broadcast_to((gain * share).sum(axis=1, keepdims=True), gain.shape)
    rho = xp.exp(gain)
    plain, clipped = rho * advantages, xp.clip(rho, 1 - eps_low, 1 + eps_high) * advantages
    losses = -xp.minimum(plain, clipped)
    slope = xp.where(plain <= clipped, -advantages, zero) * w
    pull = zero
    if ref_logp is not None:
        behind = xp.where(inside, ref_logp - logp, zero)  # ln r
        r = xp.exp(behind)
        k3 = r - behind - 1
        pull = beta * w * (1 - r)
        if weighted_k3:
            slope = slope + beta * w * k3
            k3, pull = k3 * rho, pull * rho
        losses = losses + beta * k3
    arrays = (logp, old_logp, advantages, mask) if ref_logp is None else (logp,) * 5
    return (w * losses).sum(), GrpoObjectiveSaved(rho, slope, pull, share, tuple(map(form, arrays)))


@grpo_objective.backward
def grpo_objective_backward(saved, g):
    """From g = dL/dloss to dL/dlogp. Old and reference log-probabilities and advantages are constants.

    The clipped part of a token is -min(rho A, clip(rho) A). Where rho A is the smaller one its slope is -A;
    where the clipped one is smaller, the clip is at a bound, and the slope is 0. That is: a token that is
    good (A > 0) stops pulling once rho is above 1 + eps_high, a bad one once rho is below 1 - eps_low. In
    between, and at a bound itself, both are equal, and we take -A:
        s_t = dL/drho_t = w_t (-A [rho A <= clip(rho) A]  +  beta k_t, if k3 is weighted by rho)

    rho = exp(logp - old), so drho_t/dlogp_t = rho_t. A sequence's ratio is exp of the mean over its n tokens,
    so drho/dlogp_u = rho / n for each u of them, and every token t of the row reaches the loss through it:
        token:     dL/dlogp_t = s_t rho_t
        sequence:  dL/dlogp_u = rho / n sum_t s_t

    k3 = r - ln r - 1 with ln r = ref - logp, and dr/dlogp = -r:
        dk3/dlogp = -r + 1,    which is 0 where policy and reference agree;   times rho if weighted
        dL/dlogp_t += beta w_t (1 - r_t)

    At rho = 1 and beta = 0 all that is left is -w_t A d(logp_t): REINFORCE with the advantage A.
    """
    rho, slope, pull, share, forms = saved
    through = slope * rho if share is None else share * (slope * rho).sum(axis=1, keepdims=True)
    grad = g * (through + pull)
    return (fit(grad, forms[0]), *(None for _ in forms[1:]))


def _weights(inside: Array, n: Array, aggregate: str, max_length: int, count: float | None) -> Array:
    """w (N, T)."""
    if aggregate == "bnpo":
        return inside / (count or n.sum())
    rows = count or len(inside)
    if aggregate == "dr_grpo":
        return inside / (rows * max_length)
    return inside / (rows * namespace(n).maximum(n, 1))


def check_policy(
    logp: Array,
    old_logp: Array,
    advantages: Array,
    mask: Array,
    ref_logp: Array | None,
    aggregate: str,
    ratio: str,
    max_length: int | None,
    count: float | None,
) -> None:
    """Raise ValueError for what is no batch of completions, or options that name no loss."""
    if aggregate not in AGGREGATES:
        raise ValueError(f"aggregate is {aggregate!r} but must be {', '.join(AGGREGATES[:-1])} or dr_grpo")
    if ratio not in ("token", "sequence"):
        raise ValueError(f"ratio is {ratio!r} but must be token or sequence")
    if aggregate == "dr_grpo" and not (max_length or 0) >= 1:
        raise ValueError(
            f"max_length is {max_length} but dr_grpo divides by the most tokens that a completion may have: "
            "give it, and not the length to which this batch is padded"
        )
    shapes = {"old_logp": old_logp.shape, "mask": mask.shape}
    if ref_logp is not None:
        shapes["ref_logp"] = ref_logp.shape
    for name, shape in shapes.items():
        if logp.ndim != 2 or shape != logp.shape:
            raise ValueError(f"{name} has shape {shape} and logp {logp.shape}: both must be (N, T)")
    if advantages.shape != logp.shape[:1]:
        raise ValueError(
            f"advantages have shape {advantages.shape} but logp {logp.shape}: one for each of its rows"
        )
    if count is None and not (mask != 0).any():
        raise ValueError("mask is 0 everywhere, so there is no token to learn from: leave such a batch out")
    if count is not None and not count > 0:
        raise ValueError(f"count is {count} but the whole batch must hold something: at least 1")
