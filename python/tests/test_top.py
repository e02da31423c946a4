"""The full-screen view, in a real terminal."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import uuid
from typing import Any, Iterator

import pytest
from conftest import TASKFORK, is_gone, until

import taskfork.blocking


class Terminal:
    """A terminal of tmux that runs one program."""

    def __init__(self, command: list[str], width: int = 120, height: int = 30) -> None:
        if shutil.which("tmux") is None:
            pytest.fail("there is no tmux: install it to test the full-screen view")
        self._socket = f"taskfork-{uuid.uuid4().hex}"
        size = ["-x", str(width), "-y", str(height)]
        self._tmux("new-session", "-d", "-s", "top", *size, *command)

    def _tmux(self, *words: str) -> str:
        command = ["tmux", "-L", self._socket, "-f", "/dev/null", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout

    @property
    def screen(self) -> str:
        return self._tmux("capture-pane", "-p", "-t", "top")

    def type(self, key: str) -> None:
        self._tmux("send-keys", "-t", "top", key)

    def is_over(self) -> bool:
        return self._tmux("list-sessions") == ""

    def end(self) -> None:
        self._tmux("kill-server")


@pytest.fixture
def top(playground: Any) -> Iterator[tuple[Any, Terminal]]:
    server = playground("--name", "faults", "--spare-workers", "1")
    command = [str(TASKFORK), "top", server.address, "--interval", "100ms"]
    terminal = Terminal(command)
    yield server, terminal
    terminal.end()


def test_workers_are_shown_dismissed_and_killed(top: Any) -> None:
    server, terminal = top
    until("the first screen", lambda: "faults (process" in terminal.screen)
    with taskfork.blocking.Client(server.address, min_workers=0, max_workers=1) as client:
        with client.checkout() as checkout:
            busy = checkout.queue("spin", 60)
            until("the busy worker", lambda: " busy " in terminal.screen)
            until("its method", lambda: " spin " in terminal.screen)
            until("its processor time", lambda: bool(re.search(r"spin .* \d\d+%", terminal.screen)))
            assert "d dismiss it" in terminal.screen
            assert "memory" in terminal.screen
            terminal.type("k")
            until("the question", lambda: "any other key does not" in terminal.screen)
            terminal.type("n")
            until("what was not done", lambda: "was not killed" in terminal.screen)
            terminal.type("k")
            until("the question", lambda: "any other key does not" in terminal.screen)
            terminal.type("y")
            until("what was done", lambda: "was killed" in terminal.screen)
            with pytest.raises(taskfork.WorkerDied, match="was killed by SIGKILL"):
                busy.wait()
        pid = client.call("pid")
        until("the idle worker", lambda: " idle " in terminal.screen)
        until("the death in the head", lambda: "signaled 1" in terminal.screen)
        # The worker that has been there longest comes first.
        terminal.type("d")
        until("what was done", lambda: "leaves when its checkout is done" in terminal.screen)
        until("its end", lambda: is_gone(pid))
        until("the count", lambda: "dismissed 1" in terminal.screen)
    terminal.type("q")
    until("the end", terminal.is_over)


def test_a_server_that_goes_is_told(top: Any) -> None:
    server, terminal = top
    until("the first screen", lambda: "faults (process" in terminal.screen)
    server.stop()
    until("the message", lambda: "the server does not answer" in terminal.screen)
    terminal.type("C-c")
    until("the end", terminal.is_over)


def test_the_queue_is_shown(top: Any) -> None:
    server, terminal = top

    async def wait_in_line() -> None:
        async with taskfork.Client(server.address, min_workers=0, max_workers=1) as client:
            first = client.checkout()
            await first.call("nothing")
            others = [client.checkout() for _ in range(4)]
            first.release()
            await others[0].call("nothing")
            loop = asyncio.get_running_loop()

            def shows(text: str) -> None:
                until(f"{text!r} on the screen", lambda: text in " ".join(terminal.screen.split()))

            await loop.run_in_executor(None, shows, "3 wait for one")
            for checkout in others:
                await checkout.call("nothing")
                checkout.release()
            await loop.run_in_executor(None, shows, "0 wait for one")

    asyncio.run(wait_in_line())


def test_a_terminal_of_20_columns_and_5_lines_is_enough(playground: Any) -> None:
    server = playground("--spare-workers", "4")
    terminal = Terminal([str(TASKFORK), "top", server.address], 20, 5)
    try:
        until("the workers", lambda: terminal.screen.count(" spare") == 2)
        lines = terminal.screen.splitlines()
        assert [lines[1].split(), lines[4].split()] == [
            ["worker", "pid", "state"],
            ["?", "keys", "q", "quit"],
        ]
        terminal.type("End")
        until("the last worker", lambda: "\n4 " in terminal.screen)
        terminal.type("k")
        until("the question", lambda: "kill 4? y/n" in terminal.screen)
        terminal.type("y")
        until("what was done", lambda: "worker 4 was killed" in terminal.screen)
        terminal.type("q")
        until("the end", terminal.is_over)
    finally:
        terminal.end()
