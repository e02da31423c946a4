"""Pools of processes as programs in Python use them: `python_works.py CANDIDATE WORK SCALE` prints one line of JSON.

The exit status is 69 if the candidate is not installed. What a pool has lost for good after a crash is made anew, as its user
would have to.
"""

import asyncio
import gc
import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, wait

# Servers have one thread. All candidates have the same.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy

TEXT = "x" * 64
#: How many calls are made at the same time.
BATCH = 100
#: The float64 of an array of one KiB.
ELEMENTS = 128
#: The calls at the time of a crash, and what they take.
BYSTANDERS, SECONDS = 19, 0.02
CRASHES = 15
NOT_INSTALLED = 69


# What workers run.


def echo(value):
    return value


def pid(_):
    time.sleep(0.05)
    return os.getpid()


def pause(seconds):
    time.sleep(seconds)


def crash(_):
    os.kill(os.getpid(), signal.SIGKILL)


def array_of_bytes(data: memoryview):
    """Bytes arrive, and the elements of an array are sent back as bytes."""
    return numpy.frombuffer(data)


def array_in_memory(view):
    """The same in memory that is passed."""
    import taskfork

    memory = taskfork.BlobMut(view.nbytes)
    with memory.view as out:
        numpy.frombuffer(out)[:] = numpy.frombuffer(view)
    return memory.freeze()


# The candidates. Each has `call`, one call and its result; `many`, the results of many calls at the same time; `survivors`,
# how many calls beside a crash succeed; `array`, an array there and back; and `close`.


class Pool:
    """Everything that has futures of the standard library."""

    #: Whether a crash breaks it for good.
    breaks = True

    def call(self, function, value):
        return self.start(function, value).result()

    def start(self, function, value):
        return self.pool.submit(function, value)

    def many(self, function, values):
        futures = [self.start(function, value) for value in values]
        wait(futures)
        return [future.result() for future in futures]

    def survivors(self, function, values):
        futures = [self.start(crash, 0)]
        for value in values:
            try:
                futures.append(self.start(function, value))
            except Exception:
                # The pool is broken already, and the call lost too.
                pass
        wait(futures)
        return sum(future.exception() is None for future in futures)

    def array(self, array):
        return self.call(echo, array)


class Futures(Pool):
    def __init__(self, workers):
        self.pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))

    def close(self):
        self.pool.shutdown(cancel_futures=True)


class Loky(Pool):
    def __init__(self, workers):
        self.pool = loky.ProcessPoolExecutor(workers)

    def close(self):
        self.pool.shutdown(kill_workers=True)


class Pebble(Pool):
    breaks = False

    def __init__(self, workers):
        self.pool = pebble.ProcessPool(workers, context=multiprocessing.get_context("fork"))

    def start(self, function, value):
        return self.pool.schedule(function, args=[value])

    def close(self):
        self.pool.stop()
        self.pool.join()


class Executor(Pool):
    breaks = False

    def __init__(self, workers):
        self.pool = taskfork.Executor(workers)

    def close(self):
        self.pool.shutdown(cancel_futures=True)


class ForkedExecutor(Executor):
    """Its server is a fork of the program, as the workers of the other pools are."""

    def __init__(self, workers):
        self.pool = taskfork.Executor(workers, multiprocessing.get_context("fork"))


class Blocking:
    """The client without asyncio, and a server of its own."""

    breaks = False

    def __init__(self, workers):
        self.workers = workers
        self.server = taskfork.Server.start("python_works", workers=workers)
        self.open()

    def open(self):
        self.client = taskfork.blocking.Client(self.server.address, max_workers=self.workers, min_workers=0)

    def call(self, function, value):
        return self.client.call(function.__name__, value)

    def many(self, function, values):
        """Calls of one thread go ahead of their answers in checkouts, of which there are as many as workers."""
        checkouts = [self.client.checkout() for _ in range(self.workers)]
        calls = [checkouts[number % self.workers].queue(function.__name__, value) for number, value in enumerate(values)]
        results = [call.wait() for call in calls]
        for checkout in checkouts:
            checkout.release()
        return results

    def array(self, array):
        return numpy.frombuffer(self.client.call("array_of_bytes", array))

    def close(self):
        self.client.close()
        self.server.close()


class Served(Blocking):
    """The same, whose server runs already."""

    def restart(self):
        self.client.close()
        start = time.perf_counter()
        self.open()
        self.call(echo, TEXT)
        return time.perf_counter() - start


class Memory(Blocking):
    """The same, and arrays in memory that is passed. Both sides copy from arrays of their own, as those who have such do."""

    def array(self, array):
        memory = taskfork.BlobMut(array.nbytes)
        with memory.view as view:
            numpy.frombuffer(view)[:] = array
        return numpy.frombuffer(self.client.call("array_in_memory", memory.freeze()))


class Asyncio:
    """The client for asyncio, and a server of its own."""

    breaks = False

    def __init__(self, workers):
        self.server = taskfork.Server.start("python_works", workers=workers)
        self.runner = asyncio.new_event_loop()
        self.client = self.runner.run_until_complete(self.made(workers))

    async def made(self, workers):
        return taskfork.Client(self.server.address, max_workers=workers, min_workers=0)

    def call(self, function, value):
        async def run():
            return await self.client.call(function.__name__, value)

        return self.runner.run_until_complete(run())

    def latencies(self, count):
        """Times of calls in one task, as a program has them that does not leave its event loop."""

        async def run():
            times = []
            for _ in range(count):
                start = time.perf_counter()
                await self.client.call("echo", TEXT)
                times.append(time.perf_counter() - start)
            return times

        return self.runner.run_until_complete(run())

    def many(self, function, values):
        async def run():
            return await asyncio.gather(*(self.client.call(function.__name__, value) for value in values))

        return self.runner.run_until_complete(run())

    def survivors(self, function, values):
        async def run():
            calls = [self.client.call("crash", 0), *(self.client.call(function.__name__, value) for value in values)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            return sum(not isinstance(answer, BaseException) for answer in answers)

        return self.runner.run_until_complete(run())

    def array(self, array):
        return numpy.frombuffer(self.call(array_of_bytes, array))

    def close(self):
        self.runner.run_until_complete(self.client.close())
        self.runner.close()
        self.server.close()


class AsyncioQueued(Asyncio):
    """The same, with calls that go ahead of their answers, in as many checkouts as there are workers."""

    def many(self, function, values):
        async def run():
            async with self.client.checkout() as one, self.client.checkout() as other:
                calls = [(one, other)[number % 2].call(function.__name__, value) for number, value in enumerate(values)]
                return await asyncio.gather(*calls)

        return self.runner.run_until_complete(run())


# The works.


def latencies(pool, count):
    times = []
    for _ in range(count):
        start = time.perf_counter()
        pool.call(echo, TEXT)
        times.append(time.perf_counter() - start)
    return times


def of_times(times):
    times = sorted(time * 1e6 for time in times)
    return {"value": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}


def median(values):
    return sorted(values)[len(values) // 2]


def cold(make):
    """Imports do not count: they are there in most programs."""
    start = time.perf_counter()
    pool = make(1)
    pool.call(echo, TEXT)
    took = time.perf_counter() - start
    if isinstance(pool, Served):
        took = pool.restart()
    pool.close()
    return {"value": took * 1e6}


def crashes(make):
    """From a call that crashes to the answer of the next one."""
    pool, times = make(1), []
    for _ in range(CRASHES):
        pool.call(echo, TEXT)
        start = time.perf_counter()
        try:
            pool.call(crash, 0)
        except Exception:
            pass
        if pool.breaks:
            pool.close()
            pool = make(1)
        pool.call(echo, TEXT)
        times.append(time.perf_counter() - start)
    pool.close()
    return of_times(times)


def arrays(pool, kib):
    array, times = numpy.random.default_rng(1).random(kib * ELEMENTS), []
    for number in range(13):
        start = time.perf_counter()
        back = pool.array(array)
        took = time.perf_counter() - start
        # The first calls get memory from the system.
        if number >= 3:
            times.append(took)
        assert numpy.array_equal(back, array)
        del back
    return {"value": 2 * array.nbytes / median(times) / 1e6}


def pss(process):
    with open(f"/proc/{process}/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def measure(make, work, scale):
    if work == "python_cold":
        return cold(make)
    if work == "python_crash":
        return crashes(make)
    pool = make({"python_gathered": 2, "python_lost": 4, "python_pss": 4}.get(work, 1))
    try:
        if work == "python_call":
            run = pool.latencies if isinstance(pool, Asyncio) else lambda count: latencies(pool, count)
            run(100)
            return of_times(run(scale))
        if work == "python_gathered":
            pool.many(echo, [TEXT] * BATCH)
            start = time.perf_counter()
            for _ in range(scale // BATCH):
                pool.many(echo, [TEXT] * BATCH)
            return {"value": scale / (time.perf_counter() - start)}
        if work == "python_array":
            return arrays(pool, scale)
        if work == "python_lost":
            pool.many(pause, [SECONDS] * 8)
            return {"value": BYSTANDERS + 1 - pool.survivors(pause, [SECONDS] * BYSTANDERS)}
        if work == "python_pss":
            workers = set()
            while len(workers) < 4:
                workers |= set(pool.many(pid, [0] * 8))
            return {"value": median([pss(worker) for worker in workers])}
        return {"failed": "does not do that"}
    finally:
        pool.close()


CANDIDATES = {
    "futures": Futures,
    "pebble": Pebble,
    "loky": Loky,
    "taskfork Executor": Executor,
    "taskfork Executor, fork": ForkedExecutor,
    "taskfork blocking": Blocking,
    "taskfork blocking, queued": Blocking,
    "taskfork blocking, server runs": Served,
    "taskfork blocking, shared memory": Memory,
    "taskfork asyncio": Asyncio,
    "taskfork asyncio, queued": AsyncioQueued,
}

if __name__ == "__main__":
    name = sys.argv[1]
    package = "concurrent" if name == "futures" else name.split()[0]
    if importlib.util.find_spec(package) is None:
        sys.exit(NOT_INSTALLED)
    if package == "taskfork":
        import taskfork
        import taskfork.blocking
        import taskfork.client
        import taskfork.executor
    elif package != "concurrent":
        globals()[package] = importlib.import_module(package)
    gc.collect()
    print(json.dumps(measure(CANDIDATES[name], sys.argv[2], int(sys.argv[3]))))
