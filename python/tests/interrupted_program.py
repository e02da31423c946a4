"""A program whose main thread is interrupted again and again while it makes calls of an executor and waits for them, as by Ctrl-C.
It prints how often, and fails if a call is lost or has the result of another one."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

import taskfork

#: How many interruptions there are, and after how many rounds there must have been so many.
INTERRUPTIONS, ROUNDS = 400, 100_000
WORKERS = 2
SECONDS = 60


class Interrupted(BaseException):
    """As that of Ctrl-C."""


class Expired(Exception):
    """As programs limit the time of a function."""


class Value:
    """It is made by code in Python, in which an exception may be raised."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __setstate__(self, state: dict[str, Any]) -> None:
        for _ in range(random.choice((0, 0, 200))):
            pass
        self.__dict__.update(state)


def same(number: int) -> Value:
    return Value(number)


def meet(folder: str, number: int) -> int:
    """Ends once all workers run it."""
    path = Path(folder)
    (path / str(number)).touch()
    while len(list(path.iterdir())) < WORKERS:
        pass
    return number


class Alarm:
    """Interrupts the main thread once, soon."""

    def __init__(self) -> None:
        self.is_on = False
        self.count = 0
        self._kinds: tuple[type[BaseException], ...] = ()
        signal.signal(signal.SIGALRM, self._raise)

    def _raise(self, *_: Any) -> None:
        if self.is_on:
            self.is_on = False
            self.count += 1
            raise random.choice(self._kinds)

    def begin(self, longest: float, *kinds: type[BaseException]) -> None:
        self.is_on, self._kinds = True, kinds
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, longest))

    def end(self) -> None:
        self.is_on = False


def make_calls(executor: taskfork.Executor, numbers: range, is_over: threading.Event) -> int:
    """What another thread does, which nothing interrupts."""
    done = 0
    while not is_over.is_set():
        for number in numbers:
            assert executor.submit(same, number).result(SECONDS).number == number
            done += 1
    return done


def interrupt(executor: taskfork.Executor, alarm: Alarm, number: int, longest: float) -> None:
    future: Optional[taskfork.executor.Future[Value]] = None
    value: Optional[Value] = None
    try:
        if number % 2:
            alarm.begin(longest, Interrupted)
        # What it raises is the error of the call, unless it is an interruption.
        future = executor.submit(same, number)
        if not number % 2:
            alarm.begin(longest, Interrupted, Expired)
        value = future.result(SECONDS)
        alarm.end()
    except (Interrupted, Expired):
        pass
    if value is None and future is not None:
        value = future.result(SECONDS)
    assert value is None or value.number == number


def main(folder: str) -> None:
    alarm = Alarm()
    is_over = threading.Event()
    with taskfork.Executor(WORKERS) as executor, ThreadPoolExecutor() as threads:
        executor.submit(same, 0).result(SECONDS)
        others: list[Any] = []
        longest = 1e-3
        try:
            for number in range(ROUNDS):
                if number == ROUNDS // 2 or alarm.count == INTERRUPTIONS // 2 and not others:
                    others = [threads.submit(make_calls, executor, range(1000), is_over)]
                before = alarm.count
                interrupt(executor, alarm, -number, longest)
                # About half of the calls are interrupted, whatever they take.
                longest *= 1.02 if alarm.count > before else 0.98
                if alarm.count >= INTERRUPTIONS:
                    break
            is_over.set()
            for other in others:
                assert other.result(SECONDS) > 0
            # No worker has got lost.
            together = [executor.submit(meet, folder, number) for number in range(WORKERS)]
            assert [future.result(SECONDS) for future in together] == list(range(WORKERS))
        except BaseException:
            # The end of the blocks would wait for a call that is lost.
            traceback.print_exc()
            os._exit(1)
    print(alarm.count)


if __name__ == "__main__":
    main(sys.argv[1])
