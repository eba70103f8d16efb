"""Numbers side by side: 64 bytes of float32 or float64, handled as one value in a kernel.

Whether a loop becomes vector instructions is up to LLVM, and arrays that might overlap, sums and maxima
often keep it from doing so. `Lanes` says it outright: 16 float32 or 8 float64, loaded, combined and stored
at once, in whatever registers the processor has. Every lane goes through the same operations in the same
order.
"""

import math
import operator

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

BYTES = 64


class Lanes(types.Type):
    """The type of as many numbers as fill BYTES bytes."""

    def __init__(self, dtype: types.Float) -> None:
        super().__init__(name=f"Lanes({dtype})")
        self.dtype = dtype
        self.count = BYTES * 8 // dtype.bitwidth


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes: Lanes) -> None:
        super().__init__(manager, lanes, ir.VectorType(manager[lanes.dtype].get_value_type(), lanes.count))


# LLVM code for what the functions below, and those of tiles.py, have in common


def in_all_lanes(kind: ir.VectorType, number: float) -> ir.Constant:
    return ir.Constant(kind, [number] * kind.count)


def spread(builder, kind: ir.VectorType, number):
    place = ir.IntType(32)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), number, place(0))
    return builder.shuffle_vector(one, one, in_all_lanes(ir.VectorType(place, kind.count), 0))


def mix(builder, a, b, places: list[int]):
    """Lanes chosen from those of a, numbered from 0, and those of b, numbered behind them."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places))


def multiply_add(builder, a, b, c):
    """a b + c, rounded once."""
    kind = a.type
    name = f"llvm.fma.v{kind.count}f{32 if isinstance(kind.element, ir.FloatType) else 64}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return builder.call(function, [a, b, c])


def ahead(builder, pointer, *distances):
    """`pointer` moved by some numbers of bytes."""
    for distance in distances:
        pointer = builder.gep(pointer, [distance])
    return pointer


class Matrix:
    """A 2-d array, of any strides: where its entries are."""

    def __init__(self, context, builder, kind: types.Array, value) -> None:
        parts = context.make_array(kind)(context, builder, value)
        self.builder = builder
        self.data = builder.bitcast(parts.data, ir.IntType(8).as_pointer())
        self.shape = cgutils.unpack_tuple(builder, parts.shape, 2)
        self.steps = cgutils.unpack_tuple(builder, parts.strides, 2)
        self.align = kind.dtype.bitwidth // 8

    def at(self, row, column):
        offsets = (self.builder.mul(place, step) for place, step in zip((row, column), self.steps))
        return ahead(self.builder, self.data, *offsets)

    def load(self, pointer, kind):
        return self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()), align=self.align)

    def store(self, value, pointer):
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer()), align=self.align)


# Lanes in kernels


@intrinsic
def load(typing, array, row, column):
    """The lanes that begin at array[row, column]; the last axis must be contiguous."""

    def code(context, builder, signature, args):
        matrix = Matrix(context, builder, array, args[0])
        return matrix.load(matrix.at(*args[1:]), context.get_value_type(signature.return_type))

    return Lanes(array.dtype)(array, types.intp, types.intp), code


@intrinsic
def store(typing, lanes, array, row, column):
    """Write lanes to where array[row, column] begins."""

    def code(context, builder, signature, args):
        matrix = Matrix(context, builder, array, args[1])
        matrix.store(args[0], matrix.at(*args[2:]))
        return context.get_dummy_value()

    return types.void(lanes, array, types.intp, types.intp), code


@intrinsic
def turn(typing, source, source_column, target, target_row):
    """target[target_row + j, i] = source[i, source_column + j] for i and j below the number of lanes."""

    def code(context, builder, signature, args):
        lanes = context.get_value_type(Lanes(source.dtype))
        source_, target_ = (
            Matrix(context, builder, source, args[0]),
            Matrix(context, builder, target, args[2]),
        )
        word, count = args[1].type, lanes.count
        rows = [source_.load(source_.at(word(i), args[1]), lanes) for i in range(count)]
        step = count // 2
        while step:  # squares of side `step` off the diagonal change places, within squares of twice the side
            for i in (i for i in range(count) if not i & step):
                a, b = rows[i], rows[i + step]
                rows[i] = mix(builder, a, b, [j + count - step if j & step else j for j in range(count)])
                rows[i + step] = mix(
                    builder, a, b, [j + count if j & step else j + step for j in range(count)]
                )
            step //= 2
        for j in range(count):
            target_.store(rows[j], target_.at(builder.add(args[3], word(j)), word(0)))
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp), code


@intrinsic
def splat(typing, number, array):
    """The same number in all lanes, as one of the array's dtype."""

    def code(context, builder, signature, args):
        cast = context.cast(builder, args[0], number, array.dtype)
        return spread(builder, context.get_value_type(signature.return_type), cast)

    return Lanes(array.dtype)(number, array), code


@intrinsic
def larger(typing, a, b):
    """The larger of a and b in every lane, and b where one is NaN."""

    def code(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return a(a, b), code


@intrinsic
def where_less(typing, a, b, then, otherwise):
    """`then` where a < b, `otherwise` elsewhere, also where one of them is NaN."""

    def code(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", *args[:2]), *args[2:])

    return then(a, b, then, otherwise), code


@intrinsic
def exp(typing, x):
    """e^x in every lane, for x up to 80, as `arithmetic.exp` does it: 0 far below, and NaN stays NaN."""
    bits, mantissa, degree, lowest = (32, 23, 7, -86) if x.dtype == types.float32 else (64, 52, 13, -707)
    head = float(np.float32(math.log(2))) if bits == 32 else math.log(2)
    tail = math.log(2) - head if bits == 32 else 2.3190468138462996e-17  # ln 2 = head + tail
    rounder = 1.5 * 2.0**mantissa

    def code(context, builder, signature, args):
        (x,) = args
        whole = ir.VectorType(ir.IntType(bits), x.type.count)

        def number(value: float) -> ir.Constant:
            return in_all_lanes(x.type, value)

        shifted = multiply_add(builder, x, number(1 / math.log(2)), number(rounder))
        k = builder.fsub(shifted, number(rounder))
        r = multiply_add(builder, k, number(-tail), multiply_add(builder, k, number(-head), x))
        e = number(1 / math.factorial(degree))
        for n in reversed(range(degree)):
            e = multiply_add(builder, e, r, number(1 / math.factorial(n)))
        shift = builder.shl(builder.bitcast(shifted, whole), in_all_lanes(whole, mantissa))
        e = builder.bitcast(builder.add(builder.bitcast(e, whole), shift), x.type)
        return builder.select(builder.fcmp_ordered("<", x, number(lowest)), number(0.0), e)

    return x(x), code


class _SameKind(AbstractTemplate):
    def generic(self, args, keywords):
        if len(args) == 2 and isinstance(args[0], Lanes) and args[0] == args[1]:
            return signature(args[0], *args)


def _operator(symbol, instruction: str) -> None:
    infer_global(symbol)(type(f"_{instruction}", (_SameKind,), {}))

    @lower_builtin(symbol, Lanes, Lanes)
    def code(context, builder, signature, args):
        return getattr(builder, instruction)(*args, flags=("contract",))


for _symbol, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operator(_symbol, _instruction)
