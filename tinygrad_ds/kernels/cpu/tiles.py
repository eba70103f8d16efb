"""Products of small matrices inside a kernel, up to 6 rows and 64 bytes of columns of the result at a time.

Such a tile, or one of the 32 bytes of columns that may be left, stays in registers on its way through the
inner dimension, where each step multiplies one column of `a` with one row of `b`. At the sizes of an
attention head that is faster than a call of BLAS, which copies both matrices into an order of its own first.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tinygrad_ds.kernels.cpu.lanes import BYTES, Lanes, Matrix, ahead, in_all_lanes, multiply_add, spread


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

    def tile(first_row, count: int, column, lanes):
        """`count` rows of one column of lanes, kept in registers on the way through the depth."""
        row = [builder.add(first_row, word(i)) for i in range(count)]
        from_a = [ahead(builder, a, builder.mul(row[i], a_row)) for i in range(count)]
        from_b = ahead(builder, b, column)
        into = [ahead(builder, c, builder.mul(row[i], c_row), column) for i in range(count)]
        sums = [cgutils.alloca_once(builder, lanes) for _ in range(count)]
        for i in range(count):
            builder.store(load(into[i], lanes) if add else in_all_lanes(lanes, 0.0), sums[i])
        with cgutils.for_range(builder, depth) as step:
            y = load(ahead(builder, from_b, builder.mul(step.index, b_row)), lanes)
            along = builder.mul(step.index, a_column)
            for i in range(count):
                x = spread(builder, lanes, load(ahead(builder, from_a[i], along), lanes.element))
                builder.store(multiply_add(builder, x, y, builder.load(sums[i])), sums[i])
        for i in range(count):
            target = builder.bitcast(into[i], lanes.as_pointer())
            builder.store(builder.load(sums[i]), target, align=width)

    def tiles(column, lanes):
        """All rows of one column of lanes."""
        done = word(0)
        for count in (6, 4, 2, 1):  # rows at a time
            whole = builder.udiv(builder.sub(rows, done), word(count))
            if count == 6:  # but the last 8 rows as 4 and 4: a tile of 2 rows has too little to do
                left = builder.urem(builder.sub(rows, done), word(6))
                two_left = builder.icmp_unsigned("==", builder.udiv(left, word(2)), word(1))
                fewer = builder.and_(two_left, builder.icmp_unsigned(">", whole, word(0)))
                whole = builder.sub(whole, builder.zext(fewer, word))
            with cgutils.for_range(builder, whole) as turn:
                tile(builder.add(done, builder.mul(turn.index, word(count))), count, column, lanes)
            done = builder.add(done, builder.mul(whole, word(count)))

    size = builder.mul(columns, word(width))
    full = builder.and_(size, word(-BYTES))
    with cgutils.for_range_slice(builder, word(0), full, word(BYTES), inc=True) as (column, _):
        tiles(column, lanes)
    with cgutils.if_unlikely(builder, builder.icmp_unsigned("<", full, size)):
        tiles(full, ir.VectorType(lanes.element, lanes.count // 2))
    builder.ret_void()
    return function


def _product(*, add: bool):
    @intrinsic
    def product(typing, a, b, c):
        def code(context, builder, signature, args):
            a_, b_, c_ = (Matrix(context, builder, *pair) for pair in zip((a, b, c), args))
            lanes = context.get_value_type(Lanes(a.dtype))
            function = _product_function(builder.module, a.dtype, lanes, add=add)
            sizes = [*c_.shape, a_.shape[1]]
            steps = [a_.data, *a_.steps, b_.data, b_.steps[0], c_.data, c_.steps[0]]
            builder.call(function, [*steps, *sizes])
            return context.get_dummy_value()

        return types.void(a, b, c), code

    return product


# c = a b and c += a b. `a` may have any strides; the rows of b and c are contiguous and full of half lanes.
set_product = _product(add=False)
add_product = _product(add=True)
