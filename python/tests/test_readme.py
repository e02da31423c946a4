"""The programs of README.md, as they stand there."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import ROOT, TASKFORK

README = (ROOT / "python" / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_programs_of_the_readme_run(start: Any, tmp_path: Path) -> None:
    worker, *clients = blocks("python")
    (tmp_path / "digests.py").write_text(worker)
    serve, call = next(block for block in blocks("sh") if "serve" in block).splitlines()
    socket = f"unix:{tmp_path}/s"

    def words(line: str) -> list[str]:
        replaced = line.replace("unix:/tmp/digests.sock", socket).split()
        programs = {"taskfork": str(TASKFORK), "python3": sys.executable}
        found = [programs.get(word, word) for word in replaced]
        return [str(tmp_path / word) if word == "digests.py" else word for word in found]

    start(words(serve), socket)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python" / "src")}
    digest = hashlib.sha256(b"hello").hexdigest()
    assert subprocess.check_output(words(call), text=True) == f'"{digest}"\n'
    image = hashlib.sha256(b"\x89PNG".ljust(64 << 20, b"\0")).hexdigest()
    expected = [
        "".join(hashlib.sha256(data).hexdigest() + end for data, end in
                [(b"hello", "\n"), (b"1", " "), (b"2", "\n")]),
        f"{image}\n",
    ]
    assert len(clients) == len(expected)
    for number, (client, printed) in enumerate(zip(clients, expected)):
        program = tmp_path / f"client{number}.py"
        program.write_text(client.replace("unix:/tmp/digests.sock", socket))
        assert subprocess.check_output([sys.executable, program], env=environment, text=True) == printed
