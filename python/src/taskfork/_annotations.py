"""Annotations of parameters, and types of results: what converts values to them.

An annotation is read once, to a ``Converter``.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import enum
import inspect
import sys
import types
import typing
from typing import Any, Callable, Mapping, Sequence

from . import _conversions, _scalars
from ._conversions import BYTES, ALL, ARRAYS, MAPS, NONE, Converter, Mismatch, Receive, Unusable

#: What arrays and maps can be converted to, by the class of an annotation.
_LISTS = (
    list, collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Collection, collections.abc.Iterable,
)  # fmt: skip
_SETS = {set: set, collections.abc.Set: set, collections.abc.MutableSet: set, frozenset: frozenset}
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping, collections.OrderedDict)

#: What can be around an annotation without changing it.
_WRAPPERS = ("Annotated", "Final", "NotRequired", "ReadOnly", "Required")

#: Functions of users, by class.
_added: dict[Any, Receive] = {}


def add(kind: Any, receive: Receive) -> None:
    """Lets a function make the objects of a class of what has arrived."""
    _added[kind] = receive


def converter_of(annotation: Any, scope: Mapping[str, Any], *, is_strict: bool = False) -> Converter:
    """The converter of an annotation. ``scope`` has the names in texts. ``Unusable`` if it cannot be read.

    Without ``is_strict`` values stay as they are for what is no type, and for a class that no converter is known for."""
    try:
        return _Reader(is_strict).read(annotation, scope)
    except Unusable:
        raise
    except Exception as error:
        raise Unusable(_scalars.said(error)) from error


class _Reader:
    """Reads one annotation, and the classes within it once."""

    def __init__(self, is_strict: bool) -> None:
        self._is_strict = is_strict
        self._classes: dict[Any, Converter] = {}
        #: Aliases that are being read.
        self._aliases: list[Any] = []
        #: What type variables stand for.
        self._variables: dict[Any, Any] = {}

    def read(self, annotation: Any, scope: Mapping[str, Any]) -> Converter:
        if isinstance(annotation, typing.ForwardRef):
            annotation = annotation.__forward_arg__
        # A text in a text is one in quotes, in a module whose annotations are all texts.
        for _ in range(2):
            if isinstance(annotation, str):
                annotation = eval(annotation, dict(scope))
        if isinstance(annotation, str):
            raise Unusable(f"it is a text in texts: {annotation!r:.100}")
        if annotation in (None, NONE):
            return Converter("None", (NONE,), _conversions.check("None", NONE), is_plain=True)
        if _is_in(annotation, _added):
            return self._of_user(annotation)
        if _is_in(annotation, _conversions.PLAIN):
            return _conversions.PLAIN[annotation]
        if annotation is memoryview:
            return _conversions.view()
        origin = typing.get_origin(annotation)
        if getattr(origin or annotation, "_name", None) in _WRAPPERS or origin is getattr(typing, "Annotated", None):
            return self.read(typing.get_args(annotation)[0], scope)
        if isinstance(annotation, typing.TypeVar):
            return self.read(self._bound(annotation), scope)
        if hasattr(annotation, "__supertype__"):
            return self.read(annotation.__supertype__, scope)
        if type(annotation).__name__ == "TypeAliasType":
            return self._alias(annotation)
        if origin is typing.Union or origin is getattr(types, "UnionType", typing.Union):
            return _conversions.union([self.read(member, scope) for member in typing.get_args(annotation)])
        if origin is typing.Literal:
            return _conversions.literal(typing.get_args(annotation))
        return self._class(annotation, origin or annotation, typing.get_args(annotation), scope)

    def _alias(self, alias: Any) -> Converter:
        if alias in self._aliases:
            raise Unusable(f"{alias} contains itself")
        self._aliases.append(alias)
        try:
            return self.read(alias.__value__, vars(sys.modules[alias.__module__]))
        finally:
            self._aliases.pop()

    def _class(self, annotation: Any, kind: Any, args: tuple[Any, ...], scope: Mapping[str, Any]) -> Converter:
        if not inspect.isclass(kind):
            if self._is_strict:
                raise Unusable(f"{annotation!r:.100} is no type of values")
            return _conversions.anything()
        if kind in _LISTS:
            return _conversions.array(self._element(args, scope), list)
        if kind is collections.deque:
            return _conversions.array(self._element(args, scope), collections.deque)
        if kind in _SETS:
            return _conversions.set_of(self._element(args, scope), _SETS[kind])
        if kind is tuple:
            return self._tuple(args, scope)
        if kind in _DICTS:
            keys, values = (self.read(arg, scope) for arg in args or (Any, Any))
            return _conversions.map_of(keys, values)
        if issubclass(kind, enum.Enum):
            return _conversions.enumeration(kind)
        if dataclasses.is_dataclass(kind):
            args = tuple(map(self._bound, args))
            name = _name(annotation)
            return self._known(name, kind, args, MAPS, lambda: self._dataclass(name, kind, args))
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            args = tuple(map(self._bound, args))
            return self._known(_name(annotation), kind, args, ARRAYS, lambda: self._named_tuple(kind, args))
        if issubclass(kind, dict) and hasattr(kind, "__required_keys__"):
            args = tuple(map(self._bound, args))
            name = _name(annotation)
            return self._known(name, kind, args, MAPS, lambda: self._typed_dict(name, kind, args))
        for scalar in _scalars.SCALARS:
            module = sys.modules.get(scalar.module)
            known = None if module is None else getattr(module, scalar.name)
            # A path can be one of several classes. Others that are derived from these classes are made in ways of their own.
            if known is not None and (kind is known or scalar.name == "PurePath" and issubclass(kind, known)):
                return _conversions.scalar(kind, scalar)
        return self._unknown(kind)

    def _unknown(self, kind: Any) -> Converter:
        """A class that no converter is known for. Its objects arrive if they are pickled, or as what memory and files are."""
        if not self._is_strict:
            return _conversions.anything()
        if kind is bytearray:
            return Converter("bytes", BYTES, _conversions.check("bytes", *BYTES), is_plain=True)
        name = _name(kind)

        def run(value: Any) -> Any:
            if isinstance(value, kind):
                return value
            raise Mismatch(name, value, "no converter is known for this class, and `add_converter` adds one")

        return Converter(name, (), run, kind=kind)

    def _known(
        self, name: str, kind: Any, args: tuple[Any, ...], forms: Sequence[type], make: Callable[[], Converter]
    ) -> Converter:
        """A class, which can contain itself."""
        key, made = (kind, args), Converter(name, (), lambda value: value)
        known = self._classes.get(key)
        if known is None:
            known = self._classes[key] = Converter(name, forms, lambda value: made.run(value), kind=kind)
            made = make()
        return known

    def _bound(self, annotation: Any) -> Any:
        """An annotation without type variables."""
        if isinstance(annotation, typing.TypeVar):
            return self._variables.get(annotation, Any)
        variables = getattr(annotation, "__parameters__", ())
        if variables and typing.get_origin(annotation) is not None:
            return annotation[tuple(map(self._bound, variables))]
        return annotation

    def _of_user(self, kind: Any) -> Converter:
        receive, name = _added[kind], _name(kind)

        def run(value: Any) -> Any:
            if type(value) not in ALL and isinstance(value, kind):
                # It was pickled.
                return value
            try:
                return receive(value)
            except Exception as error:
                raise Mismatch(name, value, _scalars.said(error)) from error

        return Converter(name, ALL, run, kind=kind)

    def _element(self, args: tuple[Any, ...], scope: Mapping[str, Any]) -> Converter:
        return self.read(args[0], scope) if args else _conversions.anything()

    def _tuple(self, args: tuple[Any, ...], scope: Mapping[str, Any]) -> Converter:
        if not args or (len(args) == 2 and args[1] is Ellipsis):
            return _conversions.array(self._element(args, scope), tuple)
        elements = [self.read(arg, scope) for arg in args if arg != ()]
        return _conversions.row(f"tuple[{', '.join(each.name for each in elements)}]", elements, len(elements), tuple)

    def _field(self, kind: Any, name: str, annotation: Any, bindings: Mapping[Any, Mapping[Any, Any]]) -> Converter:
        """The converter of a class's field, whose annotation may have type variables of the class that it stands in."""
        owner = _owner_of(kind, name)
        scope = {**vars(sys.modules[owner.__module__]), owner.__name__: owner}
        return self._bound_field(annotation, scope, bindings.get(owner, {}))

    def _bound_field(self, annotation: Any, scope: Mapping[str, Any], variables: Mapping[Any, Any]) -> Converter:
        before, self._variables = self._variables, dict(variables)
        try:
            return self.read(annotation, scope)
        finally:
            self._variables = before

    def _named_tuple(self, kind: Any, args: tuple[Any, ...]) -> Converter:
        names, bindings = kind._fields, _bindings(kind, args)
        hints = {name: _own_annotations(_owner_of(kind, name)).get(name, Any) for name in names}
        elements = [self._field(kind, name, hints[name], bindings) for name in names]
        least = len(names) - len(kind._field_defaults)
        return _conversions.row(kind.__name__, elements, least, lambda values: kind(*values))

    def _typed_dict(self, class_name: str, kind: Any, args: tuple[Any, ...]) -> Converter:
        hints, bindings = typing.get_type_hints(kind, include_extras=True), _bindings(kind, args)
        fields = {
            name: self._bound_field(hint, {}, bindings.get(_typed_dict_of(kind, name), {})) for name, hint in hints.items()
        }
        required = set(kind.__required_keys__)
        # The class itself has not seen what was a text when it was made.
        for name, hint in hints.items():
            marks = _marks_of(hint)
            if "NotRequired" in marks:
                required.discard(name)
            elif "Required" in marks:
                required.add(name)
        return _conversions.record(class_name, fields, (), required, dict)

    def _dataclass(self, name: str, kind: Any, args: tuple[Any, ...]) -> Converter:
        all_fields, bindings = dataclasses.fields(kind), _bindings(kind, args)
        taken = [field for field in all_fields if field.init]
        fields = {each.name: self._field(kind, each.name, each.type, bindings) for each in taken}
        none = dataclasses.MISSING
        required = [each.name for each in taken if each.default is none and each.default_factory is none]
        others = [field.name for field in all_fields if not field.init]
        return _conversions.record(name, fields, others, required, lambda made: kind(**made), kind)


def _is_in(annotation: Any, table: Mapping[Any, Any]) -> bool:
    try:
        return annotation in table
    except TypeError:
        # Not every annotation has a hash.
        return False


def _own_annotations(kind: Any) -> Mapping[str, Any]:
    """The annotations that stand in a class, without those of its bases."""
    found = kind.__dict__.get("__annotations__")
    if found is None and "__annotate_func__" in kind.__dict__:
        # They are made when they are asked for, from Python 3.14 on.
        found = kind.__annotations__
    return found if isinstance(found, Mapping) else {}


def _owner_of(kind: Any, field: str) -> Any:
    """The class in which the annotation of a field stands: the names in it are those of its module."""
    return next((base for base in kind.__mro__ if field in _own_annotations(base)), kind)


def _typed_dict_of(kind: Any, field: str) -> Any:
    """The same for a ``TypedDict``, which has the fields of its bases, and is derived from ``dict`` alone."""
    own = _own_annotations(kind).get(field)
    for base in reversed(kind.__dict__.get("__orig_bases__", ())):
        origin = typing.get_origin(base) or base
        if _own_annotations(origin).get(field) == own and hasattr(origin, "__required_keys__"):
            return _typed_dict_of(origin, field)
    return kind


def _bindings(kind: Any, args: tuple[Any, ...]) -> dict[Any, dict[Any, Any]]:
    """What the type variables of a class and of its bases stand for."""
    found = {kind: dict(zip(getattr(kind, "__parameters__", ()), args))}

    def bound(annotation: Any, variables: Mapping[Any, Any]) -> Any:
        if isinstance(annotation, typing.TypeVar):
            return variables.get(annotation, Any)
        parameters = getattr(annotation, "__parameters__", ())
        if parameters and typing.get_origin(annotation) is not None:
            return annotation[tuple(bound(each, variables) for each in parameters)]
        return annotation

    # The bases of a `TypedDict` are not among its classes.
    derived_classes = list(kind.__mro__)
    for derived in derived_classes:
        for base in derived.__dict__.get("__orig_bases__", ()):
            origin = typing.get_origin(base) or base
            if inspect.isclass(origin) and origin not in found:
                given = [bound(each, found.get(derived, {})) for each in typing.get_args(base)]
                found[origin] = dict(zip(getattr(origin, "__parameters__", ()), given))
                if origin not in derived_classes:
                    derived_classes.append(origin)
    return found


def _marks_of(annotation: Any) -> set[str]:
    """The names of what is around an annotation without changing it."""
    marks: set[str] = set()
    for _ in range(len(_WRAPPERS)):
        origin = typing.get_origin(annotation)
        name = "Annotated" if origin is getattr(typing, "Annotated", None) else getattr(origin, "_name", None)
        if name not in _WRAPPERS:
            break
        marks.add(name)
        annotation = typing.get_args(annotation)[0]
    return marks


def _name(annotation: Any) -> str:
    if typing.get_args(annotation):
        return repr(annotation).replace(f"{getattr(annotation, '__module__', '')}.", "")
    name = getattr(annotation, "__name__", None)
    return name if isinstance(name, str) else repr(annotation)
