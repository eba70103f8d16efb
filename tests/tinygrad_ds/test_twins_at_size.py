"""Every twin equals its reference where arrays are large enough for all of a kernel.

The registry walk's cases have a few rows. Here every one of a kernel's parts has some, and rows fill several
vectors and leave a remainder, so that a share that is cut wrongly shows.
"""

import pytest

import tinygrad_ds as tg
from lab.cases import MAKERS, Case
from lab.cases.making import Draw
from tests.tinygrad_ds.test_registry import TWINS, cast, cotangents_for, outputs_of, same_arrays

ROWS = {
    "batch": 2,
    "time": 21,
    "d": 22,
    "out": 37,
    "heads": 3,
    "group": 2,
    "head": 10,
    "vocab": 41,
    "experts": 5,
    "chosen": 2,
}
FEW_EXPERTS = ROWS | {"experts": 2}  # so that each has as many rows as there are tokens
WIDE = ROWS | {"time": 9, "d": 35, "out": 70, "heads": 2, "group": 1, "head": 66, "vocab": 300, "experts": 18}
FOR_LARGE_ONLY = {"concatenate", "split"}  # test_kernel_layouts.py gives them arrays that they serve


def sized(name: str) -> list[Case]:
    """Cases of three fixed sizes, and of random ones with random options."""
    draws = [Draw(0, sizes=sizes, digits=None) for sizes in (ROWS, FEW_EXPERTS, WIDE)]
    draws += [Draw((1, seed), side=6, digits=None) for seed in range(6)]
    return [MAKERS[name](draw) for draw in draws]


def both_halves(pair, saved, sent):
    """The whole derivative from its halves, which must not give the same gradient twice."""
    halves = zip(pair.backward_input(saved, sent), pair.backward_weight(saved, sent), strict=True)
    for position, (of_input, of_weight) in enumerate(pairs := list(halves)):
        assert (of_weight if position not in pair.weights else of_input) is None
    return tuple(b if a is None else a for a, b in pairs)


@pytest.mark.parametrize("name", sorted({name for name, _ in TWINS} - FOR_LARGE_ONLY))
def test_twin_equals_reference_where_every_part_has_rows(name):
    primitive, twin = tg.primitives[name], tg.primitives[name].fused["cpu"]
    served = 0
    for case in sized(name):
        for dtype, tolerance in (("float64", 1e-12), ("float32", 2e-5)):
            arrays = cast(case, dtype)
            answer = twin.forward(*arrays, **case.options)
            if answer is NotImplemented:
                continue
            served += 1
            result, saved = primitive.forward(*arrays, **case.options)
            same_arrays(outputs_of(answer[0]), outputs_of(result), tolerance)
            sent = cotangents_for(result)
            expected = primitive.backward(saved, sent)
            same_arrays(twin.backward(answer[1], sent), expected, tolerance)
            if primitive.weights:
                same_arrays(both_halves(twin, answer[1], sent), expected, tolerance)
    assert served


@pytest.mark.parametrize("name", sorted({name for name, _ in TWINS}))
def test_a_twin_takes_none_where_no_gradient_arrives(name):
    """Of several outputs, each alone has a gradient."""
    primitive, twin = tg.primitives[name], tg.primitives[name].fused["cpu"]
    for arrays, options in sized(name):
        result, saved = primitive.forward(*arrays, **options)
        answer = twin.forward(*arrays, **options)
        if not isinstance(result, tuple) or answer is NotImplemented:
            continue
        for position, sent in enumerate(cotangents_for(result)):
            alone = tuple(sent if place == position else None for place in range(len(result)))
            if sent is not None:
                same_arrays(twin.backward(answer[1], alone), primitive.backward(saved, alone), 1e-12)
