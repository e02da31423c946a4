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


#: A worker that answers with what Perl makes of numbers and of bytes.
ODD_WORKER = r"""
use strict; use warnings; use JSON::PP;
open my $connection, '+<&=', $ENV{TASKFORK_FD} or die "no connection: $!";
my $json = JSON::PP->new->utf8->allow_nonref;
my $inf = 9**9**9;
my %answers = (
    largest => sub { 1.7976931348623157e308 },
    infinity => sub { [$inf, 1] },
    nothing => sub { -sin $inf },
    bytes => sub { join '', map chr, 0 .. 255 },
    length => sub { length $_[0] },
    boom => sub { die "ouch\n" },
    pid => sub { $$ },
);
my $text = '';
while (sysread $connection, $text, 65536, length $text) {
    my $call = eval { $json->decode($text) } or next;
    $text = '';
    next if $call->[0] eq 'dn';
    my (undef, undef, $method, @arguments) = @$call;
    my $value = eval { $answers{$method}->(@arguments) };
    syswrite $connection, $json->encode($@ ? ['er', {}, $@] : ['ok', {}, $value]);
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
    assert (failed.returncode, failed.stderr) == (1, "taskfork: ouch\n")
    died = call("exit", "3")
    assert died.returncode == 3
    assert died.stderr.startswith("taskfork: worker connection suddenly died")
    logged = call("count", "the fox the dog", "--log")
    assert json.loads(logged.stdout) == {"the": 2, "fox": 1, "dog": 1}
    assert "info  counted 3" in logged.stderr
    many = call("pid", "--repeat", "20", "--concurrency", "3")
    assert 1 < len(set(many.stdout.split())) <= 3


def test_numbers_and_bytes_of_a_worker_in_perl(start: Any, tmp_path: Path) -> None:
    worker = tmp_path / "odd.pl"
    worker.write_text(ODD_WORKER)
    serve = [str(TASKFORK), "serve", "--protocol", "json", "--listen", "ADDRESS", "--"]
    server = start([*serve, perl(), str(worker)])

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(TASKFORK), "call", server.address, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert json.loads(call("largest").stdout) == "inf"
    for method, word in [("infinity", "Inf"), ("nothing", "NaN")]:
        failed = call(method)
        assert failed.returncode == 1
        assert f"where `{word}` is no number of JSON: " in failed.stderr, failed.stderr
    assert json.loads(call("bytes").stdout) == "".join(map(chr, range(256)))
    assert json.loads(call("length", "caf\u00e9").stdout) == 4
    assert call("boom").stderr == "taskfork: ouch\n"
    assert "protocol" not in server.log
