"""The client in event loops of all kinds, and what asyncio does with calls."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import time
import warnings
from typing import Any, Iterator

import pytest
from conftest import happens, is_gone

import taskfork
import taskfork.blocking


@pytest.fixture
def server(python_server: Any) -> Any:
    return python_server()


@pytest.fixture(params=["asyncio", "uvloop", "debug"])
def run(request: Any) -> Iterator[Any]:
    loop: asyncio.AbstractEventLoop
    if request.param == "uvloop":
        loop = pytest.importorskip("uvloop").new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    loop.set_debug(request.param == "debug")
    yield lambda test: loop.run_until_complete(asyncio.wait_for(test, 60))
    loop.close()


def test_calls_complete_in_any_loop(server: Any, run: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=4) as client:
            for number in range(100):
                assert await client.call("echo", number) == number
            assert await asyncio.gather(*(client.call("echo", n) for n in range(100))) == list(range(100))
            done, _ = await asyncio.wait([client.call("echo", n) for n in range(10)])
            assert sorted(call.result() for call in done) == list(range(10))
            with pytest.raises(taskfork.InterfaceError):
                await client.call("boom", "no")

    run(test())


def test_calls_complete_under_anyio(server: Any) -> None:
    anyio = pytest.importorskip("anyio")

    async def test() -> None:
        results: list[int] = []
        async with taskfork.Client(server.address) as client:

            async def work(number: int) -> None:
                results.append(await client.call("echo", number))

            async with anyio.create_task_group() as group:
                for number in range(10):
                    group.start_soon(work, number)
            with anyio.move_on_after(0.05):
                await client.call("sleep", 30)
            assert await client.call("add", 1, 2) == 3
        assert sorted(results) == list(range(10))

    anyio.run(test)


def test_outside_of_asyncio_it_says_so(server: Any) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        taskfork.Client(server.address)
    trio = pytest.importorskip("trio")

    async def test() -> None:
        with pytest.raises(RuntimeError, match="no running event loop"):
            taskfork.Client(server.address)
        with taskfork.blocking.Client(server.address) as client:
            assert await trio.to_thread.run_sync(client.call, "add", 1, 2) == 3

    trio.run(test)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are no eager tasks")
def test_eager_tasks(server: Any) -> None:
    problems: list[Any] = []

    async def test() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        loop.set_exception_handler(lambda _, context: problems.append(context))
        client = taskfork.Client(server.address, max_workers=1, max_queue=1)

        async def work() -> Any:
            return await client.call("add", 1, 2)

        assert await asyncio.create_task(work()) == 3
        holder = client.checkout()
        await holder.ready()
        waiting = client.call("add", 1, 2)
        with pytest.raises(taskfork.Overloaded):
            await client.call("add", 1, 2)
        holder.release()
        assert await waiting == 3
        await client.close()
        with pytest.raises(taskfork.Aborted):
            await client.call("add", 1, 2)

    asyncio.run(test())
    gc.collect()
    assert problems == []


def test_one_loop_of_calls_uses_one_worker(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, min_workers=1) as client:
            pids = {await client.call("pid") for _ in range(200)}
            assert len(pids) == 1

            async def loop() -> set[int]:
                return {await client.call("pid") for _ in range(100)}

            pids = set().union(*await asyncio.gather(*(loop() for _ in range(5))))
            assert len(pids) <= 5

    asyncio.run(test())


def test_other_tasks_run_between_calls_that_are_answered_at_once(server: Any) -> None:
    async def test() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with taskfork.Client(server.address, max_workers=1) as client:
            checkout = client.checkout()
            await checkout.ready()
            task = asyncio.create_task(other())
            await asyncio.sleep(0)
            end = time.monotonic() + 0.2
            before = turns
            while time.monotonic() < end:
                # It is over as soon as it is made.
                with pytest.raises(taskfork.ArgumentsError):
                    await checkout.call("echo", object())
            assert turns > before
            task.cancel()
            checkout.release()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_worker_that_has_answered_gets_the_next_call_before_the_turn_of_the_loop(own_server: Any, tmp_path: Any) -> None:
    address = own_server().address

    async def test() -> None:
        async with taskfork.Client(address, max_workers=1) as client:
            assert await client.call("echo", 1) == 1
            calls = [client.call("touch", str(tmp_path / str(number))) for number in range(2)]
            end = time.monotonic() + 30
            # The loop has no turn here: the worker gets the second call when another one is made.
            while not (tmp_path / "1").exists():
                assert time.monotonic() < end, "the worker has no second call"
                calls.append(client.call("echo", 2))
                time.sleep(0.01)
            await asyncio.gather(*calls)

    asyncio.run(test())


def test_a_forgotten_call_that_fails_is_no_mistake(server: Any) -> None:
    problems: list[Any] = []

    async def test() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        async with taskfork.Client(server.address) as client:
            call = client.call("boom", "no")
            await happens("its end", call.done)
            del call
            checkout = client.checkout()
            checkout.release()
            checkout.call("pid")
            gc.collect()

    asyncio.run(test())
    assert problems == []


def test_a_forgotten_call_runs(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, min_workers=0, max_workers=1) as client:
            client.call("add", 1, 2)
            gc.collect()
            # `checkout_done` has counted it.
            assert await client.call("checkouts") == 1

    asyncio.run(test())


def test_a_call_on_a_released_checkout_fails_at_once(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            async with client.checkout() as checkout:
                await checkout.call("pid")
            for call in (checkout.call("pid"), checkout.invoke(), checkout.ready()):
                with pytest.raises(taskfork.Aborted, match="the checkout was released") as caught:
                    await call
                assert not caught.value.may_have_run

    asyncio.run(test())
    with taskfork.blocking.Client(server.address) as client:
        with client.checkout() as checkout:
            checkout.call("pid")
        with pytest.raises(taskfork.Aborted, match="the checkout was released"):
            checkout.call("pid")


def test_a_checkout_that_is_garbage_gives_its_worker_back(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client:
            checkout = client.checkout()
            await checkout.ready()
            with pytest.warns(ResourceWarning, match="a checkout was not released"):
                del checkout
                gc.collect()
            assert await client.call("add", 1, 2) == 3

    asyncio.run(test())
    with taskfork.blocking.Client(server.address, max_workers=1) as client:
        checkout = client.checkout()
        checkout.ready()
        with pytest.warns(ResourceWarning, match="a checkout was not released"):
            del checkout
            gc.collect()
        assert client.call("add", 1, 2) == 3


def test_a_client_belongs_to_its_loop(server: Any) -> None:
    async def make() -> taskfork.Client:
        client = taskfork.Client(server.address)
        assert await client.call("add", 1, 2) == 3
        return client

    client = asyncio.run(make())

    async def use() -> None:
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            await client.call("add", 1, 2)

    asyncio.run(use())


def test_a_loop_that_has_ended_is_garbage(server: Any) -> None:
    import weakref

    async def test() -> weakref.ref[asyncio.AbstractEventLoop]:
        async with taskfork.Client(server.address) as client:
            assert await client.call("add", 1, 2) == 3
        return weakref.ref(asyncio.get_running_loop())

    async def leave_calls() -> weakref.ref[asyncio.AbstractEventLoop]:
        client = taskfork.Client(server.address)
        client.call("sleep", 60)
        await client.checkout().call("add", 1, 2)
        return weakref.ref(asyncio.get_running_loop())

    before = len(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for end in (test, leave_calls):
            loop = asyncio.run(end())
            gc.collect()
            assert loop() is None
    for _ in range(5):
        asyncio.run(test())
    gc.collect()
    # The runtime of the process stays open.
    assert len(os.listdir("/proc/self/fd")) <= before + 8


def test_a_log_function_that_raises_harms_no_call(server: Any, capfd: Any) -> None:
    unraisable: list[Any] = []

    def raises(message: dict[str, Any]) -> None:
        raise ValueError("in the log")

    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            async with client.checkout(log=raises, timeout=10) as checkout:
                assert await checkout.call("log") == "logged"

    before, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        asyncio.run(test())
    finally:
        sys.unraisablehook = before
    assert [str(it.exc_value) for it in unraisable] == ["in the log"]


def test_errors_can_be_pickled(server: Any) -> None:
    import pickle

    with taskfork.blocking.Client(server.address, grace=0.0) as client:
        errors: list[taskfork.Error] = []
        for method, args in [("boom", ["no"]), ("nothing", []), ("add", [1]), ("exit_now", [3])]:
            with pytest.raises(taskfork.Error) as caught:
                client.call(method, *args)
            errors.append(caught.value)
        with client.checkout(timeout=0.1) as checkout, pytest.raises(TimeoutError) as timed_out:
            checkout.call("hang")
        assert isinstance(timed_out.value, taskfork.TimedOut)
        errors.append(timed_out.value)
    for error in errors:
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == str(error)
        assert copy.__dict__ == error.__dict__
    assert errors[0].causes == ["KeyError: 'key'"]  # type: ignore[attr-defined]
    assert errors[3].exit == 3  # type: ignore[attr-defined]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no notes")
def test_the_workers_stack_is_a_note(server: Any) -> None:
    with taskfork.blocking.Client(server.address) as client:
        with pytest.raises(taskfork.InterfaceError) as caught:
            client.call("boom", "no")
    assert len(caught.value.__notes__) == 1
    assert "in boom" in caught.value.__notes__[0]


def test_a_blocking_client_connects_anew_after_a_fork(server: Any) -> None:
    with taskfork.blocking.Client(server.address, max_workers=2) as client, client.checkout() as checkout:
        parent = checkout.call("pid")
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                answer = client.call("pid")
                os.write(writer, str(answer).encode())
                with pytest.raises(RuntimeError, match="before the process was forked"):
                    checkout.call("pid")
                checkout.release()
                client.close()
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            answer = pipe.read()
        assert os.waitpid(child, 0)[1] == 0
        assert answer and int(answer) != parent
        # The parent's worker is still its own.
        assert checkout.call("pid") == parent


def test_other_objects_say_that_they_belong_to_the_parent(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client:
            async with client.checkout() as checkout:
                parent = await checkout.call("pid")
                child = os.fork()
                if child == 0:
                    status = 1
                    try:
                        for call in (client.call, checkout.call):
                            with pytest.raises(RuntimeError, match="before the process was forked"):
                                call("pid")
                        checkout.release()
                        del checkout, client, call
                        gc.collect()
                        status = 0
                    finally:
                        os._exit(status)
                _, status = await asyncio.get_running_loop().run_in_executor(None, os.waitpid, child, 0)
                assert status == 0
                assert await checkout.call("pid") == parent

    with warnings.catch_warnings():
        # The process has threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.run(test())


def test_a_blocked_thread_lets_others_run_and_reacts_to_signals(server: Any) -> None:
    with taskfork.blocking.Client(server.address, max_workers=1) as client:
        pid = client.call("pid")
        turns = 0
        stop = threading.Event()

        def count() -> None:
            nonlocal turns
            while not stop.is_set():
                turns += 1
                time.sleep(0)

        other = threading.Thread(target=count)
        other.start()
        before = turns
        client.call("sleep", 0.2)
        assert turns > before
        stop.set()
        other.join()
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            client.call("sleep", 30)
        # The call is dropped, and its worker with it.
        asyncio.run(happens("its end", lambda: is_gone(pid)))
        assert client.call("add", 1, 2) == 3
