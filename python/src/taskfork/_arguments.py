"""The arguments of a method, converted to what the annotations of its parameters ask for.

An annotation that asks only for what arrives anyway, such as ``list[int]``, is plain: its arguments are neither converted nor looked
at. Otherwise all of an argument is checked.
"""

from __future__ import annotations

import functools
import inspect
import mmap
import sys
import typing
import warnings
from typing import Any, Callable, Mapping, Optional, Sequence

from ._annotations import converter_of
from ._conversions import Converter, Unfit, Unusable, apply

#: A parameter whose annotation names one of these takes the input of a call.
INPUTS = ("Iterator", "AsyncIterator", "Input")


class Arguments:
    """How the arguments of one method are converted."""

    def __init__(self) -> None:
        #: The parameters of arguments by position, and their converters.
        self._in_order: list[tuple[str, Optional[Converter]]] = []
        self._rest: Optional[tuple[str, Converter]] = None
        #: The parameters of arguments by name, and their converters. Others are those of `**` only.
        self._named: dict[str, Optional[Converter]] = {}
        self._others: Optional[Converter] = None
        #: The converter of the items of the input.
        self.items: Optional[Converter] = None
        #: Whether a parameter asks for views of memory.
        self.takes_views = False

    @classmethod
    def of(
        cls, call: Callable[..., Any], signature: inspect.Signature, input: Optional[inspect.Parameter]
    ) -> Optional[Arguments]:
        """What is known of a method; None if all its arguments stay as they are. An annotation that cannot be read is as none, with
        a warning."""
        made, scope = cls(), _names_of(call)
        for parameter in signature.parameters.values():
            if parameter is input:
                made.items = _items_converter(call, parameter, scope)
                continue
            converter = _converter(call, parameter, parameter.annotation, scope)
            made.takes_views |= converter is not None and converter.kind is memoryview
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                made._in_order.append((parameter.name, converter))
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                made._named[parameter.name] = converter
            if converter is None:
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                made._rest = (parameter.name, converter)
            elif parameter.kind is parameter.VAR_KEYWORD:
                made._others = converter
        converters = [*(converter for _, converter in made._in_order), *made._named.values(), made._others, made.items]
        return None if made._rest is None and not any(converters) else made

    def convert(self, args: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """``TypeError`` if an argument does not fit. Arguments that no parameter takes stay as they are."""
        converted = list(args)
        if self.takes_views:
            # A view is only for a parameter that asks for one.
            asks = [converter is not None and converter.kind is memoryview for _, converter in self._in_order]
            asks += [self._rest is not None and self._rest[1].kind is memoryview] * max(0, len(args) - len(asks))
            converted = [value if asked else _owned(value) for asked, value in zip(asks, args)]
        for position, (name, converter) in enumerate(self._in_order[: len(args)]):
            if converter is not None:
                converted[position] = _run(converter, name, converted[position])
        if self._rest is not None:
            name, converter = self._rest
            for position in range(len(self._in_order), len(args)):
                converted[position] = _run(converter, f"{name}[{position - len(self._in_order)}]", converted[position])
        by_name = dict(keywords)
        for key, value in keywords.items():
            known = self._named[key] if key in self._named else self._others
            if self.takes_views and (known is None or known.kind is not memoryview):
                by_name[key] = value = _owned(value)
            if known is not None:
                by_name[key] = _run(known, key, value)
        return converted, by_name


def _owned(value: Any) -> Any:
    """A copy of a view of shared memory. Memory that was passed as such stays as it is."""
    is_view = isinstance(value, memoryview) and not isinstance(value.obj, mmap.mmap)
    return bytes(value) if is_view else value


def _run(converter: Converter, name: str, value: Any) -> Any:
    try:
        return apply(converter.run, f"argument `{name}`", value)
    except Unfit as unfit:
        raise TypeError(str(unfit)) from unfit


def _items_converter(
    call: Callable[..., Any], parameter: inspect.Parameter, scope: Mapping[str, Any]
) -> Optional[Converter]:
    annotation = parameter.annotation
    try:
        if isinstance(annotation, str):
            annotation = eval(annotation, dict(scope))
        items = (typing.get_args(annotation) or (Any,))[0]
    except Exception as error:
        _warn(call, parameter, error)
        return None
    return _converter(call, parameter, items, scope)


def _converter(
    call: Callable[..., Any], parameter: inspect.Parameter, annotation: Any, scope: Mapping[str, Any]
) -> Optional[Converter]:
    if annotation is inspect.Parameter.empty:
        return None
    try:
        made = converter_of(annotation, scope)
    except Unusable as unusable:
        _warn(call, parameter, unusable)
        return None
    return None if made.is_plain else made


def _warn(call: Callable[..., Any], parameter: inspect.Parameter, error: Exception) -> None:
    method = getattr(call, "__qualname__", "a method")
    said = f"the annotation of `{parameter.name}` in {method} cannot be used: {error}. Its values arrive as they are sent"
    warnings.warn(said, RuntimeWarning, stacklevel=2)


def _names_of(call: Any) -> Mapping[str, Any]:
    """The names that the annotations of a function can use."""
    while isinstance(call, functools.partial):
        call = call.func
    call = inspect.unwrap(call)
    function = getattr(call, "__func__", call)
    if not hasattr(function, "__globals__"):
        # An object that can be called.
        function = getattr(type(call), "__call__", None)
    found = getattr(function, "__globals__", None)
    if isinstance(found, dict):
        return found
    module = sys.modules.get(getattr(call, "__module__", None) or "")
    return {} if module is None else vars(module)
