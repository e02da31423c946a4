"""Values, errors and lines of logs that are odd or hostile, from either side: each is an error of one call at most."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import sys
from pathlib import Path
from typing import Any, AsyncIterator, Iterator, Optional

import msgpack
import pytest
from conftest import TASKFORK
import wire

import taskfork
import taskfork.blocking
from taskfork._keywords import KEYWORDS

ODD = Path(__file__).with_name("odd_methods.py")


@pytest.fixture(params=["own", "program"])
def server(request: Any, start: Any) -> Any:
    if request.param == "own":
        return start([sys.executable, str(ODD), "ADDRESS"])
    return start([str(TASKFORK), "serve", "--listen", "ADDRESS", "--", sys.executable, str(ODD)])


@pytest.fixture
def client(server: Any) -> Iterator[taskfork.blocking.Client]:
    with taskfork.blocking.Client(
        server.address, min_workers=0, max_workers=1, reuse_after_error=True, timeout=50
    ) as client:
        yield client


@pytest.mark.parametrize("what", ["deep", "endless", "surrogate", "object", "bytes", "keys", "large", "level"])
def test_a_line_that_cannot_be_shown_is_replaced(client: taskfork.blocking.Client, what: str) -> None:
    messages: list[Any] = []
    pid = client.call("pid")
    with client.checkout(log=messages.append) as checkout:
        assert checkout.call("log", what) == "logged"
    assert client.call("pid") == pid
    if what != "level":
        lines = [line for message in messages for line in message.get("logs", ())]
        assert lines, messages
    if what == "surrogate":
        assert lines[0][2:] == ["it is", "a\\ud800"]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("surrogate", r"Surrogate: odd \\ud800"),
        ("notes", "Notes: said"),
        ("cause", "Cause: said"),
        ("truth", "ValueError: y"),
        ("traceback", "Traceback"),
    ],
)
def test_an_odd_exception_is_an_error_of_its_call(client: taskfork.blocking.Client, how: str, said: str) -> None:
    pid = client.call("pid")
    with pytest.raises(taskfork.InterfaceError, match=said):
        client.call("fail", how)
    assert client.call("pid") == pid


def test_a_result_whose_code_raises_is_an_error_of_its_call(client: taskfork.blocking.Client) -> None:
    pid = client.call("pid")
    with pytest.raises(taskfork.CallError, match="no descriptor"):
        client.call("unsendable")
    assert client.call("pid") == pid


def test_a_directory_that_is_sent_leaks_no_descriptor(client: taskfork.blocking.Client) -> None:
    class Directory(io.IOBase):
        def __init__(self) -> None:
            self.file = os.open("/", os.O_RDONLY)

        def fileno(self) -> int:
            return self.file

        def close(self) -> None:
            if not self.closed:
                os.close(self.file)
            super().close()

    pid, before = client.call("pid"), client.call("descriptors")
    for _ in range(4):
        with Directory() as directory, pytest.raises(taskfork.ArgumentsError, match="[Ii]s a directory"):
            client.call("kind", directory)
    assert client.call("pid") == pid
    assert client.call("descriptors") <= before


def test_the_mark_of_arguments_by_name_is_no_value(client: taskfork.blocking.Client) -> None:
    assert client.call("add", 1, b=2) == 3
    with pytest.raises(TypeError, match="the mark of arguments by name is no argument"):
        client.call("add", 1, KEYWORDS, {"b": 2})
    with pytest.raises(taskfork.ArgumentsError, match="the mark of arguments by name is no value"):
        client.call("echo", [KEYWORDS, {"b": 2}])
    assert client.call("add", 1, b=2) == 3


def colliding_tuples(count: int) -> list[tuple[int, int]]:
    """Tuples with the same hash, which Python computes by xxHash."""
    mask, first, second, fifth = (1 << 64) - 1, 11400714785074694791, 14029467366897019727, 2870177450012600261
    end = (hash((1, 2)) - (2 ^ (fifth ^ 3527539))) & mask
    before = end * pow(first, -1, 1 << 64) & mask
    before = (before >> 31 | before << 33) & mask
    found: list[tuple[int, int]] = []
    number = 3
    while len(found) < count:
        lane = (fifth + number * second) & mask
        lane = (lane << 31 | lane >> 33) & mask
        other = (before - lane * first) * pow(second, -1, 1 << 64) & mask
        signed = other if other < 1 << 63 else other - (1 << 64)
        if -(2**61 - 1) < signed < 2**61 - 1 and signed != -1:
            found.append((number, signed))
        number += 1
    assert len({hash(each) for each in found}) == 1
    return found


def colliding_numbers(full: int, count: int) -> list[int]:
    """Numbers that fill places of a `dict` of 1,024 places one behind the other, and others that begin with them."""
    mask, place, chain = 1023, 7, []
    for _ in range(full):
        chain.append(place)
        place = (place * 5 + 1) & mask
    taken, number, found = set(chain), 1024, []
    while len(found) < count:
        at, rest = number & mask, number
        while at in taken and rest:
            rest >>= 5
            at = (at * 5 + rest + 1) & mask
        if at in taken:
            found.append(number)
        number += 1
    return chain + found


MANY_TUPLES, MANY_NUMBERS = colliding_tuples(3_000), colliding_numbers(400, 280)


@pytest.mark.parametrize("keys", [MANY_TUPLES, MANY_NUMBERS], ids=["tuples", "numbers"])
def test_a_map_whose_keys_collide_is_an_error_of_its_call(client: taskfork.blocking.Client, keys: list[Any]) -> None:
    pid = client.call("pid")
    with pytest.raises(taskfork.ArgumentsError, match="hashes .*collide"):
        client.call("kind", dict.fromkeys(keys, "x" * 10))
    assert client.call("pid") == pid


def test_a_set_whose_elements_collide_is_an_error_of_its_call(client: taskfork.blocking.Client) -> None:
    with pytest.raises(taskfork.ArgumentsError, match="hashes .*collide"):
        client.call("unique", MANY_NUMBERS)
    assert client.call("unique", [1] * 10_000) == 1


@pytest.mark.parametrize(
    "keys",
    [
        range(20_000),
        [number << 40 for number in range(20_000)],
        [number / 1024 for number in range(20_000)],
        [(number % 100, number // 100) for number in range(20_000)],
        [number + (2**61 - 1) * times for number in range(2_000) for times in range(8)],
        [f"{number}" for number in range(20_000)] + list(range(100)),
    ],
    ids=["numbers", "multiples", "fractions", "tuples", "equal hashes", "texts"],
)
def test_honest_maps_arrive(client: taskfork.blocking.Client, keys: Any) -> None:
    value = dict.fromkeys(keys, 1)
    assert client.call("echo", value) == value


#: A worker played by hand: it answers a call with what comes behind the meta, and descriptors.
@contextlib.asynccontextmanager
async def worker(path: Path, answer: bytes, files: Optional[list[int]] = None) -> AsyncIterator[None]:
    def serve(connection: socket.socket) -> None:
        decoder, calls = wire.Decoder(), 0
        with connection:
            hello = {"version": wire.VERSION, "pid": 1, "files": 16}
            connection.sendall(wire.PREAMBLE + wire.frame(wire.encode([wire.HELLO, hello])))
            while data := connection.recv(1 << 16):
                decoder.feed(data)
                while message := decoder.next():
                    if message[0] != wire.CALL:
                        continue
                    calls += 1
                    body = wire.frame(bytes([0x93, wire.OK]) + wire.encode({"call": calls}) + answer)
                    if files:
                        body = wire.frame(wire.encode([wire.FILES, {}, len(files)])) + body
                    socket.send_fds(connection, [body[:1]], files or [])
                    connection.sendall(body[1:])

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)
    loop = asyncio.get_running_loop()

    async def accept() -> None:
        listener.setblocking(False)
        while True:
            connection, _ = await loop.sock_accept(listener)
            connection.setblocking(True)
            loop.run_in_executor(None, serve, connection)

    task = asyncio.ensure_future(accept())
    try:
        yield
    finally:
        task.cancel()
        listener.close()


def test_a_worker_cannot_keep_its_client_busy_by_a_map(tmp_path: Path) -> None:
    packer = msgpack.Packer(use_bin_type=True)

    async def test(keys: list[Any], path: Path) -> None:
        pairs = b"".join(msgpack.packb(list(key) if isinstance(key, tuple) else key) + b"\0" for key in keys)
        async with worker(path, packer.pack_map_header(len(keys)) + pairs):
            async with taskfork.Client(f"unix:{path}", min_workers=0) as client:
                with pytest.raises(taskfork.ResultError, match="keys whose hashes collide"):
                    await client.call("x")

    for number, keys in enumerate((MANY_TUPLES, MANY_NUMBERS)):
        asyncio.run(asyncio.wait_for(test(keys, tmp_path / str(number)), 60))


def test_a_worker_cannot_make_arguments_by_name_of_a_result(tmp_path: Path) -> None:
    async def test() -> None:
        # [KEYWORDS, {"b": 1000}]
        async with worker(tmp_path / "s", b"\x92\xc7\x00\x05\x81\xa1b\xcd\x03\xe8"):
            async with taskfork.Client(f"unix:{tmp_path / 's'}", min_workers=0) as client:
                with pytest.raises(taskfork.ResultError, match="the mark of arguments by name is no value"):
                    await client.call("x")

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_directory_in_a_result_leaks_no_descriptor(tmp_path: Path) -> None:
    async def test() -> None:
        directory = os.open("/", os.O_RDONLY)
        answer = b"\x94" + b"".join(b"\xd6\x02" + index.to_bytes(4, "big") for index in range(4))
        async with worker(tmp_path / "s", answer, [directory] * 4):
            async with taskfork.Client(f"unix:{tmp_path / 's'}", min_workers=0, max_workers=1, reuse_after_error=True) as client:
                counts = []
                for _ in range(5):
                    with pytest.raises(taskfork.ResultError, match="[Ii]s a directory"):
                        await client.call("x")
                    counts.append(len(os.listdir("/proc/self/fd")))
                assert counts[-1] <= counts[1], counts
        os.close(directory)

    asyncio.run(asyncio.wait_for(test(), 60))


MALFORMED = [
    b"\xc1",
    b"\x81\x80\x01",
    b"\xd6\x01\0\0\0\0",
    b"\xd6\x02\0\0\0\1",
    b"\xd6\x03\0\0\0\0",
    b"\xd7\xff" + b"\xff" * 8,
    b"\x91" * 2000 + b"\xc0",
    b"\xdd\xff\xff\xff\xff",
    b"\x91\xc7\x00\x05",
]


@pytest.mark.parametrize("argument", MALFORMED)
def test_a_client_cannot_end_its_worker_by_an_argument(server: Any, argument: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(50)
        connection.connect(server.address[5:])
        hello = wire.frame(wire.encode([wire.HELLO, {"versions": [wire.VERSION]}]))
        connection.sendall(wire.PREAMBLE + hello)
        connection.sendall(wire.frame(b"\x94\x01\x80\xa4echo\x91" + argument))
        connection.sendall(wire.frame(wire.encode([wire.CALL, {}, "echo", [7]])))
        decoder, answers = wire.Decoder(), []
        while len(answers) < 2 and (data := connection.recv(1 << 16)):
            decoder.feed(data)
            while message := decoder.next():
                if message[0] in (wire.OK, wire.ERROR):
                    answers.append(message)
        assert [answer[0] for answer in answers] == [wire.ERROR, wire.OK], answers
        assert answers[0][2]["kind"] == "arguments", answers[0]


def test_list_keys_and_files_in_one_message(client: taskfork.blocking.Client) -> None:
    with open("/dev/null") as file:
        assert client.call("kind", [file, {(1, 2): 3}]) == "list"


def test_arrays_with_odd_names_and_shapes_are_sent(client: taskfork.blocking.Client) -> None:
    numpy = pytest.importorskip("numpy")
    named = numpy.zeros(2, dtype=[("Open", "f8"), ("O", "i4")])
    assert client.call("echo", named) == named.tobytes()
    assert client.call("echo", numpy.zeros((0, 3))) == b""
    with pytest.raises(taskfork.ArgumentsError, match="array of Python objects"):
        client.call("echo", numpy.zeros(2, dtype=[("a", object)]))


def test_what_is_kept_of_an_input_can_be_dropped_by_any_thread(client: taskfork.blocking.Client) -> None:
    for _ in range(3):
        assert client.call("keep", input=[1, 2, 3]) == 1
        assert client.call("drop_elsewhere") == []
