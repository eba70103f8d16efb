"""Arrays and records at addresses, for kernels that read more arrays than a call should carry.

Handing an array to a kernel costs a tenth of a microsecond. A network has some hundred of them, so decoding
notes their addresses once, in records, and its kernel makes arrays of them where it uses one. Whoever notes
an address must keep the array alive, and in its place, for as long as the address is used.
"""

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from tinygrad_ds.kernels.cpu.common import inner


@intrinsic
def _pointer(typing, address):
    def code(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), code


@inner
def vector(like, address, size):
    """The contiguous vector at an address, of the dtype of `like`."""
    return carray(_pointer(address), size, like.dtype)


@inner
def matrix(like, address, rows, columns):
    """The contiguous matrix at an address, of the dtype of `like`."""
    return carray(_pointer(address), (rows, columns), like.dtype)


@inner
def cube(like, address, first, second, third):
    """The contiguous array of three axes at an address, of the dtype of `like`."""
    return carray(_pointer(address), (first, second, third), like.dtype)


@inner
def records(kind, address, count):
    """`count` records of dtype `kind` at an address."""
    return carray(_pointer(address), count, kind)


@inner
def words(address, size):
    """The contiguous vector of whole numbers at an address."""
    return carray(_pointer(address), size, np.int64)
