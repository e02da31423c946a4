"""Bytes to messages and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from taskfork import _wire


def feed(decoder: _wire.Decoder, data: bytes, step: int) -> list[object]:
    found = []
    for at in range(0, len(data), step):
        decoder.feed(data[at : at + step])
        while (message := decoder.next()) is not None:
            found.append(message)
    return found


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_messages_come_out_whole_however_the_stream_is_cut(step: int) -> None:
    messages = [[1, {}, "text"], [0, {"a": [1, 2]}], [2, {}, {"kind": "x", "message": "é😀"}]]
    data = _wire.PREAMBLE + b"".join(_wire.frame(_wire.encode(message)) for message in messages)
    assert feed(_wire.Decoder(), data, step) == messages


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GET / HTTP/1.1", "does not speak this protocol"),
        (_wire.PREAMBLE + b"\xff\xff\xff\xff", "over the limit"),
        (_wire.PREAMBLE + b"\x01\0\0\0\xc1", "malformed"),
        (_wire.PREAMBLE + _wire.frame(_wire.encode("text")), "not an array"),
        (_wire.PREAMBLE + _wire.frame(_wire.encode(["kind", {}])), "not an array"),
    ],
)
def test_garbage_is_told_as_such(data: bytes, said: str) -> None:
    decoder = _wire.Decoder()
    decoder.feed(data)
    with pytest.raises(_wire.WireError, match=said):
        decoder.next()


def test_what_has_a_buffer_travels_as_its_bytes() -> None:
    from array import array

    numbers = array("i", [1, 2, 3])
    decoder = _wire.Decoder()
    decoder.feed(_wire.PREAMBLE + _wire.frame(_wire.encode([0, {}, numbers, memoryview(b"x")])))
    assert decoder.next() == [0, {}, numbers.tobytes(), b"x"]


def test_an_absent_value_in_options_is_none() -> None:
    decoder = _wire.Decoder()
    decoder.feed(_wire.PREAMBLE + _wire.frame(b"\x93\x01\x80\x92\xd4\x04\x01\xc0"))
    assert decoder.next() == [1, {}, [None, None]]


def test_what_cannot_be_encoded_is_named() -> None:
    with pytest.raises(_wire.EncodeError, match="a object cannot be encoded"):
        _wire.encode([object()])
    with pytest.raises(_wire.EncodeError, match="over the limit of 3"):
        _wire.frame(b"four", 3)


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def decoded(body: bytes, limit: int = _wire.DEFAULT_LIMIT) -> object:
    decoder = _wire.Decoder(limit)
    decoder.feed(_wire.PREAMBLE + _wire.frame(body, limit))
    return decoder.next()


@pytest.mark.parametrize("kind", ["list", "map"])
def test_nesting_is_limited_in_both_directions(kind: str) -> None:
    def value(depth: int) -> object:
        return nested(depth) if kind == "list" else {"key": nested(depth - 1)}

    message = [0, {}, "method", [value(_wire.MAX_DEPTH)]]
    assert decoded(_wire.encode(message)) == message
    with pytest.raises(_wire.EncodeError, match="deeper than the limit of 128 levels"):
        _wire.encode([0, {}, "method", [value(_wire.MAX_DEPTH + 1)]])
    with pytest.raises(_wire.EncodeError, match="deeper than the limit of 128 levels"):
        _wire.encode([0, {}, "method", [value(900)]])


@dataclass
class Box:
    content: Any


def test_objects_that_are_sent_as_maps_nest_as_deep_as_maps() -> None:
    value: Any = {(1, 2): 3}
    for _ in range(_wire.MAX_DEPTH + 1):
        value = Box(value)
    assert _wire.encode(value.content)
    with pytest.raises(_wire.EncodeError, match="deeper than the limit of 128 levels"):
        _wire.encode(value)


@pytest.mark.parametrize("depth", [_wire.MAX_DEPTH + 1, 500, 1100, 1_000_000])
def test_deep_messages_of_a_peer_are_errors(depth: int) -> None:
    # A call whose argument is lists in lists.
    body = b"\x94\x00\x80\xa1m\x91" + b"\x91" * (depth - 1) + b"\x90"
    with pytest.raises(_wire.WireError, match="malformed"):
        decoded(body)


@pytest.mark.parametrize(
    "element",
    [b"\xc0", b"\xe0", b"\x80", b"\x90", b"\x81\xc0\xc0", b"\x91\xc0", b"\xa2ab", b"\xd4\x05\x00"],
)
@pytest.mark.parametrize("is_over", [True, False])
def test_memory_after_decoding_is_bounded(element: bytes, is_over: bool) -> None:
    import tracemalloc

    limit = 1 << 20
    # Of lists and maps, also what they hold is an element.
    elements = limit // 6 - 10
    most = elements // {b"\x81\xc0\xc0": 3, b"\x91\xc0": 2, b"\xd4\x05\x00": 2}.get(element, 1) // 2
    count = (limit - 10) // len(element) if is_over else most
    body = b"\x93\x01\x80\xdd" + count.to_bytes(4, "big") + element * count
    tracemalloc.start()
    try:
        if is_over:
            with pytest.raises(_wire.WireError, match="exceeds|more elements"):
                decoded(body, limit)
        else:
            assert decoded(body, limit) is not None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * limit, peak


def test_many_small_lists_are_counted_together() -> None:
    limit = 1 << 20
    inner = b"\xdc\x03\xe8" + b"\xc0" * 1000
    body = b"\x93\x01\x80\xdc\x03\xe8" + inner * 1000
    with pytest.raises(_wire.WireError, match="more elements than the limit of 174762"):
        decoded(body, limit)


def test_lengths_beyond_the_bytes_are_errors() -> None:
    for claim in [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"]:
        with pytest.raises(_wire.WireError, match="malformed"):
            decoded(b"\x93\x01\x80" + claim + b"\xc0")


def test_a_large_message_with_few_elements_is_decoded() -> None:
    limit = 1 << 20
    message = [1, {}, ["x" * 1000] * 1000]
    assert decoded(_wire.encode(message), limit) == message
