"""The methods of an interface: functions, coroutines and what streams."""

from __future__ import annotations

import functools
import inspect
import os
from typing import TYPE_CHECKING, Any, Callable, Coroutine, Iterable, Iterator, Mapping, Optional, Sequence, Union

from ._arguments import INPUTS, Arguments
from ._conversions import Converter

if TYPE_CHECKING:
    import asyncio

#: What a worker serves; see ``taskfork.worker.serve``.
Interface = Union[Callable[..., Any], Mapping[str, Callable[..., Any]], Iterable[Callable[..., Any]], object]

#: A method whose annotation names one of these as its result streams.
_ITERATORS = ("Iterator", "Generator", "AsyncIterator", "AsyncGenerator")


class Kind:
    """What a method streams and takes."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.signature = signature_of(call)
        self.streams = is_streaming(call, self.signature)
        inputs = [] if self.signature is None else input_parameters(self.signature)
        #: The parameter that takes the input of a call; None if the method takes none.
        self.input: Optional[inspect.Parameter] = inputs[0] if inputs else None
        self._without_input: Optional[inspect.Signature] = None
        if self.signature is not None and self.input is not None:
            others = [each for each in self.signature.parameters.values() if each is not self.input]
            self._without_input = self.signature.replace(parameters=others)
        #: Why the method cannot be called.
        self.fault: Optional[str] = None
        if len(inputs) > 1:
            names = " and ".join(parameter.name for parameter in inputs)
            self.fault = f"the method has several parameters that take an input: {names}"
        #: How the arguments are converted; None if they stay as they are.
        self.arguments: Optional[Arguments] = None

    def read_annotations(self, call: Callable[..., Any]) -> None:
        """Reads what the parameters of the method ask for."""
        if self.signature is not None:
            self.arguments = Arguments.of(call, self.signature, self.input)

    def items(self) -> Optional[Converter]:
        """The converter of the items of the input; None if they stay as they are."""
        return None if self.arguments is None else self.arguments.items

    @property
    def is_plain(self) -> bool:
        """Whether the method neither streams nor takes an input, and its arguments stay as they are."""
        return self.fault is None and not self.streams and self.input is None and self.arguments is None

    @property
    def needs_input(self) -> bool:
        """Whether the method cannot be called without an input."""
        return self.input is not None and self.input.default is inspect.Parameter.empty

    def with_input(
        self, args: Sequence[Any], keywords: Mapping[str, Any], input: Any
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        """The arguments of a call and its input, in the places of their parameters. ``TypeError`` if they do not match."""
        assert self.signature is not None and self.input is not None and self._without_input is not None
        bound = self._without_input.bind(*args, **keywords)
        bound.apply_defaults()
        values = {**bound.arguments, self.input.name: input}
        in_order = {name: values[name] for name in self.signature.parameters}
        all_bound = inspect.BoundArguments(self.signature, in_order)
        return all_bound.args, all_bound.kwargs


class Methods:
    """The callable methods of an interface."""

    def __init__(self, given: Any) -> None:
        self._any: Optional[Callable[..., Any]] = None
        self.checkout_done: Optional[Callable[[], Any]] = None
        self._named: dict[str, Callable[..., Any]] = {}
        #: The kinds of methods, as far as they were asked for.
        self._kinds: dict[str, Kind] = {}
        #: The methods that neither stream nor take an input, and whose arguments stay as they are.
        self.plain: dict[str, Callable[..., Any]] = {}
        if isinstance(given, Mapping):
            self._named = dict(given)
            for key, function in self._named.items():
                if not isinstance(key, str) or not callable(function):
                    raise TypeError(f"the interface has {key!r:.100}: {function!r:.100}: a dict has names and functions")
        elif inspect.isroutine(given):
            self._any = given
        elif isinstance(given, (list, tuple, set)):
            for function in given:
                name = getattr(function, "__name__", None)
                if not callable(function) or not isinstance(name, str):
                    raise TypeError(
                        f"the interface has {function!r:.100}, which is no function with a name: a dict gives names to others"
                    )
                if name in self._named:
                    raise ValueError(f"the interface has two functions with the name {name}: a dict gives them other names")
                self._named[name] = function
        else:
            names = (name for name in dir(given) if not name.startswith("_"))
            methods = ((name, getattr(given, name)) for name in names)
            # Other attributes that can be called, such as a connection of sqlite3, are no methods.
            self._named = {name: method for name, method in methods if inspect.isroutine(method)}
            self.checkout_done = self._named.pop("checkout_done", None)
            if given is None or isinstance(given, (bool, int, float, complex, str, bytes)):
                raise TypeError(
                    f"the interface is {given!r:.100}: it takes functions in a list or a dict, one function, a class, or an object"
                )
        if self._any is None and not self._named:
            raise ValueError(f"the interface has no methods: {given!r:.100}")
        self._known = sorted(name for name in self._named if name)

    def find(self, method: Optional[str]) -> tuple[Optional[Callable[..., Any]], list[str]]:
        """A method, or None; and the names of all."""
        if self._any is not None:
            return functools.partial(self._any, method), []
        return self._named.get("" if method is None else method), self._known

    def kind(self, method: Optional[str]) -> Optional[Kind]:
        """What a method streams and takes; None if there is no such method."""
        # One function for every call has one entry: the names are those of a peer.
        name = "" if method is None or self._any is not None else method
        known = self._kinds.get(name)
        if known is None:
            call, _ = self.find(method)
            if call is None:
                return None
            known = self._kinds[name] = Kind(call)
            known.read_annotations(call)
            if self._any is None and known.is_plain:
                self.plain[name] = call
        return known

    def read_all(self) -> Methods:
        """Reads the signatures and annotations of all methods, so that no call has to."""
        for name in ["", *self._named]:
            self.kind(name)
        return self


def is_streaming(method: Callable[..., Any], signature: Optional[inspect.Signature]) -> bool:
    """Whether a method streams: it is a generator function, or says that it returns an iterator."""
    function = inspect.unwrap(method)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return True
    return signature is not None and _name_of(signature.return_annotation) in _ITERATORS


def input_parameters(signature: inspect.Signature) -> list[inspect.Parameter]:
    """The parameters whose annotations say that they take the input of a call."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = signature.parameters.values()
    return [each for each in parameters if each.kind not in several and _name_of(each.annotation) in INPUTS]


def _name_of(annotation: Any) -> str:
    """The name of the class that an annotation begins with, without its module; an empty one if there is none."""
    # It may be text, as in "collections.abc.Iterator[int]", whose names need not exist at run time.
    if isinstance(annotation, str):
        return annotation.split("[")[0].rsplit(".", 1)[-1].strip()
    if annotation is inspect.Signature.empty:
        return ""
    kind = getattr(annotation, "__origin__", annotation)
    name = getattr(kind, "__name__", "")
    return name if isinstance(name, str) else ""


def signature_of(call: Callable[..., Any]) -> Optional[inspect.Signature]:
    """The signature of a function. Some native functions have none."""
    try:
        return inspect.signature(call)
    except (TypeError, ValueError):
        return None


def argument_error(
    signature: Optional[inspect.Signature], args: Sequence[Any], keywords: Mapping[str, Any]
) -> Optional[str]:
    """Why the arguments do not match the signature; None if they do, or if there is no signature."""
    try:
        if signature is not None:
            signature.bind(*args, **keywords)
    except TypeError as error:
        return str(error)
    return None


#: The event loop of this process's coroutines, and the process.
_loop: Optional[tuple[int, asyncio.AbstractEventLoop]] = None


def resolve(value: Any) -> Any:
    """What a function has returned, or the result of the coroutine that it has returned. Coroutines of a worker run in one
    event loop, which stands still between them."""
    return _run(value) if inspect.iscoroutine(value) else value


def items_of(value: Any) -> Iterator[Any]:
    """The items of what a method that streams has returned."""
    value = resolve(value)
    return _AsyncItems(value) if hasattr(value, "__aiter__") else iter(value)


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    # Imported here: workers without coroutines start faster.
    import asyncio

    global _loop
    if _loop is None or _loop[0] != os.getpid():
        _loop = (os.getpid(), asyncio.new_event_loop())
        asyncio.set_event_loop(_loop[1])
    _, loop = _loop
    task = loop.create_task(coroutine)
    try:
        return loop.run_until_complete(task)
    except BaseException:
        # A deadline may come while the loop waits, outside of the coroutine.
        if not task.done():
            task.cancel()
            loop.run_until_complete(asyncio.wait([task]))
        raise


class _AsyncItems:
    """The items of an asynchronous iterator, as those of a generator."""

    def __init__(self, items: Any) -> None:
        self._items = items.__aiter__()
        self._is_over = False

    def __iter__(self) -> _AsyncItems:
        return self

    def __next__(self) -> Any:
        return self._step(self._items.__anext__)

    def throw(self, problem: BaseException) -> Any:
        throw = getattr(self._items, "athrow", None)
        if self._is_over or throw is None:
            raise problem
        return self._step(lambda: throw(problem))

    def close(self) -> None:
        close = getattr(self._items, "aclose", None)
        if close is not None:

            async def end() -> None:
                await close()

            _run(end())

    def _step(self, begin: Callable[[], Any]) -> Any:
        async def step() -> Any:
            return await begin()

        try:
            return _run(step())
        except StopAsyncIteration:
            self._is_over = True
            raise StopIteration from None
        except BaseException:
            # A generator has ended by it.
            self._is_over = True
            raise
