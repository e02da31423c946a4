"""Programs in Perl that know nothing of this project, on either side."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Iterator

import pytest
from conftest import ROOT, TASKFORK, until

CLIENT = r"""
use strict; use warnings; use IO::Socket::UNIX; use JSON::PP;
my $socket = IO::Socket::UNIX->new(Peer => shift) or die "cannot connect: $!";
my $json = JSON::PP->new->utf8->canonical;
sub call {
    print $socket $json->encode(['do', {}, @_]); $socket->flush;
    my ($text, $answer) = ('');
    until ($answer = eval { $json->decode($text) }) {
        sysread $socket, $text, 10, length $text or die "worker connection suddenly died\n";
    }
    return $answer;
}
sub show { print $json->encode(call(@_)), "\n" }
show('echo', { deep => [[[]]], text => "caf\x{e9} \x{1f600}" });
show('add', 2, 3);
show('boom', "ouch\n");
show('nothing');
show('args', 1, 'two', undef, JSON::PP::true);
my $before = call('checkouts')->[2];
print $socket '["dn",{}]'; $socket->flush;
print call('checkouts')->[2] - $before, "\n";
show('exit', 1);
"""

SERVER = r"""
use strict; use warnings; use IO::Socket::UNIX; use Fcntl;
my ($path, $worker) = @ARGV;
my $listener = IO::Socket::UNIX->new(Local => $path, Listen => 10) or die "cannot listen: $!";
$SIG{CHLD} = 'IGNORE';
$^F = 100;
while (my $connection = $listener->accept) {
    unless (fork) {
        close $listener;
        fcntl $connection, F_SETFD, 0;
        $ENV{TASKFORK_FD} = fileno $connection;
        exec $^X, $worker;
    }
    close $connection;
}
"""


def perl() -> str:
    path = shutil.which("perl")
    if path is None:
        pytest.fail("there is no perl: install it to test the protocol of Perl programs")
    return path


def test_a_perl_client_calls_a_server_in_rust(playground: Any) -> None:
    server = playground()
    path = server.address.split(":", 1)[1]
    done = subprocess.run(
        [perl(), "-e", CLIENT, path], capture_output=True, timeout=30, check=False
    )
    lines = done.stdout.decode().splitlines()
    answers = [json.loads(line) for line in lines]
    assert answers == [
        ["ok", {}, {"deep": [[[]]], "text": "café 😀"}],
        ["ok", {}, 5],
        ["er", {}, "ouch\n"],
        ["ok", {}, None],
        ["ok", {}, [1, "two", None, True]],
        1,
    ]
    assert done.stderr == b"worker connection suddenly died\n"


@pytest.fixture
def perl_server(tmp_path: Path) -> Iterator[str]:
    """A server in Perl that forks a worker in Perl for each connection."""
    path = tmp_path / "perl"
    worker = ROOT / "examples" / "perl_worker" / "worker.pl"
    program = subprocess.Popen([perl(), "-e", SERVER, str(path), str(worker)])
    until("the server", path.exists)
    yield f"unix:{path}"
    program.terminate()
    program.wait()


def test_the_client_in_rust_calls_a_server_in_perl(perl_server: str) -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(TASKFORK), "call", "--protocol", "json", perl_server, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert json.loads(call("add", "2", "3").stdout) == 5
    assert json.loads(call("echo", '{"text": "café 😀"}').stdout) == {"text": "café 😀"}
    failed = call("boom", "ouch")
    assert (failed.returncode, failed.stderr) == (1, "taskfork: ouch\n\n")
    died = call("exit", "3")
    assert died.returncode == 3
    assert died.stderr.startswith("taskfork: worker connection suddenly died")
    logged = call("count", "the fox the dog", "--log")
    assert json.loads(logged.stdout) == {"the": 2, "fox": 1, "dog": 1}
    assert "info  counted 3" in logged.stderr
    many = call("pid", "--repeat", "20", "--concurrency", "3")
    assert 1 < len(set(many.stdout.split())) <= 3
