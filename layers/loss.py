"""The loss of a whole model (DeepSeek-V3, sections 2.1.2 and 2.2).

    L = L_main + lambda/D sum_k L_k + alpha sum_layers L_balance

L_main is the mean cross-entropy over the targets that count, L_k that of MTP module k, L_balance the mean
over sequences of a layer's balance loss (layers.balance).
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import tinygrad_ds as tg
from tinygrad_ds import Tensor
from tinygrad_ds.device import Array, place, to_host
from tinygrad_ds.tensor import plain

if TYPE_CHECKING:
    from layers.model import DeepSeekModel

IGNORED = -100


class Losses(NamedTuple):
    """`total` and its parts before they are weighted; None where a part was not asked for."""

    total: Tensor
    main: Tensor
    mtp: Tensor | None  # mean over the modules
    balance: Tensor | None  # sum over the layers


def losses(
    model: "DeepSeekModel",
    ids: Any,
    targets: Any,
    mtp_weight: float,
    balance_weight: float,
    *,
    first: Any = None,
    count: float | Array | None = None,
) -> Losses:
    """The loss of ids (batch, time) with targets (batch, time) aligned to them: targets[i] follows ids[i].

    count: for a micro-batch, what its parts are divided by instead of by its own counts, so that the losses
    and gradients of all micro-batches add up to those of the whole batch: the sum of `count_targets` over
    them all. A single number, the targets that count in all, stands for it where all micro-batches ignore the
    same places. Raises ValueError for targets of another shape, none that count, or MTP without modules.
    """
    ids, targets = to_host(plain(ids)), to_host(plain(targets))
    if targets.shape != ids.shape:
        raise ValueError(f"targets have shape {targets.shape} but ids {ids.shape}: one target for each id")
    if mtp_weight and not model.mtp:
        raise ValueError(
            f"mtp_weight is {mtp_weight} but the model has no MTP modules: set num_nextn_predict_layers, "
            "or mtp_weight to 0"
        )
    first = None if first is None else np.asarray(first)
    own = count_targets(targets, len(model.mtp))
    if count is None and not own[0]:
        raise ValueError(f"all targets are {IGNORED}, so there is no loss: at least one must count")
    over = own if count is None else np.asarray(count) * (own / max(own[0], 1) if np.ndim(count) == 0 else 1)

    h, balances = model.trunk(ids, first=first, balance=bool(balance_weight))
    total = main = mean_loss(model, h, targets, over[0])
    mtp = balance = None
    if mtp_weight:
        parts = []
        for k in range(1, len(model.mtp) + 1):
            began = first if first is None or first.ndim == 1 else first[:, : ids.shape[1] - k]
            entries = h[:, : h.shape[1] - 1]
            h, loss = model.mtp_hidden(k, ids[:, k:], entries, first=began, balance=bool(balance_weight))
            balances.append(loss)
            parts.append(mean_loss(model, h, targets[:, k:], over[k]))
        mtp = added(parts) / len(parts)
        total = total + mtp_weight * mtp
    if balance_weight:
        balance = added(balances) * (len(ids) / over[-1])
        total = total + balance_weight * balance
    return Losses(total, main, mtp, balance)


def mean_loss(model: "DeepSeekModel", h: Tensor, targets: np.ndarray, count: float) -> Tensor:
    """The cross-entropy of h (batch, time, hidden) after a final norm, summed and divided by `count`."""
    loss = tg.linear_cross_entropy(
        h, model.head_weight, place(targets), reduction="sum", ignore_index=IGNORED
    )
    return loss / float(count or 1)


def count_targets(targets: np.ndarray, depths: int) -> np.ndarray:
    """(1 + depths + 1,): targets that count for the main loss and for each MTP module; and the sequences."""
    counted = targets != IGNORED
    return np.array([counted[:, k:].sum() for k in range(depths + 1)] + [len(targets)])


def added(losses: list[Tensor]) -> Tensor:
    """Their sum."""
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total
