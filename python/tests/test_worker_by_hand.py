"""A worker in Python whose server is played by hand: what it sends for calls that stream, and when."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Iterator, Optional

import pytest
from conftest import ROOT, WORKER

from taskfork import _wire


class Peer:
    """The server's side of a worker's connection."""

    def __init__(self, worker: str = "streams") -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            environment = {
                **os.environ,
                "PYTHONPATH": str(ROOT / "python" / "src"),
                "TASKFORK_FD": str(theirs.fileno()),
            }
            command = [sys.executable, str(WORKER), worker]
            self.program = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=environment, stderr=subprocess.PIPE, text=True
            )
        ours.settimeout(30)
        self._socket = ours
        self._decoder = _wire.Decoder()
        self._socket.sendall(_wire.PREAMBLE)
        self.send(_wire.HELLO, {"versions": [_wire.VERSION]})

    def send(self, *message: Any) -> None:
        self._socket.sendall(_wire.frame(_wire.encode(list(message))))

    def call(self, method: str, *args: Any, credit: Optional[int] = None, has_input: bool = False) -> None:
        meta = {**({} if credit is None else {"items": credit}), **({"input": True} if has_input else {})}
        self.send(_wire.CALL, meta, method, list(args))

    def item(self, call: int, value: Any) -> int:
        """Sends an item of an input. Returns its cost."""
        data, _, cost = _wire.Encoder().item(call, value)
        self._socket.sendall(data)
        return cost

    def receive(self) -> tuple[list[Any], int]:
        """The next message, and the length of its body."""
        while (message := self._decoder.next()) is None:
            data = self._socket.recv(1 << 16)
            assert data, "the worker has ended"
            self._decoder.feed(data)
        return message, self._decoder.length

    def expect_no_message(self) -> None:
        """A worker that waits for credit sends nothing, however long one waits."""
        self._socket.settimeout(0.1)
        with pytest.raises((TimeoutError, socket.timeout)):
            self._socket.recv(1 << 16)
        self._socket.settimeout(30)

    def wait_for_bytes(self) -> None:
        self._socket.recv(1, socket.MSG_PEEK)

    def end(self) -> tuple[int, str]:
        """Closes the connection; the worker's status and what it wrote to standard error."""
        self._socket.shutdown(socket.SHUT_WR)
        _, said = self.program.communicate(timeout=30)
        return self.program.returncode, said

    def close(self) -> None:
        self._socket.close()
        self.program.kill()
        self.program.communicate()


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    hello, _ = made.receive()
    assert hello[0] == _wire.HELLO and hello[1]["items"] is True
    yield made
    made.close()


@pytest.fixture
def taker() -> Iterator[Peer]:
    """A worker whose methods take inputs."""
    made = Peer("inputs")
    hello, _ = made.receive()
    assert hello[0] == _wire.HELLO and hello[1]["input"] is True
    yield made
    made.close()


#: How much credit a worker gives.
WINDOW = 65_536


@pytest.mark.parametrize("method", ["total", "async_total"])
def test_a_worker_gives_credit_as_it_takes_items(taker: Peer, method: str) -> None:
    taker.call(method, 1, has_input=True)
    assert taker.receive()[0] == [_wire.CREDIT, {}, 1, WINDOW]
    used = 0
    for number in range(10):
        used += taker.item(1, number)
    # Less than half of it is used.
    taker.expect_no_message()
    count = 10
    while used < WINDOW:
        used += taker.item(1, 0)
        count += 1
    message = taker.receive()[0]
    assert message[:3] == [_wire.CREDIT, {}, 1] and WINDOW + WINDOW // 2 <= message[3] <= WINDOW + used
    taker.item(1, 5)
    taker.send(_wire.INPUT_END, {}, 1)
    while (message := taker.receive()[0])[0] == _wire.CREDIT:
        pass
    assert message == [_wire.OK, {"call": 1}, 1 + sum(range(10)) + 5]
    # What comes too late changes nothing.
    taker.item(1, 7)
    taker.send(_wire.INPUT_END, {}, 1)
    taker.call("echo", "on")
    assert taker.receive()[0] == [_wire.OK, {"call": 2}, "on"]
    assert taker.end() == (0, "")


@pytest.mark.parametrize("method", ["watchful", "watchful_coroutine"])
def test_a_worker_that_waits_for_an_item_is_interrupted(taker: Peer, method: str) -> None:
    taker.call(method, has_input=True)
    assert taker.receive()[0][0] == _wire.CREDIT
    taker.item(1, 1)
    taker.expect_no_message()
    taker.program.send_signal(signal.SIGALRM)
    message = taker.receive()[0]
    assert message[0] == _wire.ERROR and message[2]["message"] == "DeadlineExceeded: the call's time is over"
    taker.call("seen")
    assert taker.receive()[0][2] in ("the deadline", "cancelled")
    taker.call(method, has_input=True)
    assert taker.receive()[0][0] == _wire.CREDIT
    taker.send(_wire.CANCEL, {}, 7)
    taker.expect_no_message()
    taker.send(_wire.CANCEL, {}, 3)
    message = taker.receive()[0]
    assert message[2]["message"] == "InputClosed: the caller no longer waits for the call"
    taker.call(method, has_input=True)
    assert taker.receive()[0][0] == _wire.CREDIT
    taker.send(_wire.INPUT_END, {"error": "the disk is gone"}, 4)
    assert taker.receive()[0][2]["message"] == "InputFailed: the disk is gone"


@pytest.mark.parametrize("fault", ["cost", "credit", "negative"])
def test_an_input_that_breaks_the_protocol_ends_the_worker(taker: Peer, fault: str) -> None:
    costs = {"cost": [256], "negative": [-1], "credit": [1 << 62, 1 << 20]}[fault]
    taker.call("doubled", credit=1, has_input=True)
    assert taker.receive()[0][0] == _wire.CREDIT
    # Behind its first item the worker waits for credit, and takes no others.
    taker.item(1, 1)
    assert taker.receive()[0][2] == 2
    taker.item(1, 2)
    for cost in costs:
        taker.send(_wire.ITEM, {"call": 1, "cost": cost}, 5)
    status, said = taker.end()
    assert status == 1 and "WireError" in said, said


def test_what_belongs_to_another_call_is_no_part_of_an_input(taker: Peer) -> None:
    taker.call("total", 0, has_input=True)
    assert taker.receive()[0][0] == _wire.CREDIT
    taker.item(7, 100)
    taker.send(_wire.INPUT_END, {}, 7)
    taker.item(1, 1)
    taker.send(_wire.INPUT_END, {}, 1)
    assert taker.receive()[0] == [_wire.OK, {"call": 1}, 1]


def test_the_end_of_the_connection_ends_a_worker_that_waits_for_an_item(taker: Peer) -> None:
    taker.call("watchful", has_input=True)
    assert taker.receive()[0][0] == _wire.CREDIT
    assert taker.end() == (0, "")


def test_a_worker_follows_the_credit_to_the_byte(peer: Peer) -> None:
    peer.call("numbers", 10, credit=1)
    item, length = peer.receive()
    assert item == [_wire.ITEM, {"cost": length + 256, "call": 1}, 0]
    cost = item[1]["cost"]
    peer.send(_wire.CREDIT, {}, 1, cost)
    # Credit of another call changes nothing.
    peer.send(_wire.CREDIT, {}, 7, 1 << 62)
    peer.expect_no_message()
    peer.send(_wire.CREDIT, {}, 1, cost + 1)
    assert peer.receive()[0][2] == 1
    peer.expect_no_message()
    peer.send(_wire.CREDIT, {}, 1, (1 << 64) - 1)
    assert [peer.receive()[0][2] for _ in range(8)] == list(range(2, 10))
    assert peer.receive()[0] == [_wire.OK, {"call": 1}, 10]
    # What comes too late changes nothing.
    peer.send(_wire.CREDIT, {}, 1, (1 << 64) - 1)
    peer.send(_wire.CANCEL, {}, 1)
    peer.call("echo", "on")
    assert peer.receive()[0] == [_wire.OK, {"call": 2}, "on"]
    assert peer.end() == (0, "")


def test_a_cancelled_generator_is_closed_and_the_call_answered(peer: Peer) -> None:
    peer.call("watchful", credit=1)
    assert peer.receive()[0][0] == _wire.ITEM
    peer.send(_wire.CANCEL, {}, 7)
    peer.expect_no_message()
    peer.send(_wire.CANCEL, {}, 1)
    assert peer.receive()[0] == [_wire.OK, {"call": 1}, None]
    peer.call("seen")
    assert peer.receive()[0] == [_wire.OK, {"call": 2}, "the end"]


def test_a_generator_that_waits_for_credit_learns_of_the_deadline(peer: Peer) -> None:
    peer.call("watchful", credit=1)
    assert peer.receive()[0][0] == _wire.ITEM
    peer.program.send_signal(signal.SIGALRM)
    # Its last item needs credit too.
    peer.expect_no_message()
    peer.send(_wire.CREDIT, {}, 1, 1 << 62)
    assert peer.receive()[0][2] == b"last"
    answer = peer.receive()[0]
    assert answer[0] == _wire.ERROR and answer[2]["message"] == "DeadlineExceeded: the call's time is over"
    peer.call("seen")
    assert peer.receive()[0] == [_wire.OK, {"call": 2}, "the deadline"]


@pytest.mark.parametrize("message", [[_wire.CALL, {}, "pid", []], [_wire.DONE, {}], [_wire.CREDIT, {}, 1, -1]])
def test_a_message_that_may_not_come_in_a_stream_ends_the_worker(peer: Peer, message: list[Any]) -> None:
    peer.call("numbers", 10, credit=1)
    assert peer.receive()[0][0] == _wire.ITEM
    peer.send(*message)
    status, said = peer.end()
    assert status == 1 and "WireError" in said, said


def test_the_end_of_the_connection_ends_a_worker_that_waits_for_credit(peer: Peer) -> None:
    peer.call("numbers", 10, credit=1)
    assert peer.receive()[0][0] == _wire.ITEM
    assert peer.end() == (0, "")


def test_a_child_takes_no_credit_of_its_worker(peer: Peer) -> None:
    peer.call("child", credit=1)
    assert peer.receive()[0][2] == peer.program.pid
    # The credit is used up: the child would wait for more, and the worker for the child.
    peer.expect_no_message()
    peer.send(_wire.CREDIT, {}, 1, 1 << 62)
    assert peer.receive()[0][2] == peer.program.pid
    assert peer.receive()[0][0] == _wire.OK


def test_a_long_item_is_sent_whole_though_the_deadline_passes(peer: Peer) -> None:
    # More than the socket takes.
    peer.call("watchful", 8 << 20, credit=1 << 62)
    peer.wait_for_bytes()
    peer.program.send_signal(signal.SIGALRM)
    items = []
    while (message := peer.receive()[0])[0] == _wire.ITEM:
        items.append(message[2])
    assert [len(item) for item in items[:-1]] == [8 << 20] * (len(items) - 1)
    assert items[-1] == b"last"
    assert message[2]["message"] == "DeadlineExceeded: the call's time is over"
    assert message[2]["timed_out"] > 0


def test_reports_are_not_sent_more_often_than_20_times_a_second(peer: Peer, tmp_path: Any) -> None:
    begun = time.monotonic()
    peer.call("many_reports", 100_000, str(tmp_path / "go on"))
    reports = [peer.receive()[0]]
    while reports[-1][1]["progress"][1] is not None:
        reports.append(peer.receive()[0])
    assert len(reports) <= (time.monotonic() - begun) / 0.05 + 1
    done = [report[1]["progress"][0] for report in reports]
    assert done == sorted(done)
    (tmp_path / "go on").touch()
    assert peer.receive()[0] == [_wire.OK, {"call": 1}, "done"]


def test_no_report_comes_behind_the_answer(peer: Peer, tmp_path: Any) -> None:
    (tmp_path / "go on").touch()
    for number in range(1, 7):
        peer.call("many_reports", 50, str(tmp_path / "go on"))
        while (message := peer.receive()[0])[0] == _wire.TELEMETRY:
            pass
        assert message == [_wire.OK, {"call": number}, "done"]
        if number % 2 == 0:
            # A report that was due after the answer would come now.
            peer.expect_no_message()
