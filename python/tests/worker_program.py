"""The workers of the tests. The first argument says which. With an address as the second one, this process is their
server."""

from __future__ import annotations

import asyncio
import functools
import gc
import io
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, AsyncIterator, Generator, Iterator, Optional

from input_methods import Inputs

import taskfork.server
from taskfork import BlobMut
from taskfork.worker import DeadlineExceeded, ItemError, default_signals, logger, remaining, serve

done = 0
cleaned: list[Any] = []


def echo(value: Any) -> Any:
    return value


def add(a: int, b: int) -> int:
    return a + b


def pid() -> int:
    return os.getpid()


def checkouts() -> int:
    return done


def boom(message: str) -> None:
    try:
        {}["key"]
    except KeyError as error:
        raise ValueError(message) from error


def chain(causes: int) -> None:
    error: Exception = ValueError("0")
    for number in range(1, causes + 1):
        following = ValueError(str(number))
        following.__cause__ = error
        error = following
    raise error


def cycle() -> None:
    error, other = ValueError("0"), ValueError("1")
    error.__cause__, other.__cause__ = other, error
    raise error


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def clean_up_late(seconds: float) -> None:
    try:
        time.sleep(seconds)
    except DeadlineExceeded:
        logger().warn("cleaning up")
        raise RuntimeError("interrupted, and cleaned up") from None


def spin() -> None:
    while True:
        pass


def hang() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    threading.Event().wait()


def exit_now(code: int) -> None:
    os._exit(code)


def segv() -> None:
    sys.stderr.write("about to crash\n")
    os.kill(os.getpid(), signal.SIGSEGV)


def return_twice() -> int:
    os.fork()
    return os.getpid()


def status_of_child(what: str) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    logger().info("said by the child")
    if what == "raises":
        raise ValueError("in the child")
    if what == "exits":
        sys.exit(9)
    return -1


def crash_with_holder() -> None:
    if os.fork() == 0:
        os.setsid()
        while True:
            signal.pause()
    os.kill(os.getpid(), signal.SIGKILL)


def reset_alarm() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    time.sleep(1000)


def execute() -> None:
    os.execvp("sleep", ["sleep", "1000"])


def terminated() -> list[bool]:
    """Whether programs that this worker starts can be ended by SIGTERM: by default, and with ``default_signals``."""
    ended = []
    for preparation in (None, default_signals):
        program = subprocess.Popen(["sleep", "60"], preexec_fn=preparation)
        ignored = Path(f"/proc/{program.pid}/status").read_text().split("SigIgn:")[1].split()[0]
        program.terminate()
        ended.append(not int(ignored, 16) & 1 << (signal.SIGTERM - 1) and program.wait(30) == -15)
        program.kill()
        program.wait(30)
    return ended


def left() -> Optional[float]:
    return remaining()


def log() -> str:
    logging.getLogger("app").info("about to compute")
    with logger().timer("computing"):
        time.sleep(0.02)
    logger().warn("odd", {"n": 1})
    logger().timer("instant").stop()
    logger().log(-5, "below")
    logger().log(1000, "chatty")
    logger().data("k", "v")
    logging.getLogger("app").debug("not unless wanted")
    return "logged"


def chatter() -> None:
    print("on standard output")
    logger().info("x" * 10000)


def buffer(length: int) -> memoryview:
    return memoryview(bytearray(b"x" * length))


def unencodable() -> Any:
    return object()


def kind(value: Any) -> list[Any]:
    """What arrived, and whether it could be changed."""
    return [type(value).__name__, len(value), memoryview(value).readonly, sum(value[::4096])]


def shared(length: int, byte: int) -> Any:
    made = BlobMut(length)
    with made.view as view:
        view[:] = bytes([byte]) * length
    return made.freeze()


def still_viewed() -> Any:
    made = BlobMut(4096)
    view = made.view
    try:
        return made.freeze()
    finally:
        view.release()


def read(file: io.FileIO) -> bytes:
    with file:
        return file.read()


def is_inherited(file: io.FileIO) -> bool:
    with file:
        return os.get_inheritable(file.fileno())


def touch(path: str) -> None:
    Path(path).touch()


def opened(path: str) -> Any:
    return open(path, "rb", buffering=0)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("in __str__")


def raise_unprintable() -> None:
    raise Unprintable("never shown")


def raise_noted(notes: int) -> None:
    error = ValueError("row 7 is wrong")
    for number in range(notes):
        error.add_note(f"note {number}")
    if notes == 0:
        error.__notes__ = [5, "of a.csv \udc80"]
    raise error


def raise_group() -> None:
    noted = KeyError("key")
    noted.add_note("of the second")
    try:
        boom("inside")
    except ValueError as error:
        first = error
    raise ExceptionGroup("two at once", [first, ExceptionGroup("another", [noted])])


def raise_large_group() -> None:
    error: Exception = ValueError("the innermost")
    for _ in range(100):
        error = ExceptionGroup("a group", [error] * 3)
    raise error


def raise_base(what: str) -> None:
    raise {"exit": SystemExit(3), "interrupt": KeyboardInterrupt(), "generator": GeneratorExit()}[what]


class Hidden:
    def __repr__(self) -> str:
        raise RuntimeError("in __repr__")


def return_hidden() -> Any:
    return Hidden()


def numpy_result(what: str) -> Any:
    import numpy

    if what == "number":
        return numpy.int64(5)
    if what == "strided":
        return numpy.arange(6, dtype="u1")[::2]
    return numpy.array([object()])


def deep_result(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def context() -> list[Any]:
    now = taskfork.context()
    return [now.remaining, now.is_cancelled, now.peer]


def sum_in_native_code() -> int:
    return sum(range(10**13))


def frozen_objects() -> int:
    return gc.get_freeze_count()


def spin_stubbornly() -> None:
    while True:
        try:
            while True:
                pass
        except Exception:
            pass


def parent() -> int:
    return os.getppid()


def lines(count: int) -> Iterator[str]:
    for number in range(count):
        yield f"line {number}"
    return count  # type: ignore[return-value]


def broken_lines() -> Iterator[str]:
    yield "line 0"
    raise ValueError("no more")


def endless_lines() -> Iterator[int]:
    number = 0
    try:
        while True:
            number += 1
            yield number
    finally:
        cleaned.append(number)


def closed_generators() -> int:
    return len(cleaned)


def random_number() -> float:
    return random.random()


ticks = 0


def start_thread() -> None:
    def tick() -> None:
        global ticks
        while True:
            ticks += 1
            time.sleep(0.001)

    threading.Thread(target=tick, daemon=True).start()


def count_ticks() -> int:
    return ticks


def report_progress() -> str:
    taskfork.context().progress(1, 3, "rows")
    # Reports are sent while a call runs.
    time.sleep(60)
    return "reported"


def named(first: int, second: int = 2, /, *rest: Any, only: Any = None, **more: Any) -> list[Any]:
    return [first, second, list(rest), only, more]


def named_lines(*, count: int) -> Iterator[int]:
    yield from range(count)


def named_timeout(timeout: str) -> str:
    return timeout


async def gather_sleeps(seconds: float, count: int) -> float:
    before = time.monotonic()
    await asyncio.gather(*(asyncio.sleep(seconds) for _ in range(count)))
    return time.monotonic() - before


async def event_loop() -> int:
    return id(asyncio.get_running_loop())


async def fail_later() -> None:
    await asyncio.sleep(0)
    raise ValueError("later")


async def sleep_for_long(cleaned_up: str) -> None:
    try:
        await asyncio.sleep(60)
    finally:
        Path(cleaned_up).touch()


async def spin_in_coroutine(cleaned_up: str) -> None:
    await asyncio.sleep(0)
    try:
        spin()
    finally:
        Path(cleaned_up).touch()


def was_cleaned(what: str) -> bool:
    return what in cleaned


async def numbers_later(count: int) -> AsyncIterator[int]:
    try:
        for number in range(count):
            await asyncio.sleep(0)
            try:
                yield number
            except ItemError:
                cleaned.append("unsent")
        if count == 3:
            yield object()  # type: ignore[misc]
    finally:
        await asyncio.sleep(0)
        cleaned.append("items")


FUNCTIONS = [
    touch,
    named, named_lines, named_timeout, gather_sleeps, event_loop, fail_later, sleep_for_long, spin_in_coroutine,
    was_cleaned, numbers_later,
    raise_noted, raise_group, raise_large_group,
    raise_unprintable, raise_base, return_hidden, spin_stubbornly, parent, lines, broken_lines, endless_lines,
    numpy_result, deep_result, frozen_objects, sum_in_native_code, context, closed_generators, random_number, start_thread, count_ticks, report_progress,
    kind, shared, still_viewed, read, is_inherited, opened, descriptors,
    echo, add, pid, checkouts, boom, chain, cycle, sleep, clean_up_late, spin, hang, exit_now, segv, left, log, chatter,
    terminated,
    buffer, unencodable, return_twice, status_of_child, crash_with_holder, reset_alarm, execute,
]  # fmt: skip


def checkout_done() -> None:
    global done
    done += 1


class Counter:
    """An interface with a state."""

    def __init__(self, start: int) -> None:
        self._count = start
        self.database = sqlite3.connect(":memory:")

    def next(self) -> int:
        self._count += 1
        return self._count


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    return call


class Streams:
    """What the playground has with `--streams`, and what only Python has."""

    def __init__(self) -> None:
        self._sent = 0
        self._seen = ""

    def numbers(self, count: int) -> Iterator[int]:
        yield from range(count)
        return count

    def endless(self) -> Iterator[int]:
        self._sent = 0
        while True:
            yield self._sent
            self._sent += 1

    def sent(self) -> int:
        return self._sent

    def blobs(self, lengths: list[int]) -> Iterator[Any]:
        for length in lengths:
            made = BlobMut(length)
            with made.view as view:
                view[:] = b"x" * length
            yield made.freeze()

    def two_and_then(self, fault: str) -> Iterator[int]:
        yield 1
        yield 2
        if fault == "fail":
            raise ValueError("failed")
        if fault == "abort":
            os.abort()
        hang()

    def steps(self, file: str) -> Iterator[int]:
        taskfork.context().progress(1, 3, "steps")
        while not os.path.exists(file):
            time.sleep(0.002)
        yield 2

    def pid(self) -> int:
        return os.getpid()

    def echo(self, text: str) -> str:
        return text

    def texts(self, length: int, count: int, file: str) -> Iterator[str]:
        for number in range(count):
            yield "x" * length
            Path(file).write_text(str(number + 1))

    def seen(self) -> str:
        """What the last `watchful` has seen."""
        return self._seen

    def watchful(self, length: int = 1000) -> Iterator[bytes]:
        self._seen = ""
        try:
            while True:
                yield b"x" * length
        except GeneratorExit:
            self._seen = "the end"
            raise
        except DeadlineExceeded:
            self._seen = "the deadline"
            yield b"last"
            raise

    def unsendable(self) -> Iterator[Any]:
        said = []
        for item in (7, object(), b"x" * (2 << 20), 8):
            try:
                yield item
            except ItemError as error:
                said.append(str(error))
        return "; ".join(said)

    def unsendable_and_nothing_else(self) -> Iterator[Any]:
        yield object()

    def lines(self, path: str) -> Iterator[str]:
        """An iterator that is no generator."""
        return open(path)

    def parts(self) -> Generator[int, None, str]:
        return (number for number in range(3))  # type: ignore[return-value]

    # Without an annotation.
    def plain(self, count):  # type: ignore[no-untyped-def]
        yield from range(count)

    @decorated
    def wrapped(self, count):  # type: ignore[no-untyped-def]
        yield from range(count)

    def child(self) -> Iterator[int]:
        yield os.getpid()
        child = os.fork()
        if child == 0:
            yield 0
        # It must end without credit.
        os.waitpid(child, 0)
        yield os.getpid()

    def many_reports(self, reports: int, file: str) -> str:
        for done in range(reports):
            taskfork.context().progress(done, reports, "steps")
        taskfork.context().progress(reports, None, "\u00e9" * 100)
        while not os.path.exists(file):
            time.sleep(0.002)
        return "done"

    def wrong_report(self) -> None:
        taskfork.context().progress(-1)


setups = 0


def setup_second_time() -> int:
    global setups
    setups += 1
    if setups == 1:
        raise OSError("no licence")
    return 40


def start(interface: Any, **options: Any) -> None:
    if len(sys.argv) > 2:
        taskfork.server.run(interface, listen=sys.argv[2], share_details=True, max_workers=400, **options)
    else:
        serve(interface, **options)


if __name__ == "__main__":
    which = sys.argv[1]
    if which == "functions":
        start(FUNCTIONS, checkout_done=checkout_done)
    elif which == "object":
        start(Counter, setup=setup_second_time)
    elif which == "any":
        start(lambda method, *args: [method, *args])
    elif which == "inputs":
        start(Inputs)
    elif which == "arrays":
        import array_methods

        start(array_methods.METHODS)
    elif which == "converters":
        import converter_methods

        start(converter_methods.METHODS)
    elif which == "pickles":
        import pickle_methods

        start(pickle_methods.METHODS, pickle=True)
    elif which == "refuses_pickles":
        import pickle_methods

        start(pickle_methods.METHODS)
    elif which == "streams":
        taskfork.context().progress(1)  # Outside of a call it does nothing.
        start(Streams)
