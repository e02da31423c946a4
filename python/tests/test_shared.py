"""Memory and open files that are handed over, between a client and workers in Python."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import resource
import subprocess
from pathlib import Path
from typing import Any, Iterator

import pytest
from conftest import TASKFORK

import taskfork
import taskfork.blocking
from taskfork import Blob, BlobMut


def run(test: Any) -> Any:
    return asyncio.run(asyncio.wait_for(test, 60))


@pytest.fixture(params=["unix", "tcp", "own"])
def server(request: Any, python_server: Any, own_server: Any) -> Any:
    if request.param == "own":
        return own_server()
    return python_server(address="tcp:127.0.0.1:0" if request.param == "tcp" else None)


def filled(length: int, byte: int) -> Blob:
    made = BlobMut(length)
    with made.view as view:
        view[:] = bytes([byte]) * length
    return made.freeze()


def is_shared(server: Any) -> bool:
    return bool(server.address.startswith("unix:"))


@pytest.fixture
def small_files() -> Iterator[int]:
    """The most bytes that a file of this process may have."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    most = 1 << 20
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    yield most
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_memory_over_the_limit_of_file_sizes_is_sent(python_server: Any, small_files: int) -> None:
    short, long = filled(small_files, 1), filled(small_files + 1, 2)
    assert short.is_shareable and not long.is_shareable
    assert len(long) == small_files + 1 and long.view.readonly
    with pytest.raises(io.UnsupportedOperation):
        long.fileno()
    made = BlobMut(small_files + 1)
    view = made.view
    with pytest.raises(BufferError, match="a view of this memory still exists"):
        made.freeze()
    view.release()
    made.freeze()
    with pytest.raises(ValueError, match="frozen"):
        made.view
    server = python_server()

    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            kind, length, _, _ = await client.call("kind", long)
            assert (kind, length) == ("bytes", small_files + 1)
            assert await client.call("echo", [long, short]) == [long.view, short.view]

    run(test())


def test_memory_arrives_as_what_can_be_read(server: Any) -> None:
    async def test() -> None:
        blob = filled(1 << 20, 7)
        async with taskfork.Client(server.address) as client:
            for _ in range(3):
                arrived = await client.call("kind", blob)
                assert arrived == [
                    "memoryview" if is_shared(server) else "bytes",
                    1 << 20,
                    True,
                    7 * 256,
                ]
            result = await client.call("shared", 1 << 20, 3)
            assert type(result) is (memoryview if is_shared(server) else bytes)
            assert result == b"\x03" * (1 << 20)
            # Also within other values, several at a time, and none at all.
            both = await client.call("echo", {"one": blob, "two": [filled(5000, 1), filled(0, 0)]})
            assert both["one"] == blob.view and both["two"] == [b"\x01" * 5000, b""]

    run(test())


def test_more_than_can_be_handed_over_is_sent(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            blobs = [filled(20_000, number) for number in range(40)]
            assert await client.call("echo", blobs) == [blob.view for blob in blobs]

    run(test())


def test_open_files_go_through_unix_sockets(server: Any, tmp_path: Path) -> None:
    async def test() -> None:
        path = tmp_path / "words"
        path.write_bytes(b"some words")
        async with taskfork.Client(server.address) as client:
            with open(path, "rb") as file:
                if is_shared(server):
                    assert await client.call("read", file) == b"some words"
                    with await client.call("opened", str(path)) as back:
                        assert back.mode == "rb" and back.read() == b"some words"
                        # Programs that either side starts do not get the descriptor.
                        assert not os.get_inheritable(back.fileno())
                    assert await client.call("is_inherited", file) is False
                else:
                    with pytest.raises(taskfork.ArgumentsError, match="through unix sockets only"):
                        await client.call("read", file)
                    with pytest.raises(taskfork.CallError, match="through unix sockets only"):
                        await client.call("opened", str(path))
                assert await client.call("echo", 1) == 1

    run(test())


def test_nothing_is_left_open(python_server: Any) -> None:
    async def test() -> None:
        server = python_server()
        async with taskfork.Client(server.address, min_workers=0, max_workers=1) as client:
            async with client.checkout() as checkout:
                blob = filled(100_000, 1)
                await checkout.call("echo", blob)
                gc.collect()
                before = await checkout.call("descriptors"), len(os.listdir("/proc/self/fd"))
                for _ in range(50):
                    await checkout.call("echo", blob)
                    # The worker must close the descriptors of a call that fails.
                    with pytest.raises(taskfork.ArgumentsError):
                        await checkout.call("pid", blob)
                gc.collect()
                after = await checkout.call("descriptors"), len(os.listdir("/proc/self/fd"))
                assert before == after

    run(test())


def test_what_is_still_written_to_is_not_handed_over(python_server: Any) -> None:
    with taskfork.blocking.Client(python_server().address) as client:
        with pytest.raises(taskfork.InterfaceError, match="a view of this memory still exists"):
            client.call("still_viewed")
        with pytest.raises(taskfork.ArgumentsError, match="cannot be sent before it is frozen"):
            client.call("echo", BlobMut(10))
        blob = filled(10, 1)
        with pytest.raises((TypeError, ValueError)):
            blob.view[0] = 2
        made = BlobMut(10)
        made.freeze()
        with pytest.raises(ValueError, match="frozen"):
            made.view
        with pytest.raises(ValueError, match="not sealed"):
            Blob(os.memfd_create("open", os.MFD_ALLOW_SEALING))


def test_the_command_shows_what_would_be_handed_over(python_server: Any) -> None:
    address = python_server().address
    command = [str(TASKFORK), "call", address, "shared", "3", "65"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == '"AAA"\n'


def test_a_program_that_speaks_json_gets_the_bytes(start: Any) -> None:
    worker = Path(__file__).parents[2] / "examples" / "node_worker" / "worker.mjs"
    command = [str(TASKFORK), "serve", "--listen", "ADDRESS", "--protocol", "json", "--", "node", str(worker)]
    server = start(command)
    with taskfork.blocking.Client(server.address) as client:
        assert client.call("echo", filled(30_000, 65)) == "A" * 30_000
