"""The pools of processes of Python: `peers.py CANDIDATE WORK SCALE` prints one line of JSON."""

import json
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, wait

TABLE = None


def echo(value):
    return value


def pid(_):
    time.sleep(0.05)
    return os.getpid()


def hash_one(_):
    import bcrypt

    return bcrypt.hashpw(b"correct horse", bcrypt.gensalt(8))


class Futures:
    """concurrent.futures: the standard library's."""

    def __init__(self, workers):
        context = multiprocessing.get_context("fork")
        self.pool = ProcessPoolExecutor(workers, mp_context=context)

    def start(self, function, value):
        return self.pool.submit(function, value)

    def call(self, function, value):
        return self.start(function, value).result()

    def many(self, function, count):
        wait([self.start(function, "x" * 64) for _ in range(count)])

    def close(self):
        self.pool.shutdown(cancel_futures=True)


class Loky(Futures):
    def __init__(self, workers):
        from loky import ProcessPoolExecutor as Executor

        self.pool = Executor(workers)

    def close(self):
        self.pool.shutdown(kill_workers=True)


class Pebble(Futures):
    def __init__(self, workers):
        from pebble import ProcessPool

        self.pool = ProcessPool(workers, context=multiprocessing.get_context("fork"))

    def start(self, function, value):
        return self.pool.schedule(function, args=[value])

    def close(self):
        self.pool.stop()
        self.pool.join()


def pids(pool, count):
    found = set()
    for _ in range(20):
        futures = [pool.start(pid, 0) for _ in range(count * 2)]
        found |= {future.result() for future in futures}
        if len(found) >= count:
            break
    return found


def pss(process):
    with open(f"/proc/{process}/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def median(values):
    return sorted(values)[len(values) // 2]


def measure(make, work, scale):
    if work == "cold":
        start = time.perf_counter()
        pool = make(1)
        pool.call(echo, "x" * 64)
        took = time.perf_counter() - start
        pool.close()
        return {"value": took * 1e6}
    if work == "pss_preload":
        global TABLE
        TABLE = bytearray(b"x" * (256 << 20))
    workers = {"throughput": 2, "bcrypt": 2, "checkouts": 20, "pss": 4, "pss_preload": 4}
    pool = make(workers.get(work, 1))
    try:
        pool.call(echo, "x" * 64)
        if work == "latency":
            times = []
            for _ in range(scale):
                start = time.perf_counter()
                pool.call(echo, "x" * 64)
                times.append((time.perf_counter() - start) * 1e6)
            times.sort()
            return {"value": median(times), "p99": times[len(times) * 99 // 100]}
        if work.startswith("payload"):
            body = b"x" * (scale << 10)
            pool.call(echo, body)
            start = time.perf_counter()
            pool.call(echo, body)
            return {"value": 2 * len(body) / (time.perf_counter() - start) / 1e6}
        if work in ("throughput", "checkouts"):
            start = time.perf_counter()
            pool.many(echo, scale)
            return {"value": scale / (time.perf_counter() - start)}
        if work == "bcrypt":
            pool.many(hash_one, 2)
            start = time.perf_counter()
            pool.many(hash_one, scale)
            return {"value": scale / (time.perf_counter() - start)}
        if work.startswith("pss"):
            return {"value": median([pss(process) for process in pids(pool, 4)])}
        if work == "replace":
            victim = pool.call(pid, 0)
            start = time.perf_counter()
            os.kill(victim, signal.SIGKILL)
            while time.perf_counter() - start < 5:
                try:
                    pool.call(echo, "x" * 64)
                    return {"value": (time.perf_counter() - start) * 1e6}
                except Exception:
                    time.sleep(0.0001)
            return {"failed": "the pool is broken for good"}
        return {"failed": "does not do that"}
    finally:
        pool.close()


if __name__ == "__main__":
    candidates = {"futures": Futures, "pebble": Pebble, "loky": Loky}
    print(json.dumps(measure(candidates[sys.argv[1]], sys.argv[2], int(sys.argv[3]))))
