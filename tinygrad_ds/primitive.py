"""A primitive: a forward on plain arrays and its handwritten backward, kept in the registry `primitives`.

    @primitive
    def square(x):
        return x * x, SquareSaved(x)

    @square.backward
    def square_backward(saved, g):
        return (2 * saved.x * g,)

`square.forward(array)` and `square.backward(saved, g)` work on plain arrays; `square(tensor)` puts the call
on the tape. A primitive may have a fused twin for a device, which is preferred while
`tg.using(kernels="fused")` holds; a twin whose forward returns NotImplemented does not cover the call, and
the reference runs.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter
from typing import Any

from tinygrad_ds import settings, tape
from tinygrad_ds.device import Array, device_of, here, namespace, number, owner, place
from tinygrad_ds.dtypes import result_type
from tinygrad_ds.kernels.table import TWINS
from tinygrad_ds.tape import Node, Version

primitives: dict[str, "Primitive"] = {}
_NUMBERS = (bool, int, float)  # np.float64 is a float too, and as weak


class Twin:
    """A fused pair for one primitive and device: functions of the reference's names and signatures.

    Where there are halves, `NAME_backward` may do both at once, for what they share.
    """

    def __init__(self, primitive: "Primitive", device: str) -> None:
        name = self.name = primitive.name
        self.weights = primitive.weights
        module = importlib.import_module(f"tinygrad_ds.kernels.{device}.{TWINS[device][name]}")
        self.forward = getattr(module, name)
        if primitive.weights:
            self.backward_input = getattr(module, f"{name}_backward_input")
            self.backward_weight = getattr(module, f"{name}_backward_weight")
            self.backward = getattr(module, f"{name}_backward", None) or _both_halves(self)
        else:
            self.backward = getattr(module, f"{name}_backward")


class Twins(Mapping):
    """device -> Twin, imported when first asked for."""

    def __init__(self, primitive: "Primitive") -> None:
        self._primitive = primitive
        self._loaded: dict[str, Twin] = {}

    def __getitem__(self, device: str) -> Twin:
        if device not in self._loaded:
            if self._primitive.name not in TWINS[device]:
                raise KeyError(device)
            self._loaded[device] = Twin(self._primitive, device)
        return self._loaded[device]

    def __contains__(self, device: Any) -> bool:
        return device in TWINS and self._primitive.name in TWINS[device]  # no import just to look

    def __iter__(self) -> Iterator[str]:
        return (device for device in TWINS if self._primitive.name in TWINS[device])

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Primitive:
    """One differentiable function. Made by the decorator `@primitive`.

    `backward`, `backward_input`, `backward_weight` and `surrogate` are decorators until a function is
    registered with them; from then on they are that function. `weights` are the positions of the arguments
    whose gradients `backward_weight` computes and `defer_weight_gradients` may put off.
    """

    def __init__(self, forward: Callable, weights: tuple[int, ...] = ()) -> None:
        self.name = forward.__name__
        self.forward = forward
        self.weights = weights
        self.fused = Twins(self)
        self.__doc__ = forward.__doc__
        parameters = inspect.signature(forward).parameters.values()
        self.options = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.arrays = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
        if self.name in primitives:
            raise ValueError(f"a primitive called {self.name!r} is registered already: choose another name")
        primitives[self.name] = self

    def __repr__(self) -> str:
        return f"<primitive {self.name}{inspect.signature(self.forward)}>"

    def backward(self, function: Callable) -> Callable:
        """Register `function(saved, grad) -> one gradient per array` as the derivative."""
        self.__dict__["backward"] = function
        return function

    def backward_input(self, function: Callable) -> Callable:
        """Register the half of the derivative that the layers below wait for."""
        self.__dict__["backward_input"] = function
        return function

    def backward_weight(self, function: Callable) -> Callable:
        """Register the half of the derivative that only the optimizer waits for; it completes `backward`."""
        self.__dict__["backward_weight"] = function
        self.__dict__["backward"] = _both_halves(self)
        return function

    def surrogate(self, function: Callable) -> Callable:
        """Register what `backward` differentiates, where that is by convention not the forward.

        `function(saved, grad)` gives a function of the primitive's arrays. Its result is an array, or a tuple
        of arrays, whose sum is the loss with that derivative; `saved` and `grad` are constants to it.
        """
        self.__dict__["surrogate"] = function
        return function

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call with Tensors, arrays and numbers; returns Tensors, on the tape if a gradient is wanted."""
        given, options = self._bind(args, options)
        arrays = _as_arrays(given)
        observer = settings.current().observer
        began = perf_counter() if observer else 0.0
        pair, (result, saved) = self._run(arrays, options)
        if observer:
            observer.forward(pair, arrays, result, saved, perf_counter() - began)
        outputs = _wrap(result, arrays, given)
        inputs = [arg if isinstance(arg, Node) else None for arg in given]
        wanted = any(node is not None and node.requires_grad for node in inputs)
        if wanted and settings.current().recording:
            tape.record(pair, saved, inputs, outputs, isinstance(result, tuple))
        return tape.like(result, outputs)

    def _run(self, arrays: list[Array], options: dict[str, Any]) -> tuple[Any, tuple[Any, Any]]:
        """The pair that served this call, and what its forward returned."""
        device = device_of(arrays[0]) if arrays else "cpu"
        # NumPy and CuPy mixed are the reference's to refuse, as CuPy does.
        mixed = any(type(a) is not type(arrays[0]) and device_of(a) != device for a in arrays)
        if settings.current().kernels == "fused" and device in self.fused and not mixed:
            twin = self.fused[device]
            answer = twin.forward(*arrays, **options)
            if answer is not NotImplemented:
                return twin, answer
        return self, self.forward(*arrays, **options)

    def _bind(self, args: tuple, options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Tell arrays from options: as in NumPy, options may be given by position behind the arrays."""
        names = list(self.options)
        if self.variadic:
            if args and isinstance(args[0], str):  # einsum("ij,jk", a, b)
                options, args = {names[0]: args[0], **options}, args[1:]
            arrays, rest = (args[0], args[1:]) if args and isinstance(args[0], list | tuple) else (args, ())
            if not arrays:
                raise TypeError(f"{self.name} needs at least one array")
        else:
            arrays, rest = args[: self.arrays], args[self.arrays :]
        if len(rest) > len(names):
            raise TypeError(
                f"{self.name} got {len(args)} arguments but takes {self.arrays} arrays and {names}"
            )
        for name, value in zip(names, rest, strict=False):
            if name in options:
                raise TypeError(f"{self.name} got {name} twice: by position and by name")
            options = {**options, name: value}
        unknown = [name for name in options if name not in names]
        if unknown:
            raise TypeError(
                f"{self.name} has no option {unknown[0]!r}: it knows {', '.join(names) or 'none'}"
            )
        return list(arrays), options


def primitive(forward: Callable | None = None, *, weights: tuple[int, ...] = ()) -> Any:
    """Register a function on arrays, returning (result, saved), as a primitive. See the module's head."""
    if forward is None:
        return lambda function: Primitive(function, weights)
    return Primitive(forward, weights)


def _both_halves(pair: Any) -> Callable:
    """The whole derivative from its two halves."""

    def backward(saved: Any, grad: Any) -> tuple:
        """Both halves: `backward_input` for the inputs, `backward_weight` for the weights."""
        of_inputs, of_weights = pair.backward_input(saved, grad), pair.backward_weight(saved, grad)
        return tuple(b if a is None else a for a, b in zip(of_inputs, of_weights, strict=True))

    return backward


def _as_arrays(args: list[Any]) -> list[Array]:
    """Plain arrays for Tensors, arrays, lists and numbers. Numbers take the dtype that the arrays set."""
    values = [arg.data if isinstance(arg, Node) else arg for arg in args]
    values = [v if isinstance(v, _NUMBERS) or hasattr(v, "strides") else place(v) for v in values]
    numbers = [v for v in values if isinstance(v, _NUMBERS)]
    if not numbers:
        return values
    arrays = [v for v in values if not isinstance(v, _NUMBERS)]
    kind = result_type(arrays, numbers)
    module = namespace(arrays[0]) if arrays else here()
    return [number(module, v, kind) if isinstance(v, _NUMBERS) else v for v in values]


def _wrap(result: Any, arrays: list[Array], args: list[Any]) -> list[Node]:
    """Nodes for the results. A view of an argument shares its version: a write through one is seen by all."""
    module = namespace(arrays[0])
    nodes = [arg for arg in args if isinstance(arg, Node)]

    def version(value: Array) -> Version | None:
        memory = owner(value)
        return next((node.version for node in nodes if owner(node.data) is memory), None)

    values = [module.asarray(value) for value in (result if isinstance(result, tuple) else (result,))]
    return [Node.around(value, version=version(value)) for value in values]
