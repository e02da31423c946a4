"""The package as it is installed, with the command beside it, and how it is built."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import tarfile
import types
from pathlib import Path
from typing import Any, Optional

import pytest
from conftest import ROOT, WORKER


@pytest.fixture(scope="module")
def command() -> str:
    files = importlib.metadata.distribution("taskfork").files or []
    found = [str(Path(file.locate()).resolve()) for file in files if file.parts[-2:] == ("bin", "taskfork")]
    assert len(found) == 1, "the installed package has no command: install it again"
    return found[0]


def test_the_installed_command_is_a_program_of_the_same_version(command: str) -> None:
    assert Path(command).read_bytes()[:4] == b"\x7fELF"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"taskfork {importlib.metadata.version('taskfork')}\n"


def test_the_installed_command_serves_and_calls(command: str, start: Any) -> None:
    server = start([command, "serve", "--listen", "ADDRESS", "--", sys.executable, str(WORKER), "functions"])
    done = subprocess.run([command, "call", server.address, "add", "1", "2"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


class Backend:
    """The build backend, with a maturin and a cargo that only say what they were asked for."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.packed: list[tuple[str, Optional[bytes]]] = []
        self._cargo_log = folder / "cargo.log"
        program, cargo = folder / "built", folder / "cargo"
        program.write_bytes(b"a program")
        said = json.dumps({"executable": str(program)})
        cargo.write_text(f"#!/bin/sh\necho \"$@\" >> {self._cargo_log}\necho '{{\"reason\": 1}}'\necho '{said}'\n")
        cargo.chmod(0o755)
        monkeypatch.setenv("CARGO", str(cargo))
        monkeypatch.delenv("TASKFORK_COMMAND", raising=False)
        # It would not know these bytes.
        monkeypatch.setenv("PATH", str(folder))
        maturin: Any = types.ModuleType("maturin")
        for name in ("build_wheel", "build_editable", "build_sdist"):
            setattr(maturin, name, self._hook(name))
        for name in ("prepare_metadata_for_build_wheel", "prepare_metadata_for_build_editable"):
            setattr(maturin, name, self._hook(name))
        for kind in ("wheel", "editable", "sdist"):
            setattr(maturin, f"get_requires_for_build_{kind}", lambda config_settings=None: [])
        monkeypatch.setitem(sys.modules, "maturin", maturin)
        source = ROOT / "python" / "packaging" / "taskfork_build.py"
        spec = importlib.util.spec_from_file_location("taskfork_build", source)
        assert spec is not None and spec.loader is not None
        self.module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.module._DATA = folder / "taskfork.data"

    def _hook(self, name: str) -> Any:
        def hook(*_: Any) -> str:
            scripts = self.module._DATA / "scripts"
            assert scripts.is_dir()
            command = scripts / "taskfork"
            self.packed.append((name, command.read_bytes() if command.exists() else None))
            return f"{name}.whl"

        return hook

    @property
    def cargo(self) -> list[str]:
        return self._cargo_log.read_text().splitlines() if self._cargo_log.exists() else []


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    return Backend(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("settings", "profile"),
    [
        (None, "release"),
        ({}, "release"),
        ({"build-args": "--profile dev"}, "dev"),
        ({"build-args": "--locked --profile=dist"}, "dist"),
        ({"build-args": ["--locked", "--profile dev"]}, "dev"),
    ],
)
def test_the_command_is_built_in_the_profile_of_the_native_module(
    backend: Backend, settings: Optional[dict[str, Any]], profile: str
) -> None:
    assert backend.module.build_wheel("somewhere", settings) == "build_wheel.whl"
    assert backend.packed == [("build_wheel", b"a program")]
    assert backend.cargo == [
        f"build --package taskfork-cli --bin taskfork --profile {profile} --message-format json-render-diagnostics"
    ]
    # Nothing is left in the checkout.
    assert not backend.module._DATA.exists()


def test_a_command_that_is_built_already_is_taken(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = tmp_path / "ready"
    ready.write_bytes(b"another program")
    monkeypatch.setenv("TASKFORK_COMMAND", str(ready))
    backend.module.prepare_metadata_for_build_wheel("somewhere")
    backend.module.build_editable("somewhere", None)
    assert backend.packed == [("prepare_metadata_for_build_wheel", None), ("build_editable", b"another program")]
    assert backend.cargo == []


def test_no_module_is_built_for_an_interpreter_without_its_lock(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.module.get_requires_for_build_wheel() == backend.module.get_requires_for_build_editable() == []
    monkeypatch.setattr(sys, "abiflags", "t")
    for hook in (backend.module.get_requires_for_build_wheel, backend.module.get_requires_for_build_editable):
        with pytest.raises(RuntimeError, match="cannot be built for a free-threaded build of Python"):
            hook()


def test_what_is_missing_for_a_build_is_named(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARGO", str(tmp_path / "nowhere"))
    with pytest.raises(RuntimeError, match="nowhere is not there: building from source needs Rust"):
        backend.module.build_wheel("somewhere", None)
    monkeypatch.setenv("TASKFORK_COMMAND", str(tmp_path / "no command"))
    with pytest.raises(RuntimeError, match="TASKFORK_COMMAND is .*no command': there is no such file"):
        backend.module.build_wheel("somewhere", None)
    assert backend.packed == [] and not backend.module._DATA.exists()


def test_a_program_that_cannot_be_stripped_is_taken_as_it_is(backend: Backend, tmp_path: Path) -> None:
    for script in ("#!/bin/sh\nexit 1\n", "#!/nowhere/sh\n"):
        strip = tmp_path / "strip"
        strip.write_text(script)
        strip.chmod(0o755)
        backend.module.build_wheel("somewhere", None)
    assert backend.packed == [("build_wheel", b"a program")] * 2


def test_a_source_distribution_has_what_the_command_needs(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    if shutil.which("cargo") is None:
        pytest.fail("cargo is not there")
    # What maturin packs: the native module, and what that needs.
    of_module = backend.module._needed("taskfork-python")
    lines = (ROOT / "Cargo.toml").read_text().splitlines(keepends=True)
    manifest = "".join(line for line in lines if not line.startswith("default-members"))
    before, _, rest = manifest.partition("members = [")
    members = ", ".join(f'"{folder}"' for folder in of_module)
    data = f"{before}members = [{members}]{rest.partition(']')[2]}".encode()
    archive = tmp_path / "taskfork-1.tar.gz"
    with tarfile.open(archive, "w:gz", dereference=True) as made:
        for name, content in [("Cargo.toml", data), ("pyproject.toml", b"[project]\n")]:
            entry = tarfile.TarInfo(f"taskfork-1/{name}")
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
        for folder in of_module:
            made.add(ROOT / folder, f"taskfork-1/{folder}")
    backend.module._add_sources(archive)
    with tarfile.open(archive) as made:
        assert all(member.isfile() or member.isdir() for member in made.getmembers())
        made.extractall(tmp_path, filter="data") if hasattr(tarfile, "data_filter") else made.extractall(tmp_path)
    root = tmp_path / "taskfork-1"
    assert (root / "packaging" / "taskfork_build.py").is_file() and (root / "pyproject.toml").is_file()
    assert (root / "crates" / "taskfork-cli" / "LICENSE-MIT").read_bytes() == (ROOT / "LICENSE-MIT").read_bytes()
    options = ["--offline", "--no-deps", "--format-version", "1"]
    done = subprocess.run(["cargo", "metadata", *options], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {package["name"]: package for package in json.loads(done.stdout)["packages"]}
    assert {"taskfork-cli", "taskfork-python"} <= set(found)
    for package in found.values():
        for needed in package["dependencies"]:
            assert not needed.get("path") or needed["name"] in found, f"{package['name']} needs {needed['name']}"
