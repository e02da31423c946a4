"""The examples in Perl, Node and Python, as workers of the command."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from typing import Any

import pytest
from conftest import ROOT, TASKFORK

import taskfork

EXAMPLES = ROOT / "examples"


def run(test: Any) -> Any:
    return asyncio.run(asyncio.wait_for(test, 60))


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"there is no {name}: install it to test its example")
    return path


@pytest.fixture(params=["perl", "node"])
def server(request: Any, start: Any) -> Any:
    worker = {
        "perl": [program("perl"), str(EXAMPLES / "perl_worker" / "worker.pl")],
        "node": [program("node"), str(EXAMPLES / "node_worker" / "worker.mjs")],
    }[request.param]
    return start([str(TASKFORK), "serve", "--protocol", "json", "--listen", "ADDRESS", "--", *worker])


def test_a_worker_of_another_language_is_a_worker_like_any_other(server: Any) -> None:
    async def test() -> None:
        values = [None, True, 0, -5, 1.5, "é😀\n\"\\", [1, [2, []]], {"a": {"b": None}}, "x" * 200_000, "\n" * 100_000]
        async with taskfork.Client(server.address, max_workers=1) as client:
            async with client.checkout() as checkout:
                for value in values:
                    assert await checkout.call("echo", value) == value
                assert await checkout.call("add", 2, 3) == 5
                pid = await checkout.call("pid")
                await checkout.call("keep", "name", 1)
                assert await checkout.call("known") == ["name"]
            async with client.checkout() as checkout:
                # The same worker, told that the checkout before was done.
                assert await checkout.call("pid") == pid
                assert await checkout.call("known") == []
                with pytest.raises(taskfork.InterfaceError, match="ouch"):
                    await checkout.call("boom", "ouch")
                with pytest.raises(taskfork.InterfaceError, match="no method nothing"):
                    await checkout.call("nothing")
                assert await checkout.call("add", 1, 1) == 2
            with pytest.raises(taskfork.WorkerDied, match="exited with status 3 during a call"):
                await client.call("exit", 3)
            assert await client.call("add", 1, 1) == 2

    run(test())


def test_a_child_of_the_perl_worker_answers_nothing(start: Any) -> None:
    worker = [program("perl"), str(EXAMPLES / "perl_worker" / "worker.pl")]
    server = start(
        [str(TASKFORK), "serve", "--protocol", "json", "--listen", "ADDRESS", "--", *worker]
    )

    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client:
            pid = await client.call("fork")
            for number in range(20):
                assert await client.call("echo", number) == number
            assert await client.call("pid") == pid

    run(test())


def test_a_worker_goes_on_whatever_a_terminal_or_a_service_manager_sends(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client, client.checkout() as checkout:
            pid = await checkout.call("pid")
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                os.kill(pid, number)
            assert await checkout.call("pid") == pid

    run(test())


def test_what_the_perl_worker_logs_arrives(start: Any) -> None:
    worker = [program("perl"), str(EXAMPLES / "perl_worker" / "worker.pl")]
    server = start(
        [str(TASKFORK), "serve", "--protocol", "json", "--listen", "ADDRESS", "--", *worker]
    )

    async def test() -> None:
        said: list[dict[str, Any]] = []
        async with taskfork.Client(server.address) as client:
            async with client.checkout(log=said.append) as checkout:
                assert await checkout.call("count", "the fox the dog") == {
                    "the": 2,
                    "fox": 1,
                    "dog": 1,
                }
        assert [line[1:] for message in said for line in message["logs"]] == [[30, "counted", 3]]

    run(test())


def test_documents_in_sqlite(start: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("DOCUMENTS", str(tmp_path / "documents.db"))
    worker = [sys.executable, str(EXAMPLES / "python_worker" / "worker.py")]
    server = start([str(TASKFORK), "serve", "--listen", "ADDRESS", "--", *worker])

    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client:
            await client.call("put", "one", b"\xff")
            async with client.checkout() as checkout:
                await checkout.call("begin")
                await checkout.call("put", "two", "not for long")
                with pytest.raises(taskfork.InterfaceError, match="within a transaction"):
                    await checkout.call("begin")
                # A document can be stored again.
                await checkout.call("put", "one", "again")
                assert await checkout.call("get", "one") == b"again"
                assert len(await checkout.call("find", "")) == 2
            # Rolled back at the end of the checkout.
            found = await client.call("find", "")
            assert [one["name"] for one in found] == ["one"]
            assert await client.call("get", "one") == b"\xff"
            documents = client.stream("export", "")
            assert [document async for document in documents] == [["one", b"\xff"]]
            assert await documents.result() == 1

    run(test())


def test_thumbnails_by_pillow(start: Any) -> None:
    pytest.importorskip("PIL", reason="Pillow is an option of this example")
    worker = [sys.executable, str(EXAMPLES / "python_worker" / "thumbnails.py")]
    server = start([str(TASKFORK), "serve", "--listen", "ADDRESS", "--", *worker])

    async def test() -> None:
        async with taskfork.Client(server.address) as client, client.checkout() as checkout:
            picture = await checkout.call("gradient", 640, 480)
            small = await checkout.call("thumbnail", picture, 64)
            info = await checkout.call("info", small)
            assert info == {"format": "PNG", "width": 64, "height": 48}
            with pytest.raises(taskfork.InterfaceError, match="UnidentifiedImageError"):
                await checkout.call("info", b"no picture")

    run(test())
