"""Values between Python and the native module, in both directions."""

from __future__ import annotations

import array
import asyncio
import math
from typing import Any, Callable

import pytest
import wire

import taskfork
import taskfork.blocking


@pytest.fixture(params=["own", "program"])
def echo(request: Any, own_server: Any, python_server: Any) -> Any:
    """Sends a value to a worker of either kind and back."""
    server = own_server() if request.param == "own" else python_server()
    with taskfork.blocking.Client(server.address, max_workers=1) as client:
        yield lambda value: client.call("echo", value)


def test_numbers_of_numpy_are_numbers(echo: Callable[[Any], Any]) -> None:
    numpy = pytest.importorskip("numpy")
    for value, expected in [
        (numpy.int64(-5), -5),
        (numpy.uint8(200), 200),
        (numpy.float32(0.5), 0.5),
        (numpy.float64(0.25), 0.25),
        (numpy.bool_(True), True),
        (numpy.str_("text"), "text"),
    ]:
        arrived = echo([value])[0]
        assert arrived == expected and type(arrived) is type(expected)
    times = [numpy.datetime64("2026-01-01"), numpy.datetime64("2026-01-01", "ns"), numpy.timedelta64(1, "s")]
    for value in (numpy.longdouble(1), numpy.complex128(1), *times):
        with pytest.raises(taskfork.ArgumentsError, match="cannot be encoded"):
            echo(value)


def test_arrays_arrive_as_their_elements_in_order(echo: Callable[[Any], Any]) -> None:
    numpy = pytest.importorskip("numpy")
    matrix = numpy.arange(12, dtype="u1").reshape(3, 4)
    assert echo(matrix) == bytes(range(12))
    assert echo(matrix[:, ::2]) == bytes([0, 2, 4, 6, 8, 10])
    assert echo(matrix.T) == matrix.T.tobytes()
    large = numpy.arange(100_000, dtype="f8")
    assert echo(large) == large.tobytes()
    with pytest.raises(taskfork.ArgumentsError, match="array of Python objects"):
        echo(numpy.array([object()]))


def test_large_arrays_are_copied_in_the_order_of_their_elements(python_server: Any) -> None:
    numpy = pytest.importorskip("numpy")
    square = numpy.arange(1 << 18, dtype="f8").reshape(512, 512)
    pairs = numpy.zeros(1 << 17, dtype=[("a", "f8"), ("b", "i8")])
    pairs["b"] = numpy.arange(1 << 17)
    arrays = [square, square.T, square.astype(">f8"), square.repeat(2, axis=1)[:, ::2], pairs, square + 1, square + 2]

    async def test() -> None:
        async with taskfork.Client(python_server().address, max_workers=2) as client:
            # Memory of copies is used again, but not while a call has it.
            for _ in range(3):
                expected = [array.tobytes() for array in arrays]
                calls = [client.call("echo", array) for array in arrays]
                square[:] += 1
                assert await asyncio.gather(*calls) == expected

    asyncio.run(test())


def test_buffers_are_copied_when_the_call_is_made(python_server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(python_server().address) as client:
            for made in (bytearray(b"a" * 50_000), array.array("B", b"a" * 50_000)):
                call = client.call("echo", made)
                made[0] = ord("b")
                assert await call == b"a" * 50_000

    asyncio.run(test())


def test_values_at_the_bounds(echo: Callable[[Any], Any]) -> None:
    assert echo([2**64 - 1, -(2**63), math.inf, -0.0]) == [2**64 - 1, -(2**63), math.inf, -0.0]
    assert math.isnan(echo(math.nan))
    for number in (2**64, -(2**63) - 1, 2**70):
        with pytest.raises(taskfork.ArgumentsError, match="more than 64 bits"):
            echo(number)
    with pytest.raises(taskfork.ArgumentsError, match="surrogates not allowed"):
        echo("\ud800")


def test_tuples_are_keys(echo: Callable[[Any], Any]) -> None:
    pairs = {(1, 2): 3, (4, (5, 6)): {(7,): [8]}}
    assert echo(pairs) == pairs
    assert echo({(1, 2): "x" * 100_000}) == {(1, 2): "x" * 100_000}


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def test_depth_is_bounded(echo: Callable[[Any], Any]) -> None:
    assert echo(nested(127)) == nested(127)
    endless: list[Any] = []
    endless.append(endless)
    for value in (nested(129), nested(1020), nested(1022), nested(100_000), endless):
        with pytest.raises(taskfork.ArgumentsError, match="deep"):
            echo(value)
    assert echo(1) == 1


def test_a_value_that_cannot_even_be_shown_is_an_error(echo: Callable[[Any], Any]) -> None:
    class Hidden:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    with pytest.raises(taskfork.ArgumentsError, match="argument 1: a Hidden cannot be encoded"):
        echo(Hidden())
    assert echo(1) == 1


def test_a_value_that_changes_while_it_is_encoded_does_no_harm(echo: Callable[[Any], Any]) -> None:
    numpy = pytest.importorskip("numpy")
    changing: list[Any] = []
    mapping: dict[Any, Any] = {}

    class Number(numpy.float32):  # type: ignore[misc, name-defined]
        def item(self) -> float:
            changing.clear()
            mapping.clear()
            return 1.5

    changing.extend([Number(1), 2, 3])
    mapping.update({1: Number(1), 2: 2})
    assert echo([changing, 1]) == [[1.5, 2, 3], 1]
    mapping.update({1: Number(1), 2: 2})
    assert echo([mapping, 1]) == [{1: 1.5, 2: 2}, 1]


def test_keys_that_are_lists_become_tuples(tmp_path: Any) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = {"version": wire.VERSION, "pid": 1}
        writer.write(wire.PREAMBLE + wire.frame(wire.encode([wire.HELLO, hello])))
        decoder, calls = wire.Decoder(), 0
        # {[1, 2]: 3}, then {{}: 1}
        answers = [b"\x81\x92\x01\x02\x03", b"\x81\x80\x01"]
        while data := await reader.read(1 << 16):
            decoder.feed(data)
            while message := decoder.next():
                if message[0] == wire.CALL:
                    calls += 1
                    body = bytes([0x93, wire.OK]) + wire.encode({"call": calls}) + answers[calls - 1]
                    writer.write(wire.frame(body))
        writer.close()

    async def test() -> None:
        server = await asyncio.start_unix_server(serve, tmp_path / "fake")
        async with taskfork.Client(f"unix:{tmp_path / 'fake'}", min_workers=0) as client:
            async with client.checkout() as checkout:
                assert await checkout.call("pairs") == {(1, 2): 3}
                with pytest.raises(taskfork.ResultError, match="a key that is a map"):
                    await checkout.call("maps")
        server.close()

    asyncio.run(test())
