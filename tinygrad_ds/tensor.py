"""Tensor: what people write with. Operators and NumPy's method names over the tape, no arithmetic."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tinygrad_ds import settings, walk
from tinygrad_ds.device import Array, namespace, place, to_host
from tinygrad_ds.dtypes import is_floating
from tinygrad_ds.ops import elementwise, indexing, matmul, reduction, shape
from tinygrad_ds.tape import Node


class Tensor(Node):
    """An array that remembers how it was computed.

    array: anything that NumPy takes; an array is wrapped, not copied. requires_grad asks for `.grad`, a plain
    array of the same shape and dtype, which `backward` fills; it needs a floating dtype.
    """

    __slots__ = ()
    __array_ufunc__ = None  # so that `array * tensor` reaches Tensor.__rmul__

    def __init__(self, array: Any, requires_grad: bool = False) -> None:
        version = array.version if isinstance(array, Node) else None
        data = place(_plain(array))
        if requires_grad and not is_floating(data.dtype):
            raise TypeError(f"a tensor of {data.dtype} cannot have a gradient: use a floating dtype")
        super().__init__(data, requires_grad, version)

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of every axis."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """The number of entries."""
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        """The number format of the entries."""
        return self.data.dtype

    @property
    def T(self) -> "Tensor":
        """All axes reversed."""
        return self.transpose()

    def __repr__(self) -> str:
        text = np.array2string(to_host(self.data), precision=4, threshold=20, prefix="Tensor(")
        return f"Tensor({text}, {self.dtype}{', requires_grad=True' if self.requires_grad else ''})"

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("a 0-d tensor has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator["Tensor"]:
        return (self[row] for row in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.data)

    def __float__(self) -> float:
        return float(self.data)

    def __int__(self) -> int:
        return int(self.data)

    def item(self) -> Any:
        """The only entry, as a Python number."""
        return self.data.item()

    def numpy(self) -> np.ndarray:
        """The entries as a NumPy array (the very memory on the CPU, a copy from a device)."""
        return to_host(self.data)

    def detach(self) -> "Tensor":
        """The same memory without its history: no gradient flows through it."""
        return Node.around(self.data, version=self.version)

    def backward(self, grad: Any = None, *, keep_saved: bool = False) -> None:
        """Add dL/dx to the `.grad` of every leaf x that this tensor depends on.

        grad: dL/d(this tensor), of its shape; 1 by default, which needs a single entry. What the calls saved
        is freed on the way unless keep_saved. Raises RuntimeError where there is nothing to differentiate,
        where the tape was freed already, and where a saved array was written since.
        """
        if not self.requires_grad:
            raise RuntimeError("backward needs a tensor that depends on one with requires_grad=True")
        module = namespace(self.data)
        if grad is None:
            if self.size != 1:
                raise RuntimeError(
                    f"backward of a tensor of shape {self.shape} needs grad, an array of that shape"
                )
            grad = module.ones_like(self.data)
        grad = module.asarray(grad.data if isinstance(grad, Node) else grad, dtype=self.dtype)
        if grad.shape != self.shape:
            raise ValueError(f"grad has shape {grad.shape} but the tensor has {self.shape}")
        walk.backward([(self, grad)], keep_saved=keep_saved)

    # Writing in place: a plain write, not on the tape. Its version tells backward of it.

    def __setitem__(self, index: Any, value: Any) -> None:
        self._refuse_gradient(value)
        self.data[_plain(index)] = _plain(value)
        self.written()

    def __iadd__(self, other: Any) -> "Tensor":
        return self._in_place("__iadd__", other)

    def __isub__(self, other: Any) -> "Tensor":
        return self._in_place("__isub__", other)

    def __imul__(self, other: Any) -> "Tensor":
        return self._in_place("__imul__", other)

    def __itruediv__(self, other: Any) -> "Tensor":
        return self._in_place("__itruediv__", other)

    def _in_place(self, method: str, other: Any) -> "Tensor":
        self._refuse_gradient(other)
        view = self.data[...]
        getattr(view, method)(_plain(other))
        self.written()
        return self

    def _refuse_gradient(self, value: Any) -> None:
        if settings.current().recording and isinstance(value, Node) and value.requires_grad:
            raise RuntimeError(
                "a write in place is not differentiated, and the value written needs a gradient: "
                "use x = x + y, tg.where or tg.concatenate"
            )

    # Operators

    def __add__(self, other: Any) -> "Tensor":
        return elementwise.add(self, other)

    def __radd__(self, other: Any) -> "Tensor":
        return elementwise.add(other, self)

    def __sub__(self, other: Any) -> "Tensor":
        return elementwise.subtract(self, other)

    def __rsub__(self, other: Any) -> "Tensor":
        return elementwise.subtract(other, self)

    def __mul__(self, other: Any) -> "Tensor":
        return elementwise.multiply(self, other)

    def __rmul__(self, other: Any) -> "Tensor":
        return elementwise.multiply(other, self)

    def __truediv__(self, other: Any) -> "Tensor":
        return elementwise.divide(self, other)

    def __rtruediv__(self, other: Any) -> "Tensor":
        return elementwise.divide(other, self)

    def __pow__(self, other: Any) -> "Tensor":
        return elementwise.power(self, other)

    def __rpow__(self, other: Any) -> "Tensor":
        return elementwise.power(other, self)

    def __matmul__(self, other: Any) -> "Tensor":
        return matmul.matmul(self, other)

    def __rmatmul__(self, other: Any) -> "Tensor":
        return matmul.matmul(other, self)

    def __neg__(self) -> "Tensor":
        return elementwise.negative(self)

    def __abs__(self) -> "Tensor":
        return elementwise.abs(self)

    def __getitem__(self, index: Any) -> "Tensor":
        return indexing.getitem(self, index=_plain(index))

    # NumPy's method names

    def sum(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        """The sum over `axis` (an int, several, or all)."""
        return reduction.sum(self, axis=axis, keepdims=keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        """The mean over `axis`."""
        return reduction.mean(self, axis=axis, keepdims=keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        """The largest entry along `axis`."""
        return reduction.max(self, axis=axis, keepdims=keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        """The smallest entry along `axis`."""
        return reduction.min(self, axis=axis, keepdims=keepdims)

    def var(self, axis: Any = None, ddof: int = 0, keepdims: bool = False) -> "Tensor":
        """The variance along `axis`, divided by n - ddof."""
        return reduction.var(self, axis=axis, ddof=ddof, keepdims=keepdims)

    def reshape(self, *sizes: Any) -> "Tensor":
        """The same entries in another shape; one size may be -1."""
        return shape.reshape(self, shape=_one_or_many(sizes))

    def transpose(self, *axes: Any) -> "Tensor":
        """The axes in another order, reversed by default."""
        return shape.transpose(self, axes=_one_or_many(axes) if axes else None)

    def swapaxes(self, first: int, second: int) -> "Tensor":
        """Two axes exchanged."""
        axes = list(range(self.ndim))
        axes[first], axes[second] = axes[second], axes[first]
        return shape.transpose(self, axes=tuple(axes))

    def astype(self, dtype: Any) -> "Tensor":
        """The entries in another number format, on the tape."""
        return elementwise.astype(self, dtype=dtype)


def _plain(value: Any) -> Any:
    """Arrays instead of Tensors, in an index or a value."""
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return value.data if isinstance(value, Node) else value


def _one_or_many(values: tuple) -> Any:
    """`f(2, 3)` and `f((2, 3))` mean the same."""
    return values[0] if len(values) == 1 and (values[0] is None or not isinstance(values[0], int)) else values


def plain(tensor: Tensor | Array) -> Array:
    """The array behind a Tensor, or the array itself."""
    return _plain(tensor)


Node.public = Tensor
