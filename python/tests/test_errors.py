"""What an exception of a worker in Python has with it: notes, and the exceptions of a group."""

from __future__ import annotations

import pickle
import sys
import traceback
from typing import Any

import pytest

import taskfork
import taskfork.blocking

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes, and there are no groups")


@pytest.fixture(params=["own_server", "python_server"])
def server(request: Any) -> Any:
    return request.getfixturevalue(request.param)()


def error_of(server: Any, *call: Any) -> taskfork.InterfaceError:
    with taskfork.blocking.Client(server.address) as client:
        with pytest.raises(taskfork.InterfaceError) as caught:
            client.call(*call)
    return caught.value


def test_notes_arrive(server: Any) -> None:
    error = error_of(server, "raise_noted", 2)
    assert str(error) == "ValueError: row 7 is wrong"
    assert error.notes == ["note 0", "note 1"]
    # The stack is behind them.
    assert error.__notes__[:2] == error.notes and error.__notes__[2].startswith("in the worker:\n")
    text = "".join(traceback.format_exception(error))
    assert "note 0\nnote 1\nin the worker:\n" in text and "in raise_noted" in text
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.notes, copy.__notes__) == (error.notes, error.__notes__)


def test_only_the_first_notes_and_only_texts_arrive(server: Any) -> None:
    assert error_of(server, "raise_noted", 100).notes == [f"note {number}" for number in range(64)]
    assert error_of(server, "raise_noted", 0).notes == ["of a.csv \\udc80"]
    assert error_of(server, "boom", "plain").notes == []


def test_the_exceptions_of_a_group_are_in_the_stack(server: Any) -> None:
    error = error_of(server, "raise_group")
    assert str(error) == "ExceptionGroup: two at once (2 sub-exceptions)"
    lines = (error.stack or "").splitlines()
    assert "in raise_group" in lines[0]
    tree = lines[lines.index("1. ValueError: inside") :]
    # Each with where it was raised, and with its notes.
    assert any("in boom" in line for line in tree[1:])
    assert tree[-3:] == ["2. ExceptionGroup: another (1 sub-exception)", "   1. KeyError: 'key'", "      of the second"]


def test_a_large_group_is_cut(server: Any) -> None:
    lines = (error_of(server, "raise_large_group").stack or "").splitlines()
    assert 100 < len(lines) <= 600
