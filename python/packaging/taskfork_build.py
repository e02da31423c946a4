"""The build backend of the package: maturin, with the command `taskfork` beside the native module.

maturin makes a wheel of one crate. The command is a program of another one, so it is built here and put where maturin takes
scripts from. The variable ``TASKFORK_COMMAND`` names a program that has been built already.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, Iterator, Optional

import maturin

_PYTHON = Path(__file__).resolve().parents[1]
#: A source distribution has all in one folder.
_WORKSPACE = _PYTHON if (_PYTHON / "Cargo.toml").exists() else _PYTHON.parent

#: `tool.maturin.data` in pyproject.toml.
_DATA = _PYTHON / "taskfork.data"

get_requires_for_build_sdist = maturin.get_requires_for_build_sdist


def get_requires_for_build_wheel(config_settings: Optional[dict[str, Any]] = None) -> list[str]:
    _check_interpreter()
    return list(maturin.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: Optional[dict[str, Any]] = None) -> list[str]:
    _check_interpreter()
    return list(maturin.get_requires_for_build_editable(config_settings))


def _check_interpreter() -> None:
    """Before anything is built, which takes minutes."""
    if "t" in sys.abiflags:
        raise RuntimeError(
            "taskfork cannot be built for a free-threaded build of Python, in which it does not work: use the ordinary build of the "
            "same version, such as python3.13 instead of python3.13t"
        )


def prepare_metadata_for_build_wheel(directory: str, config_settings: Optional[dict[str, Any]] = None) -> str:
    with _scripts():
        return str(maturin.prepare_metadata_for_build_wheel(directory, config_settings))


def prepare_metadata_for_build_editable(directory: str, config_settings: Optional[dict[str, Any]] = None) -> str:
    with _scripts():
        return str(maturin.prepare_metadata_for_build_editable(directory, config_settings))


def build_wheel(
    directory: str, config_settings: Optional[dict[str, Any]] = None, metadata_directory: Optional[str] = None
) -> str:
    with _command(config_settings):
        return str(maturin.build_wheel(directory, config_settings, metadata_directory))


def build_editable(
    directory: str, config_settings: Optional[dict[str, Any]] = None, metadata_directory: Optional[str] = None
) -> str:
    with _command(config_settings):
        return str(maturin.build_editable(directory, config_settings, metadata_directory))


def build_sdist(directory: str, config_settings: Optional[dict[str, Any]] = None) -> str:
    with _scripts():
        name = str(maturin.build_sdist(directory, config_settings))
    _add_sources(Path(directory) / name)
    return name


def _add_sources(archive: Path) -> None:
    """Adds this file, and the sources of the command, to a source distribution."""
    changed = archive.with_suffix(".new")
    with tarfile.open(archive) as old, tarfile.open(changed, "w:gz") as new:
        members = old.getmembers()
        root = members[0].name.split("/")[0]
        # maturin has added those of the native module.
        present = {member.name for member in members}
        folders = [folder for folder in _needed("taskfork-cli") if f"{root}/{folder}/Cargo.toml" not in present]
        for member in members:
            content = old.extractfile(member)
            if member.name == f"{root}/Cargo.toml" and content is not None:
                manifest = content.read().decode()
                crates = "".join(f'"{folder}", ' for folder in folders)
                data = manifest.replace("members = [", f"members = [{crates}", 1).encode()
                member.size, content = len(data), io.BytesIO(data)
            new.addfile(member, content)
        new.add(Path(__file__), f"{root}/packaging/{Path(__file__).name}")
        # A link would lead out of what is unpacked.
        new.dereference = True
        for folder in folders:
            new.add(_WORKSPACE / folder, f"{root}/{folder}")
    changed.replace(archive)


def _needed(name: str) -> list[str]:
    """The folders, in the workspace, of a package and of the others there that it depends on. Those of its tests belong to
    them: cargo reads their manifests too."""
    said = _cargo(["metadata", "--offline", "--no-deps", "--format-version", "1"])
    packages = {package["name"]: package for package in json.loads(said)["packages"]}
    needed: dict[str, str] = {}
    left = [name]
    while left:
        package = packages[left.pop()]
        if package["name"] not in needed:
            folder = Path(package["manifest_path"]).resolve().parent
            needed[package["name"]] = folder.relative_to(_WORKSPACE).as_posix()
            left += [each["name"] for each in package["dependencies"] if each.get("path") and each["name"] in packages]
    return sorted(needed.values())


@contextlib.contextmanager
def _command(config_settings: Optional[dict[str, Any]]) -> Iterator[None]:
    """Has the command where maturin looks for scripts."""
    program = os.environ.get("TASKFORK_COMMAND")
    if program and not os.path.isfile(program):
        raise RuntimeError(f"TASKFORK_COMMAND is {program!r}: there is no such file. Name a program `taskfork` that is built already")
    program = program or _built(_profile(config_settings))
    with _scripts() as scripts:
        copy = scripts / "taskfork"
        shutil.copy(program, copy)
        # What only debuggers read is most of the program. The linker that Rust needs comes with `strip`.
        try:
            subprocess.run(["strip", str(copy)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            # A larger program runs as well.
            print(f"the command is not stripped: {error}", file=sys.stderr)
        yield


@contextlib.contextmanager
def _scripts() -> Iterator[Path]:
    """The folder of scripts, which maturin wants to be there whatever it does."""
    scripts = _DATA / "scripts"
    scripts.mkdir(parents=True, exist_ok=True)
    try:
        yield scripts
    finally:
        shutil.rmtree(_DATA, ignore_errors=True)


def _profile(config_settings: Optional[dict[str, Any]]) -> str:
    """The profile in which maturin builds the native module."""
    given: Any = (config_settings or {}).get("build-args", "")
    words = shlex.split(given) if isinstance(given, str) else [word for each in given for word in shlex.split(each)]
    for number, word in enumerate(words):
        if word == "--profile" and number + 1 < len(words):
            return words[number + 1]
        if word.startswith("--profile="):
            return word.partition("=")[2]
    return "release"


def _built(profile: str) -> str:
    """Builds the command, and returns its path."""
    options = ["--package", "taskfork-cli", "--bin", "taskfork", "--profile", profile]
    said = _cargo(["build", *options, "--message-format", "json-render-diagnostics"])
    made = [json.loads(line) for line in said.splitlines() if line.startswith(b"{")]
    programs = [str(each["executable"]) for each in made if each.get("executable")]
    if not programs:
        raise RuntimeError("cargo has built the command and does not say where it is")
    return programs[-1]


def _cargo(arguments: list[str]) -> bytes:
    """Runs cargo in the workspace, and returns what it prints."""
    cargo = os.environ.get("CARGO", "cargo")
    try:
        return subprocess.run([cargo, *arguments], cwd=_WORKSPACE, check=True, stdout=subprocess.PIPE).stdout
    except FileNotFoundError as error:
        raise RuntimeError(
            f"{cargo} is not there: building from source needs Rust, from https://rustup.rs. The variable CARGO names another cargo"
        ) from error
