"""Arrays and other objects with memory, between a client and workers in Python."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import signal
import threading
import weakref
from typing import Any, Iterator

import numpy
import pytest

import taskfork
import taskfork.blocking

MIB = 1 << 20
#: From the third one on, long bytes are in memory that is used again.
BEFORE_SHARED = 2
#: How much of that each side has for a connection.
ROOM = 64 * MIB


def digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def random(length: int, seed: int = 1) -> Any:
    return numpy.random.default_rng(seed).integers(0, 256, length, dtype="u1")


@pytest.fixture(params=["unix", "tcp", "program"])
def server(request: Any, own_server: Any, python_server: Any) -> Any:
    if request.param == "program":
        return python_server(worker="arrays")
    return own_server(worker="arrays", address="tcp:127.0.0.1:0" if request.param == "tcp" else None)


@pytest.fixture
def client(server: Any) -> Iterator[Any]:
    with taskfork.blocking.Client(server.address, min_workers=0, max_workers=1) as client:
        yield client


@pytest.fixture
def own_client(own_server: Any) -> Iterator[Any]:
    """A client that shares memory with its worker."""
    with taskfork.blocking.Client(own_server(worker="arrays").address, min_workers=0, max_workers=1) as client:
        for _ in range(BEFORE_SHARED + 1):
            client.call("same", random(MIB))
        yield client


def test_arrays_of_any_form_arrive_in_the_order_of_their_elements(client: Any) -> None:
    square = random(4 * MIB).view("f4").reshape(1024, 1024)
    arrays = [
        random(100), random(16 << 10), random(MIB + 1), square, square.T, square[::2, 1:], square[::-1], square[:, ::-3],
        numpy.asfortranarray(square), numpy.broadcast_to(random(1024), (2000, 1024)), square[:0],
    ]  # fmt: skip
    for _ in range(BEFORE_SHARED + 2):
        for array in arrays:
            assert client.call("digest", array) == digest(array.tobytes())
            assert bytes(client.call("same", array)) == array.tobytes()
    # Several in one value, the same one twice, and what is no array.
    words = memoryview(b"abcdefgh" * 4000)[::2]
    value = [square, {"column": square[:, 3]}, square, bytearray(b"x" * 20_000), words, bytearray(b"short")]
    for _ in range(BEFORE_SHARED + 2):
        assert client.call("parts", value) == [
            square.tobytes(), {"column": square[:, 3].tobytes()}, square.tobytes(), b"x" * 20_000, words.tobytes(), b"short",
        ]  # fmt: skip


def test_a_view_is_a_view_whatever_its_length_and_its_way(client: Any) -> None:
    for length in (1, 20_000, 20_000, 20_000, 20_000, MIB):
        assert client.call("kind_of_view", random(length)) == ["memoryview", True]
        assert client.call("kind_of", random(length)) == ["bytes", True]
        back = client.call("same", random(length), returns=memoryview)
        assert type(back) is memoryview and back.readonly and back == random(length).tobytes()


def test_what_a_method_returns_of_its_arguments_is_not_copied_there(own_client: Any) -> None:
    for seed in range(8):
        array = random(MIB, seed)
        for method in ("same", "same_bytes"):
            assert own_client.call(method, array) == array.tobytes()
        assert own_client.call("part", array, 0, 100_000) == array[:100_000].tobytes()
    assert own_client.call("filled_memory") == 0
    # What is copied there: another part, and other bytes of the same length.
    for seed in range(BEFORE_SHARED + 2):
        array = random(100_000, seed)
        assert own_client.call("part", array, 1, 90_000) == array[1:90_000].tobytes()
        assert own_client.call("next_of_each", array) == (array + 1).tobytes()
    assert own_client.call("filled_memory") > 0


def test_what_is_returned_stays_as_it_is(own_client: Any) -> None:
    arrays = [random(MIB, seed) for seed in range(6)]
    results = [own_client.call(method, array) for array in arrays for method in ("same", "same_bytes")]
    with own_client.checkout() as checkout:
        calls = [checkout.queue("same", array) for array in arrays]
        results += [call.wait() for call in calls]
    expected = [array.tobytes() for array in arrays for _ in range(2)] + [array.tobytes() for array in arrays]
    assert [bytes(result) for result in results] == expected
    # A method may keep what it returns.
    own_client.call("keep", arrays[0])
    assert own_client.call("same", arrays[1]) == arrays[1].tobytes()
    assert own_client.call("digests") == [digest(arrays[0])]


def test_an_array_may_change_once_its_call_has_been_made(client: Any) -> None:
    with client.checkout() as checkout:
        for length in (100, 20_000, 3 * MIB):
            for _ in range(BEFORE_SHARED + 2):
                array = random(length)
                expected = digest(array)
                # The first is sent at once, and the others wait for it.
                calls = []
                for _ in range(3):
                    calls.append(checkout.queue("digest", array))
                    array += 1
                array -= 3
                array[:] = 0
                digests = [call.wait() for call in calls]
                assert digests == [digest(random(length) + add) for add in range(3)]
                assert digests[0] == expected
            # Its object may free it again.
            data = bytearray(length)
            call = checkout.queue("digest", data)
            data.clear()
            assert call.wait() == digest(bytes(length))


def test_an_array_may_change_while_its_call_waits_for_a_worker(own_server: Any) -> None:
    async def test() -> None:
        server = own_server(worker="arrays")
        async with taskfork.Client(server.address, min_workers=0, max_workers=1) as client:
            async with client.checkout() as checkout:
                await checkout.call("drop")
                arrays = [random(MIB, seed) for seed in range(5)]
                expected = [digest(array) for array in arrays]
                calls = [client.call("digest", array) for array in arrays]
                for array in arrays:
                    array[:] = 0
            assert await asyncio.gather(*calls) == expected

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_call_that_is_made_again_has_its_array(own_server: Any) -> None:
    """A worker that dies before it begins a call leaves that to another one."""
    server = own_server(worker="arrays")
    with taskfork.blocking.Client(server.address, min_workers=0, max_workers=2, max_checkouts=1) as client:
        for seed in range(8):
            array = random(MIB, seed)
            assert client.call("digest", array) == digest(array)


def test_a_call_that_is_made_again_has_each_array_in_its_place(own_server: Any) -> None:
    """Also if the same one occurs twice, and there are more than a message can refer to in memory."""

    def value() -> list[bytearray]:
        twice = bytearray(random(20_000, 0))
        return [twice, *(bytearray(random(20_000, seed)) for seed in range(1, 16)), twice]

    async def run() -> None:
        async with taskfork.Client(own_server(worker="arrays").address, min_workers=0, max_workers=1) as client:
            expected = value()
            for _ in range(6):
                assert await client.call("parts", value()) == expected
            worker = await client.call("pid")
            os.kill(worker, signal.SIGSTOP)
            call = client.call("parts", value())
            # The worker has the call then, and has not begun it.
            await asyncio.sleep(0.1)
            os.kill(worker, signal.SIGKILL)
            assert await call == expected
            assert await client.call("pid") != worker

    asyncio.run(run())


def test_only_who_asks_for_a_view_gets_one(own_client: Any) -> None:
    data = random(MIB)
    for _ in range(2):
        assert own_client.call("kinds_of", data, data, data, named=data, other=data) == ["memoryview", *["bytes"] * 4]


def test_what_a_worker_keeps_does_not_change(own_client: Any) -> None:
    with own_client.checkout() as checkout:
        expected = []
        for seed in range(4):
            array = random(5 * MIB, seed)
            expected.append(digest(array))
            checkout.call("keep", array)
        for seed in range(100, 106):
            array = random(5 * MIB, seed)
            assert checkout.call("digest", array) == digest(array)
            assert checkout.call("digests") == expected


def test_more_than_there_is_room_for_can_be_kept(own_client: Any) -> None:
    with own_client.checkout() as checkout:
        arrays = [random(10 * MIB, seed) for seed in range(8)]
        for array in arrays:
            checkout.call("keep", array)
        assert checkout.call("digests") == [digest(array) for array in arrays]
        mapped = checkout.call("mapped")
        assert 30 * MIB < mapped <= ROOM
        # What is dropped is used again.
        checkout.call("drop")
        for array in arrays * 2:
            checkout.call("same", array)
        assert checkout.call("mapped") <= mapped


def test_a_child_of_a_worker_sees_what_came(own_client: Any) -> None:
    with own_client.checkout() as checkout:
        array = random(2 * MIB)
        checkout.call("fork_with", array)
        for seed in range(2, 8):
            checkout.call("digest", random(2 * MIB, seed))
        assert checkout.call("ask_child") == digest(array)


def test_a_worker_cannot_change_a_result(own_client: Any) -> None:
    with own_client.checkout() as checkout:
        for _ in range(BEFORE_SHARED + 1):
            result = checkout.call("filled", 2 * MIB, 5)
        view = checkout.call("filled", 2 * MIB, 6, returns=memoryview)
        assert checkout.call("overwrite", 7) >= 2 * MIB
        assert result == b"\x05" * (2 * MIB) and view == b"\x06" * (2 * MIB)


def test_threads_pass_arrays_at_the_same_time(own_server: Any) -> None:
    server, failed = own_server(worker="arrays"), []
    with taskfork.blocking.Client(server.address, min_workers=0, max_workers=3) as client:

        def run(seed: int) -> None:
            for step in range(12):
                array = random(MIB + step, seed * 100 + step)
                back = client.call("same", array)
                if back != array.tobytes():
                    failed.append((seed, step))

        threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []


def test_nobody_keeps_an_array_behind_its_call(client: Any) -> None:
    class Array(numpy.ndarray):
        """An array that can be referred to weakly."""

    checkout = client.checkout()
    for length in (20_000, MIB):
        for _ in range(BEFORE_SHARED + 2):
            array = random(length).view(Array)
            gone = weakref.ref(array)
            call = checkout.queue("digest", array)
            del array
            gc.collect()
            assert gone() is None
            call.wait()
    checkout.release()


def changed(array: Any, number: int) -> Any:
    """What a worker of an executor does."""
    array[0] = number
    return array, numpy.array(array.T)


def kind(array: Any) -> Any:
    return type(array).__name__, array.flags.writeable, array.dtype.str, array.shape, array.flags.f_contiguous


def test_arrays_of_an_executor_are_the_callers_own() -> None:
    with taskfork.Executor(1) as executor:
        for length in (10, 100_000, 500_000):
            for number in range(BEFORE_SHARED + 2):
                array = numpy.arange(float(length)).reshape(2, -1)
                future = executor.submit(changed, array, number)
                array[:] = -1
                one, other = future.result()
                expected = numpy.arange(float(length)).reshape(2, -1)
                expected[0] = number
                assert numpy.array_equal(one, expected) and numpy.array_equal(other, expected.T)
                one[:], other[:] = 7, 8
                assert one[0, 0] == 7 and other[0, 0] == 8
        fixed = numpy.arange(100_000)
        fixed.flags.writeable = False
        for array in (fixed, fixed.copy(), numpy.asfortranarray(numpy.ones((300, 400))), numpy.ones((300, 400))[::2]):
            assert executor.submit(kind, array).result() == kind(array) or not array.flags.c_contiguous


def test_an_array_of_an_executor_may_change_once_its_call_has_been_made() -> None:
    with taskfork.Executor(1) as executor:
        for _ in range(BEFORE_SHARED + 3):
            arrays = [random(MIB, seed) for seed in range(4)]
            expected = [digest(array) for array in arrays]
            # The first is sent at once, and the others wait for it.
            futures = [executor.submit(digest, array) for array in arrays]
            for array in arrays:
                array[:] = 0
            assert [future.result(60) for future in futures] == expected
        back = executor.submit(numpy.add, random(MIB), 1).result(60)
        back += 1
        assert numpy.array_equal(back, random(MIB) + 2)
