"""Code of the user that runs within the client for asyncio: it makes calls, cancels others, and raises what is no `Exception`."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any, AsyncIterator, Iterator

import pytest
from conftest import happens

import taskfork
import taskfork.blocking

ODD = Path(__file__).with_name("odd_methods.py")


@pytest.fixture
def server(start: Any) -> Any:
    return start([sys.executable, str(ODD), "ADDRESS"])


def run(test: Any) -> Any:
    return asyncio.run(asyncio.wait_for(test, 60))


class Stop(BaseException):
    pass


def test_a_log_function_may_make_calls_and_cancel_the_one_that_has_ended(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            calls: dict[str, Any] = {}

            def on_log(_: Any) -> None:
                if "new" not in calls:
                    calls["new"] = client.call("echo", "new", timeout=10)
                    calls["was done"] = calls["old"].done()
                    calls["old"].cancel()

            async with client.checkout(log=on_log) as checkout:
                calls["old"] = checkout.call("echo", "old")
                assert await calls["old"] == "old"
                assert calls["was done"]
                assert await calls["new"] == "new"

    run(test())


def test_an_input_may_cancel_its_own_call_and_make_others(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            calls: dict[str, Any] = {}

            def rows() -> Iterator[int]:
                yield 1
                calls["old"].cancel()
                calls["new"], calls["other"] = client.call("echo", "new"), client.call("echo", "other")
                yield 2

            calls["old"] = client.call("total", input=rows(), timeout=10)
            with pytest.raises(asyncio.CancelledError):
                await calls["old"]
            assert await calls["new"] == "new"
            assert await calls["other"] == "other"

    run(test())


def test_an_input_that_ends_with_its_client_sees_that_other_calls_have_failed(server: Any) -> None:
    async def test() -> None:
        client = taskfork.Client(server.address)
        seen: list[Any] = []
        calls: list[Any] = []
        begun = asyncio.Event()

        def rows() -> Iterator[int]:
            try:
                for number in range(1_000_000):
                    begun.set()
                    yield number
            finally:
                seen.append([call.done() for call in calls])

        calls.append(client.call("total", input=rows()))
        calls.append(client.call("sleep", 30))
        await begun.wait()
        await client.close()
        assert seen == [[True, True]]
        for call in calls:
            with pytest.raises(taskfork.Aborted):
                await call

    run(test())


def test_calls_go_on_after_a_turn_that_was_interrupted(server: Any) -> None:
    calls: list[Any] = []
    clients: list[taskfork.Client] = []

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    async def begin() -> None:
        client = taskfork.Client(server.address, max_workers=2)
        clients.append(client)
        checkout = client.checkout(log=stop)
        await checkout.ready()
        # Its log ends the turn in which it is answered.
        calls.append(checkout.call("log", "keys"))
        calls.extend(client.call("echo", number) for number in range(20))
        await asyncio.gather(*calls)

    async def end() -> list[Any]:
        # Awaiting a call would look for its answer without a turn.
        _, left = await asyncio.wait(calls[1:], timeout=20)
        assert not left
        await clients[0].close()
        return [call.result() for call in calls[1:]]

    loop = asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(begin())
    assert loop.run_until_complete(end()) == list(range(20))
    loop.close()


def test_a_stream_belongs_to_the_loop_of_its_client(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            stream = client.stream("both", input=[1, 2])
            call, other = client.call("sleep", 0.1), client.call("sleep", 0.1)
            reports = call.progress()
            said: list[str] = []

            async def use() -> None:
                for each in (stream.__anext__(), stream.result(), stream.aclose(), reports.changed()):
                    with pytest.raises(RuntimeError, match="belongs to another event loop"):
                        await each
                    said.append("refused")
                with pytest.raises(RuntimeError, match="attached to a different loop"):
                    await other

            def elsewhere() -> None:
                asyncio.run(use(), debug=True)
                said.append("done")

            thread = threading.Thread(target=elsewhere)
            thread.start()
            await happens("the end of the other loop", lambda: not thread.is_alive())
            assert said == ["refused"] * 4 + ["done"]
            assert await call == 0.1
            assert [item async for item in stream] == [1, 2]
            assert await client.call("echo", 1) == 1

    run(test())


def test_an_exception_between_a_result_and_its_waiters_ends_the_loop(server: Any) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        client = taskfork.Client(server.address)
        assert await client.call("echo", 1) == 1
        real = loop.call_soon

        def once(callback: Any, *args: Any, **options: Any) -> Any:
            if "wakeup" in repr(callback).lower():
                loop.call_soon = real  # type: ignore[method-assign]
                raise KeyboardInterrupt
            return real(callback, *args, **options)

        call = client.call("sleep", 0.05)

        async def wait() -> Any:
            return await call

        waiter = asyncio.ensure_future(wait())
        await asyncio.sleep(0.01)
        loop.call_soon = once  # type: ignore[method-assign, assignment]
        await asyncio.wait([waiter], timeout=20)

    # Not `asyncio.run`, which would wait for the waiter: asyncio has lost its wake-up.
    loop = asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(test())
    loop.close()


class Interrupts:
    """What Ctrl-C raises while this is encoded."""

    def __repr__(self) -> str:
        raise KeyboardInterrupt


def test_ctrl_c_while_a_value_is_encoded_is_raised(server: Any) -> None:
    with taskfork.blocking.Client(server.address) as client:
        with pytest.raises(KeyboardInterrupt):
            client.call("echo", Interrupts())
        with pytest.raises(KeyboardInterrupt):
            client.call("total", input=[1, Interrupts()])
        with client.checkout() as checkout:
            with pytest.raises(KeyboardInterrupt):
                checkout.queue("echo", Interrupts())
            with pytest.raises(KeyboardInterrupt):
                checkout.stream("echo", Interrupts())
            assert checkout.call("echo", 1) == 1

    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            with pytest.raises(KeyboardInterrupt):
                client.call("echo", Interrupts())
            assert await client.call("echo", 1) == 1

    run(test())


def test_ctrl_c_in_a_log_function_is_raised(server: Any) -> None:
    def interrupts(_: Any) -> None:
        raise KeyboardInterrupt

    with taskfork.blocking.Client(server.address) as client:
        with client.checkout(log=interrupts) as checkout:
            with pytest.raises(KeyboardInterrupt):
                checkout.call("echo", 1)
            assert client.call("echo", 2) == 2


@pytest.mark.parametrize("error", [Stop("no"), GeneratorExit(), ValueError("no")])
def test_whatever_an_asynchronous_input_raises_ends_its_call(server: Any, error: BaseException) -> None:
    async def rows() -> AsyncIterator[int]:
        yield 1
        raise error

    async def test() -> None:
        loop = asyncio.get_running_loop()
        # A task that ends with `GeneratorExit` is reported.
        loop.set_exception_handler(lambda *_: None)
        async with taskfork.Client(server.address) as client:
            with pytest.raises(taskfork.InputError) as caught:
                await client.call("total", input=rows(), timeout=50)
            assert caught.value.__cause__ is error or isinstance(error, GeneratorExit)

    run(test())


def test_a_wait_that_nobody_has_any_more_is_forgotten(server: Any) -> None:
    import gc

    from taskfork._call import Call

    async def never() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    def waits() -> int:
        gc.collect()
        return sum(type(each) is Call for each in gc.get_objects())

    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=2) as client:
            before = waits()
            for _ in range(5):
                stream = client.stream("both", input=never())
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(stream.__anext__(), 0.01)
                del stream
                call = client.call("sleep", 30)
                reports = call.progress()
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(reports.__anext__(), 0.01)
                del reports
                call.cancel()
                del call
            # The tasks of the inputs end in the next turns.
            await happens("their end", lambda: waits() <= before)

    run(test())
