"""Numbers side by side: 64 bytes of float32 or float64, one value in a kernel, and products made of them.

Whether a loop becomes vector instructions is up to LLVM, and arrays that might overlap, sums and maxima
often keep it from doing so. `Lanes` says it outright: 16 float32 or 8 float64, loaded, combined and stored
at once, in whatever registers the processor has. Every lane goes through the same operations in the same
order.

`add_product` and `set_product` multiply small matrices, and keep 6 rows of the result in registers while
going through the inner dimension. At the sizes of one attention head that is faster than a call of BLAS,
which has to copy the matrices into its own order first.
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


# LLVM code for the parts that the functions below have in common


def _all_lanes(kind: ir.VectorType, number: float) -> ir.Constant:
    return ir.Constant(kind, [number] * kind.count)


def _splat(builder, kind: ir.VectorType, number):
    place = ir.IntType(32)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), number, place(0))
    return builder.shuffle_vector(one, one, _all_lanes(ir.VectorType(place, kind.count), 0))


def _fma(builder, a, b, c):
    """a b + c, rounded once."""
    kind = a.type
    name = f"llvm.fma.v{kind.count}f{BYTES * 8 // kind.count}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return builder.call(function, [a, b, c])


def _ahead(builder, pointer, *distances):
    """`pointer` moved by some numbers of bytes."""
    for distance in distances:
        pointer = builder.gep(pointer, [distance])
    return pointer


class _Matrix:
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
        return _ahead(self.builder, self.data, *offsets)

    def load(self, pointer, kind):
        return self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()), align=self.align)

    def store(self, value, pointer):
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer()), align=self.align)


# Lanes in kernels


@intrinsic
def load(typing, array, row, column):
    """The lanes that begin at array[row, column]; the last axis must be contiguous."""

    def code(context, builder, signature, args):
        matrix = _Matrix(context, builder, array, args[0])
        return matrix.load(matrix.at(*args[1:]), context.get_value_type(signature.return_type))

    return Lanes(array.dtype)(array, types.intp, types.intp), code


@intrinsic
def store(typing, lanes, array, row, column):
    """Write lanes to where array[row, column] begins."""

    def code(context, builder, signature, args):
        matrix = _Matrix(context, builder, array, args[1])
        matrix.store(args[0], matrix.at(*args[2:]))
        return context.get_dummy_value()

    return types.void(lanes, array, types.intp, types.intp), code


@intrinsic
def splat(typing, number, array):
    """The same number in all lanes, as one of the array's dtype."""

    def code(context, builder, signature, args):
        cast = context.cast(builder, args[0], number, array.dtype)
        return _splat(builder, context.get_value_type(signature.return_type), cast)

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
            return _all_lanes(x.type, value)

        shifted = _fma(builder, x, number(1 / math.log(2)), number(rounder))
        k = builder.fsub(shifted, number(rounder))
        r = _fma(builder, k, number(-tail), _fma(builder, k, number(-head), x))
        e = number(1 / math.factorial(degree))
        for n in reversed(range(degree)):
            e = _fma(builder, e, r, number(1 / math.factorial(n)))
        shift = builder.shl(builder.bitcast(shifted, whole), _all_lanes(whole, mantissa))
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


# Products


def _product_function(
    module: ir.Module, dtype: types.Float, lanes: ir.VectorType, *, add: bool
) -> ir.Function:
    """LLVM code for c = a b or c += a b, once in a module; takes places, steps and sizes of matrices."""
    word, place = ir.IntType(64), ir.IntType(8).as_pointer()
    name = f"{'add' if add else 'set'}_product_{dtype}"
    if name in module.globals:
        return module.globals[name]
    kinds = [place, word, word, place, word, place, word, word, word, word]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    a, a_row, a_column, b, b_row, c, c_row, rows, columns, depth = function.args
    width = dtype.bitwidth // 8

    def load(pointer, kind):
        return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=width)

    def tile(first_row, count: int, column):
        """`count` rows of one column of lanes, kept in registers on the way through the depth."""
        row = [builder.add(first_row, word(i)) for i in range(count)]
        from_a = [_ahead(builder, a, builder.mul(row[i], a_row)) for i in range(count)]
        from_b = _ahead(builder, b, column)
        into = [_ahead(builder, c, builder.mul(row[i], c_row), column) for i in range(count)]
        sums = [cgutils.alloca_once(builder, lanes) for _ in range(count)]
        for i in range(count):
            builder.store(load(into[i], lanes) if add else _all_lanes(lanes, 0.0), sums[i])
        with cgutils.for_range(builder, depth) as step:
            y = load(_ahead(builder, from_b, builder.mul(step.index, b_row)), lanes)
            along = builder.mul(step.index, a_column)
            for i in range(count):
                x = _splat(builder, lanes, load(_ahead(builder, from_a[i], along), lanes.element))
                builder.store(_fma(builder, x, y, builder.load(sums[i])), sums[i])
        for i in range(count):
            target = builder.bitcast(into[i], lanes.as_pointer())
            builder.store(builder.load(sums[i]), target, align=width)

    with cgutils.for_range_slice(
        builder, word(0), builder.mul(columns, word(width)), word(BYTES), inc=True
    ) as (column, _):
        done = word(0)
        for count in (6, 4, 2, 1):  # rows at a time, while there are as many left
            whole = builder.udiv(builder.sub(rows, done), word(count))
            with cgutils.for_range(builder, whole) as turn:
                tile(builder.add(done, builder.mul(turn.index, word(count))), count, column)
            done = builder.add(done, builder.mul(whole, word(count)))
    builder.ret_void()
    return function


def _product(*, add: bool):
    @intrinsic
    def product(typing, a, b, c):
        def code(context, builder, signature, args):
            a_, b_, c_ = (_Matrix(context, builder, *pair) for pair in zip((a, b, c), args))
            lanes = context.get_value_type(Lanes(a.dtype))
            function = _product_function(builder.module, a.dtype, lanes, add=add)
            sizes = [*c_.shape, a_.shape[1]]
            steps = [a_.data, *a_.steps, b_.data, b_.steps[0], c_.data, c_.steps[0]]
            builder.call(function, [*steps, *sizes])
            return context.get_dummy_value()

        return types.void(a, b, c), code

    return product


# c = a b and c += a b. `a` may have any strides; the rows of b and c are contiguous and full of lanes.
set_product = _product(add=False)
add_product = _product(add=True)
