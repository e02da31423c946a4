"""Options that cannot be: the errors say which, and what it takes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import taskfork
import taskfork.blocking
import taskfork.server


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"foo": 1}, TypeError, "a client has no option 'foo': its options are name, interfaces, min_workers"),
        ({"timeout": "x"}, TypeError, "timeout is 'x': it takes seconds, 0 or more, or None"),
        ({"timeout": -1}, ValueError, "timeout is -1: it takes seconds, 0 or more, or None"),
        ({"timeout": math.nan}, ValueError, "timeout is nan: it takes seconds"),
        ({"grace": "x"}, TypeError, "grace is 'x'"),
        ({"max_workers": -1}, ValueError, "max_workers is -1: it takes an integer, 0 or more"),
        ({"max_workers": None}, TypeError, "max_workers is None"),
        ({"max_workers": 1.5}, TypeError, "max_workers is 1.5"),
        ({"min_workers": -1}, ValueError, "min_workers is -1: it takes an integer, 0 or more, or None"),
        ({"max_queue": 1 << 64}, ValueError, "max_queue is 18446744073709551616"),
        ({"interfaces": "X"}, ValueError, "interfaces is a list of at most 64 names"),
        ({"interfaces": [1]}, TypeError, r"interfaces is \[1\]: it takes names"),
        ({"interfaces": 5}, TypeError, "interfaces is 5: it takes names"),
        ({"name": 5}, TypeError, "name is 5: it takes a text"),
        ({"pickle": "yes"}, TypeError, "pickle is 'yes': it takes True or False"),
    ],
)
def test_options_of_a_client(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        taskfork.blocking.Client("unix:/nowhere", **options)


def test_numbers_of_all_kinds_are_options() -> None:
    numpy = pytest.importorskip("numpy")
    options = {"timeout": numpy.float32(1), "max_workers": numpy.int64(3), "connect_timeout": math.inf, "min_workers": 0}
    taskfork.blocking.Client("unix:/nowhere", **options).close()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"max_workers": -1}, ValueError, "max_workers is -1: it takes an integer from 1 on"),
        ({"shutdown_grace": "x"}, TypeError, "shutdown_grace is 'x': it takes a number of seconds"),
        ({"share_details": 1}, TypeError, "share_details is 1: it takes True or False"),
    ],
)
def test_options_of_a_server(options: dict[str, Any], error: type[Exception], said: str, tmp_path: Path) -> None:
    import signal

    before = signal.getsignal(signal.SIGALRM)
    try:
        with pytest.raises(error, match=said):
            taskfork.server.run([len], listen=f"unix:{tmp_path / 's'}", **options)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_without_an_event_loop_the_error_names_the_other_client() -> None:
    with pytest.raises(RuntimeError, match="no running event loop: .* use `taskfork.blocking.Client`"):
        taskfork.Client("unix:/nowhere")

