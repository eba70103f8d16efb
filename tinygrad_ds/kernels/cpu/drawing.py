"""Drawing, fused: a row's exponentials and both sums while the row is in cache, then the walk to share u.

Exponentials are in the format of the logits, sums in float64: with float32 logits log-probabilities are right
to some 1e-6, and a token may differ from the reference's where u is that close to a border between two.
"""

import numpy as np
from numba import prange

from tinygrad_ds.kernels.cpu.arithmetic import exp, largest
from tinygrad_ds.kernels.cpu.common import PARTS, covered, kernel, share
from tinygrad_ds.kernels.cpu.layout import contiguous
from tinygrad_ds.ops.drawing import Drawn


def draw_tokens(logits, u, *, temperature):
    if not covered(logits) or logits.ndim != 2 or not logits.size:
        return NotImplemented
    rows = len(logits)
    drawn = Drawn(np.empty(rows, np.int64), np.empty(rows), np.empty(rows))
    colder = logits.dtype.type(1 / temperature if temperature else 1)
    _draw(contiguous(logits), contiguous(np.asarray(u, np.float64)), colder, temperature == 0, *drawn)
    return drawn


@kernel("(T[:, ::1], float64[::1], T, boolean, int64[::1], float64[::1], float64[::1])")
def _draw(logits, u, colder, greedy, tokens, logp, entropy):
    rows, vocab = logits.shape
    for part in prange(PARTS):
        z, weight = np.empty(vocab, logits.dtype), np.empty(vocab, logits.dtype)
        for n in range(share(part, rows), share(part + 1, rows)):
            row = logits[n]
            top = largest(row)
            for v in range(vocab):
                z[v] = (row[v] - top) * colder
                weight[v] = exp(z[v])
            total, mean = 0.0, 0.0
            for v in range(vocab):
                total += np.float64(weight[v])
                mean += np.float64(weight[v]) * np.float64(z[v])
            token = 0
            if greedy:
                while token < vocab - 1 and row[token] != top:
                    token += 1
            else:
                wanted, reached = u[n] * total, 0.0
                for v in range(vocab):
                    if weight[v] > 0:
                        token = v
                    reached += np.float64(weight[v])
                    if reached > wanted:
                        break
            log_total = np.log(total)
            tokens[n], logp[n], entropy[n] = token, np.float64(z[token]) - log_total, log_total - mean / total
