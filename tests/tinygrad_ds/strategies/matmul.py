"""Cases for ops/matmul.py."""

from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import Case, broadcast_pair, composition, reals, shapes, strategy


@strategy("matmul")
@st.composite
def matmul_cases(draw):
    """Batches that broadcast, 1-d operands, and axes of size 0 and 1."""
    n, k, m = (draw(st.integers(0, 3)) for _ in range(3))
    first, second = draw(broadcast_pair(max_dims=2, max_side=3))
    a = (k,) if draw(st.integers(0, 4)) == 0 else (*first, n, k)
    b = (k,) if draw(st.integers(0, 4)) == 0 else (*second, k, m)
    return Case((draw(reals(a)), draw(reals(b))))


@strategy("linear")
@st.composite
def linear_cases(draw):
    """Any number of rows, with and without a bias."""
    rows, inner, outer = draw(shapes(max_dims=2)), draw(st.integers(0, 4)), draw(st.integers(0, 4))
    arrays = [draw(reals((*rows, inner))), draw(reals((outer, inner)))]
    if draw(st.booleans()):
        arrays.append(draw(reals((outer,))))
    return Case(tuple(arrays))


@composition("linear")
def linear_composed(x, weight, bias=None):
    y = tg.matmul(x, weight.transpose())
    return y if bias is None else y + bias


@st.composite
def spelt_subscripts(draw):
    """Operands with repeated labels, labels of one operand alone, `...`, axes of size 1, and any result."""
    sizes = {label: draw(st.integers(0, 3)) for label in "ijk"}
    dots = draw(shapes(max_dims=2, max_side=3))
    terms, arrays = [], []
    for _ in range(draw(st.integers(1, 3))):
        labels = draw(st.text("ijk", max_size=3))
        shown = draw(st.integers(0, len(dots))) if draw(st.booleans()) else None
        place = draw(st.integers(0, len(labels)))
        stretched = {label: draw(st.integers(0, 5)) == 0 for label in "ijk"}
        shape = [1 if stretched[label] else sizes[label] for label in labels]
        if shown is None:
            terms.append(labels)
        else:
            hidden = dots[len(dots) - shown :]
            shape[place:place] = [1 if draw(st.integers(0, 3)) == 0 else size for size in hidden]
            terms.append(f"{labels[:place]}...{labels[place:]}")
        arrays.append(draw(reals(tuple(shape))))
    subscripts = ",".join(terms)
    if draw(st.booleans()):
        used = sorted(set(subscripts) & set("ijk"))
        result = "".join(draw(st.permutations(used))[: draw(st.integers(0, len(used)))])
        place = draw(st.integers(0, len(result)))
        subscripts += f"->{result[:place]}...{result[place:]}" if "..." in subscripts else f"->{result}"
    return Case(tuple(arrays), {"subscripts": subscripts})


strategy("einsum")(spelt_subscripts)
