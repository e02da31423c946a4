"""Bytes to messages and back."""

from __future__ import annotations

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
        (_wire.PREAMBLE + _wire.frame(_wire.encode("text")), "no array"),
        (_wire.PREAMBLE + _wire.frame(_wire.encode(["kind", {}])), "no array"),
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


def test_what_cannot_be_encoded_is_named() -> None:
    with pytest.raises(_wire.EncodeError, match="a object cannot be encoded"):
        _wire.encode([object()])
    with pytest.raises(_wire.EncodeError, match="over the limit of 3"):
        _wire.frame(b"four", 3)
