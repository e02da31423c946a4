"""Interpreters other than the main one of their process: the package says that it does not work there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = str(Path(__file__).parents[1] / "src")

#: Imports modules of the package in a subinterpreter, and then in the main one. What the first says is in a file.
PROGRAM = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
said, path, *modules = sys.argv[1:]
sys.path.insert(0, path)
script = f'''
import importlib, sys
sys.path[:] = {sys.path!r}
with open({said!r}, "w") as file:
    for module in {modules!r}:
        try:
            importlib.import_module(module)
            print(module, "works", file=file)
        except ImportError as error:
            print(module, error, file=file)
'''
own = interpreters.create()
interpreters.run_string(own, script)
interpreters.destroy(own)
import taskfork, taskfork.blocking, taskfork.server
print(taskfork.blocking.Client)
"""

#: Imports the package in an interpreter that may say that it is free-threaded.
FREE_THREADED = """
import sys
path, *flags = sys.argv[1:]
sys.path.insert(0, path)
if flags:
    [sys.abiflags] = flags
import taskfork
print(taskfork.Blob)
try:
    import taskfork.blocking
except ImportError as error:
    print(error)
"""


def free_threaded() -> list[list[str]]:
    """What runs Python without the lock: this interpreter, which only says so, and those that the machine has."""
    found = (shutil.which(f"python3.{minor}t") for minor in range(13, 20))
    return [[sys.executable, "-c", FREE_THREADED, SOURCE, "t"], *([path, "-c", FREE_THREADED, SOURCE] for path in found if path)]


@pytest.mark.parametrize("program", free_threaded(), ids=lambda program: Path(program[0]).name)
def test_a_free_threaded_interpreter_is_told_what_to_use(program: list[str]) -> None:
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert "taskfork does not work in a free-threaded build of Python: use the ordinary build" in done.stdout, done.stderr


def test_a_subinterpreter_is_told_that_the_package_does_not_work_there(tmp_path: Path) -> None:
    modules = ["taskfork.blocking", "taskfork.client", "taskfork.server"]
    said = tmp_path / "said"
    program = [sys.executable, "-c", PROGRAM, str(said), SOURCE, *modules]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    # The main interpreter is none the worse for it.
    assert done.returncode == 0 and "blocking.Client" in done.stdout, done.stderr
    lines = said.read_text().splitlines()
    assert len(lines) == len(modules)
    for module, line in zip(modules, lines):
        if module == "taskfork.server":
            # Some interpreters refuse a module of the standard library before.
            assert "subinterpreter" in line, line
        else:
            assert line.startswith(f"{module} taskfork does not work in a subinterpreter: import it in the main"), line
