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
    programs = [block for block in blocks("python") if "serve(" in block or "server.run(" in block]
    alone = [block for block in blocks("python") if "Server.start(" in block or "Executor(" in block]
    clients = [block for block in blocks("python") if block not in (*programs, *alone)]
    names = ("digests.py", "server.py", "reports.py")
    for name, program in zip(names, programs):
        (tmp_path / name).write_text(program)

    def here(text: str) -> str:
        return text.replace("unix:/tmp/", f"unix:{tmp_path}/")

    def words(line: str) -> list[str]:
        programs = {"taskfork": str(TASKFORK), "python3": sys.executable}
        found = [programs.get(word, word) for word in line.split()]
        return [str(tmp_path / word) if word in ("digests.py", "reports.py") else word for word in found]

    lines = [line for block in blocks("sh") if "serve" in block for line in block.splitlines()]
    call = lines.pop(1)
    assert ["taskfork call" in line for line in [call, *lines]] == [True, False, False]
    for serve in lines:
        name = serve.split("unix:/tmp/")[1].split()[0]
        start(words(here(serve)), here(f"unix:/tmp/{name}"), name)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python" / "src")}
    digest = hashlib.sha256(b"hello").hexdigest()
    assert subprocess.check_output(words(here(call)), text=True) == f'"{digest}"\n'
    image = hashlib.sha256(b"\x89PNG".ljust(64 << 20, b"\0")).hexdigest()
    expected = [
        "".join(hashlib.sha256(data).hexdigest() + end for data, end in
                [(b"hello", "\n"), (b"1", " "), (b"2", "\n")]),
        "Budget, page 1\nBudget, page 2\nBudget, page 3\n3 pages\n",
        f"{image}\n",
    ]
    assert len(clients) == len(expected)
    for number, (client, printed) in enumerate(zip(clients, expected)):
        program = tmp_path / f"client{number}.py"
        program.write_text(here(client))
        assert subprocess.check_output([sys.executable, program], env=environment, text=True) == printed
    for number, (block, printed) in enumerate(zip(alone, ["120\n", "[1, 1, 2, 6, 24, 120]\n1.5\n"])):
        program = tmp_path / f"alone{number}.py"
        program.write_text(block)
        assert subprocess.check_output([sys.executable, program], env=environment, text=True) == printed
    own = f"unix:{tmp_path}/own"
    server = programs[1].replace("unix:/tmp/digests.sock", own)
    (tmp_path / "server.py").write_text(server)
    start([sys.executable, str(tmp_path / "server.py")], own, name="own")
    assert subprocess.check_output(words(call.replace("unix:/tmp/digests.sock", own)), text=True) == f'"{digest}"\n'
