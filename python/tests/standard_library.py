"""CPython's own tests of process pools, run against `taskfork.Executor` by hand: `python3 standard_library.py` with a server that is
a new interpreter, and `python3 standard_library.py fork` with a fork, by a Python that has the tests, 3.10 or 3.13 for example, and
the package on its path.

They look at private attributes of the pool of the standard library, which an adapter imitates where it can."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import importlib
import pkgutil
import sys
import unittest
from typing import Any, Iterator

import taskfork

#: Why tests cannot pass. What the others show is a fault.
CANNOT_PASS = {
    "test_context_manager_shutdown": "private attributes",
    "test_processes_terminate": "private attributes",
    "test_shutdown_no_wait": "private attributes",
    "test_del_shutdown": "private attributes",
    "test_killed_child": "private attributes",
    "test_idle_process_reuse_one": "private attributes",
    "test_idle_process_reuse_multiple": "private attributes",
    "test_saturation": "private attributes",
    "test_shutdown_deadlock_pickle": "private attributes",
    "test_error_at_task_unpickle": "it fails its call alone",
    "test_exit_at_task_unpickle": "it fails its call alone",
    "test_error_during_result_unpickle_in_result_handler": "it fails its call alone",
    "test_exit_during_result_unpickle_in_result_handler": "it fails its call alone",
    "test_traceback": "a private class",
    "test_initializer": "private attributes, and a queue that only a fork can pass on",
    "test_max_tasks_per_child": "private attributes, and it is allowed with fork",
    "test_max_tasks_per_child_defaults_to_spawn_context": "private attributes",
    "test_python_finalization_error": "it lets the pool's second thread fail, which there is not",
    "test_cancel_futures": "no call has begun when the workers' server still starts",
}


#: What the names of the tests begin with.
PREFIX = "ProcessPoolFork" if sys.argv[1:] == ["fork"] else "ProcessPoolSpawn"


class ProcessPoolExecutor(taskfork.Executor):
    """It breaks by a crash, as that of the standard library."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, strict=True, **options)


def cases() -> Iterator[type[unittest.TestCase]]:
    tests = importlib.import_module("test.test_concurrent_futures")
    path = getattr(tests, "__path__", [])
    modules = [importlib.import_module(f"{tests.__name__}.{each.name}") for each in pkgutil.iter_modules(path)]
    for module in modules or [tests]:
        for name, case in vars(module).items():
            if isinstance(case, type) and issubclass(case, unittest.TestCase) and name.startswith(PREFIX):
                if PREFIX != "ProcessPoolFork" or "server" not in name:
                    yield case


def main() -> None:
    concurrent.futures.ProcessPoolExecutor = ProcessPoolExecutor  # type: ignore[misc]
    concurrent.futures.process.ProcessPoolExecutor = ProcessPoolExecutor  # type: ignore[misc]
    suite = unittest.TestSuite(unittest.defaultTestLoader.loadTestsFromTestCase(case) for case in cases())
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    failed = {test.id().rsplit(".", 1)[1] for test, _ in [*result.failures, *result.errors]}
    for name in sorted(failed):
        print(f"{name}: {CANNOT_PASS.get(name, 'A FAULT')}")
    print(f"{result.testsRun - len(result.failures) - len(result.errors)} of {result.testsRun} passed or were skipped")
    sys.exit(bool(failed - CANNOT_PASS.keys()))


if __name__ == "__main__":
    main()
