"""The types of the package, in a program of a user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

PROGRAM = Path(__file__).with_name("typed_program.py")


def mypy(program: Path) -> str:
    environment = {**os.environ, "MYPYPATH": str(PROGRAM.parents[1] / "src")}
    words = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, str(program)]
    return subprocess.run(words, env=environment, capture_output=True, text=True).stdout


def pyright(program: Path) -> str:
    words = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(program)]
    return subprocess.run(words, cwd=PROGRAM.parents[1], capture_output=True, text=True).stdout


def check(check_types: Callable[[Path], str], success: str, error: str, wrong: Path) -> None:
    assert success in check_types(PROGRAM), check_types(PROGRAM)
    for right, mistaken in [("error.after", 'error.after + "s"'), ("day.year", 'day.year + "s"')]:
        wrong.write_text(PROGRAM.read_text().replace(f"print({right}", f"print({mistaken}"))
        assert error in check_types(wrong), check_types(wrong)


def test_a_program_of_a_user_has_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    check(mypy, "Success", "Unsupported operand", tmp_path / "wrong.py")


def test_pyright_accepts_a_program_of_a_user(tmp_path: Path) -> None:
    pytest.importorskip("pyright")
    check(pyright, "0 errors", "reportOperatorIssue", tmp_path / "wrong.py")
