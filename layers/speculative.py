"""Speculative decoding (Leviathan et al. 2023) with MTP modules as the drafter (DeepSeek-V3, section 2.2).

Modules propose D tokens, one after the other; one pass of the trunk over all of them says what it would
have taken.

    d ~ q_j, the module's distribution;  p_j the trunk's      accept d if u < p_j(d) / q_j(d)
    the first that is refused becomes a draw from max(p_j - q_j, 0) / sum, and what follows it is dropped
    if none is refused, one token more is drawn from the trunk's p after the last

A token comes out with probability min(q, p) + (1 - sum min(q, p)) max(p - q, 0) / sum max(p - q, 0). As
sum min(q, p) + sum max(p - q, 0) = 1, this is min(q, p) + max(p - q, 0) = p: the trunk's own distribution,
whatever the drafter says. Greedy is the case where p and q have all mass on one token.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from layers.sampling import ACCEPT, CHOOSE, DRAFT, Sampler, draw
from tinygrad_ds import Tensor
from tinygrad_ds.device import Array, namespace, to_host

if TYPE_CHECKING:
    from layers.model import DeepSeekModel


@dataclass
class SpeculationStats:
    """How well drafts were guessed. Counted over rows that are not finished yet."""

    drafted: int = 0
    accepted: int = 0
    tokens: int = 0
    passes: int = 0  # of the trunk, one for each row in it; the pass over the prompt is one too

    def count(self, drafted: int, accepted: int, tokens: int) -> None:
        """Add one pass of the trunk over one row."""
        self.drafted += int(drafted)
        self.accepted += int(accepted)
        self.tokens += tokens
        self.passes += 1

    @property
    def acceptance_rate(self) -> float:
        """The share of drafted tokens that were kept; 0 before any was drafted."""
        return self.accepted / max(self.drafted, 1)

    @property
    def tokens_per_pass(self) -> float:
        """New tokens for each pass of the trunk: 1 without speculation, at most 1 + the number of modules."""
        return self.tokens / max(self.passes, 1)

    def __str__(self) -> str:
        return (
            f"{self.tokens_per_pass:.2f} tokens per trunk pass, "
            f"{self.acceptance_rate:.1%} of {self.drafted} drafted tokens accepted"
        )


def verify(p: np.ndarray, drafts: np.ndarray, q: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many drafts of each row stand, and the token that follows them.

    p (rows, D + 1, vocab): the trunk's distributions for the drafted tokens and the one after; drafts
    (rows, D) drawn from q (rows, D, vocab); u (rows, D + 1, 3).
    -> accepted (rows,), 0 to D each, and following (rows,).
    """
    rows, proposed = np.arange(len(drafts)), drafts.shape[1]
    p_d = np.take_along_axis(p[:, :proposed], drafts[..., None], axis=-1)[..., 0]  # (rows, D)
    q_d = np.take_along_axis(q, drafts[..., None], axis=-1)[..., 0]
    stands = u[:, :proposed, ACCEPT] * q_d < p_d
    accepted = np.cumprod(stands, axis=1).sum(axis=1)  # those before the first that is refused
    wanted = p[rows, accepted]  # (rows, vocab)
    if proposed:
        refused = np.minimum(accepted, proposed - 1)
        rest = np.maximum(wanted - q[rows, refused], 0.0)
        use_rest = (accepted < proposed) & (rest.sum(axis=-1) > 0)
        wanted = np.where(use_rest[:, None], rest, wanted)
    return accepted, draw(wanted, u[rows, accepted, CHOOSE])


class Drafter:
    """The MTP modules with their caches, kept in step with the trunk's.

    Module k (from 1) has entry i, which joins h^{k-1}_i with token i + k, in column first + k - 1 + i. So
    in column c every module reads the token of column c + 1, and modules after the first the state that
    the one before made in column c - 1; and all caches have the trunk's length.
    """

    def __init__(self, model: "DeepSeekModel", batch: int) -> None:
        self.model = model
        self.caches = model.new_mtp_caches(batch)
        # what module k > 1 reads first: h^{k-1} of the column before the new ones
        self.carried = [np.zeros((batch, 1, model.config.hidden_size), model.dtype) for _ in self.caches[1:]]

    def propose(
        self,
        h: Array,
        tokens: np.ndarray,
        known: np.ndarray,
        first: np.ndarray,
        count: int,
        sampler: Sampler,
        made: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read what the trunk has taken, then draft `count` tokens for every row.

        h (batch, m, hidden) of the trunk's new columns and tokens (batch, m) of the columns after them, of
        which known[row] stand, the last one just drawn; the rest of a shorter row has no meaning. first
        (batch,): where rows begin; made (batch,): how many new tokens they have.
        -> drafts (batch, count), and the distributions (batch, count, vocab) that they were drawn from.
        """
        rows, m = np.arange(len(tokens)), h.shape[1]
        xp, u = namespace(h), sampler.numbers(made, count)
        drafts: list[np.ndarray] = []
        distributions: list[np.ndarray] = []
        for k, cache in enumerate(self.caches[:count], start=1):
            start = cache.length
            if k > 1:
                h = xp.concatenate([xp.asarray(self.carried[k - 2]), h], axis=1)  # (batch, m + k - 1, hidden)
                self.carried[k - 2] = h[rows, known][:, None]
                tokens = np.pad(tokens, ((0, 0), (0, 1)))
                tokens[rows, known + k - 2] = drafts[-1]
            h = self.model.mtp_hidden(k, tokens, Tensor(h), cache=cache, first=first + k - 1)[0].data
            logits = to_host(self.model.head(Tensor(h[rows, known + k - 2])).data)  # (batch, vocab)
            distributions.append(sampler.distribution(logits))
            drafts.append(draw(distributions[-1], u[:, k - 1, DRAFT]))
            cache.truncate(start + m)  # what was read of drafts is read again when the tokens are known
            cache.shift_right(m - known)
        return np.stack(drafts, axis=1), np.stack(distributions, axis=1)
