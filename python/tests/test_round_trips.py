"""Values of all kinds to peers in other languages and back. ``TASKFORK_EXAMPLES`` is how many each test tries, at random; without it they
are few, and always the same."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import round_trips
from conftest import ROOT, TASKFORK
from hypothesis import HealthCheck, given, settings
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.strategies import SearchStrategy
from round_trips import JSON_VALUES, VALUES, Node, Perl, PerlClient, Refused, arrived, same

import taskfork
import taskfork.blocking

EXAMPLES = os.environ.get("TASKFORK_EXAMPLES")

#: A client in Perl: it sends each line of its input, a value in JSON, to a method `echo`, and prints what comes back.
PERL_CLIENT = r"""
use strict; use warnings; use IO::Socket::UNIX; use JSON::PP;
my $socket = IO::Socket::UNIX->new(Peer => shift) or die "cannot connect: $!";
my $json = JSON::PP->new->utf8->canonical->allow_nonref;
$| = 1;
while (my $line = <STDIN>) {
    my $call = $json->encode(['do', {}, 'echo', $json->decode($line)->[0]]);
    print $socket $call; $socket->flush;
    my ($text, $answer) = ('');
    until ($answer = eval { $json->decode($text) }) {
        sysread $socket, $text, 65536, length $text or die "the worker has ended\n";
    }
    print $json->encode($answer), "\n";
}
"""


@pytest.fixture(autouse=True)
def hypothesis_has_its_own_folder(tmp_path: Path) -> None:
    set_hypothesis_home_dir(tmp_path / "hypothesis")


def check(values: SearchStrategy[Any], one: Callable[[Any], None]) -> None:
    """Runs a test with values."""

    @settings(
        max_examples=int(EXAMPLES or 25),
        derandomize=EXAMPLES is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(values)
    def run(value: Any) -> None:
        one(value)

    run()


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"there is no {name}: install it to test values with it")
    return path


def check_echo(
    client: taskfork.blocking.Client, expect: Callable[[Any], Any], *values: SearchStrategy[Any], has_order: bool
) -> None:
    """Checks what a worker's method `echo` returns."""
    with client.checkout() as checkout:

        def one(value: Any) -> None:
            try:
                expected = expect(value)
            except Refused as refused:
                with pytest.raises(taskfork.CallError, match=str(refused)):
                    checkout.call("echo", value)
            else:
                found = checkout.call("echo", value)
                assert same(found, expected, has_order), (found, expected)

        for each in values:
            check(each, one)


@pytest.mark.parametrize("worker", ["playground", "own_server", "python_server"])
def test_workers_that_speak_the_native_protocol(request: Any, worker: str) -> None:
    server = request.getfixturevalue(worker)()
    with taskfork.blocking.Client(server.address, reuse_after_error=True) as client:
        check_echo(client, arrived, VALUES, has_order=True)


@pytest.mark.parametrize("language", ["node", "perl"])
def test_workers_that_speak_json(start: Any, language: str) -> None:
    folder = ROOT / "examples" / f"{language}_worker"
    worker = [program(language), str(folder / {"node": "worker.mjs", "perl": "worker.pl"}[language])]
    server = start([str(TASKFORK), "serve", "--protocol", "json", "--listen", "ADDRESS", "--", *worker])
    peer = {"node": Node, "perl": Perl}[language]()
    with taskfork.blocking.Client(server.address, reuse_after_error=True) as client:
        # Most of all values are an error there.
        check_echo(client, lambda value: peer.back(arrived(value)), VALUES, JSON_VALUES, has_order=False)


@contextlib.contextmanager
def perl_client(address: str) -> Iterator[Callable[[Any], Any]]:
    """A client in Perl: a function that sends a value to the method `echo`, and returns the answer."""
    command = [program("perl"), "-e", PERL_CLIENT, address.split(":", 1)[1]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:

        def echo(value: Any) -> Any:
            assert client.stdin is not None and client.stdout is not None
            client.stdin.write(json.dumps([value]).encode() + b"\n")
            client.stdin.flush()
            return json.loads(client.stdout.readline())

        try:
            yield echo
        finally:
            # Otherwise the server would wait for it.
            client.kill()


@pytest.mark.parametrize("worker", ["playground", "own_server", "python_server"])
def test_a_client_in_perl(request: Any, worker: str) -> None:
    with perl_client(request.getfixturevalue(worker)().address) as echo:

        def one(value: Any) -> None:
            kind, meta, found = echo(value)
            try:
                expected = PerlClient().back(arrived(value))
            except Refused as refused:
                assert kind == "er" and str(refused) in found
            else:
                assert (kind, meta) == ("ok", {}) and same(found, expected, False), (kind, found, expected)

        check(JSON_VALUES, one)


def test_the_differences_are_those_of_the_documents() -> None:
    for number in (0.1, 1.0, 123.456, 1e15, 1e16, 1.5e16, 1e21, 1e-5, 1.5e-6, -2.5e-7, 1e300):
        assert float(round_trips.rust_number(number)) == number
    assert Node().back([2**53 + 1, 1.0, -0.0, 1e21, b"\xe9"]) == [2**53, 1, 0, 1e21, "\u00e9"]
    assert Node().back(2**64 - 1) == "18446744073709552000"
    assert same([0.3, 2**64 - 1, 1, "1e+300"], Perl().back([0.1 + 0.2, 2**64 - 1, 1.0, 1e300]), False)
    assert not any(same([found], Perl().back([0.1]), False) for found in (0.11, "x", True, None))
    for value, said in [({"1": 0, 1: 0}, "two keys"), ({(1,): 0}, "string"), (float("nan"), "no number in JSON")]:
        with pytest.raises(Refused, match=said):
            Node().back(arrived(value))
    for wrong in (2**64, "\ud800", {"\udfff": 1}, [(2**70,)]):
        with pytest.raises(Refused):
            arrived(wrong)
    assert same([float("nan"), {1: 2}], [float("nan"), {1: 2}], True)
    assert not any(same(*pair, True) for pair in [(0.0, -0.0), (1, 1.0), (True, 1), ({1: 2, 3: 4}, {3: 4, 1: 2}), ([1], [1, 2])])
