"""A store of documents in SQLite. Each worker is a Python process with a database connection of its own.

    taskfork serve --listen unix:/tmp/documents.sock -- python3 examples/python_worker/worker.py
    taskfork call unix:/tmp/documents.sock put greeting hello
    taskfork call unix:/tmp/documents.sock find gree
"""

import hashlib
import logging
import os
import sqlite3
import tempfile
from typing import Dict, Generator, List, Optional, Tuple, Union

from taskfork import context
from taskfork.worker import serve

PATH = os.environ.get("DOCUMENTS", os.path.join(tempfile.gettempdir(), "taskfork-documents.db"))


class Documents:
    """Each worker has a connection of its own; a checkout is a transaction."""

    def __init__(self) -> None:
        self._database = sqlite3.connect(PATH, isolation_level=None, timeout=5)
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS document (name TEXT PRIMARY KEY, digest TEXT, data BLOB)"
        )

    def begin(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self._database.execute("COMMIT")

    def put(self, name: str, data: Union[bytes, str]) -> str:
        """Stores a document, and replaces one of the same name. Returns its SHA-256."""
        data = data.encode() if isinstance(data, str) else data
        digest = hashlib.sha256(data).hexdigest()
        logging.info("%s has %d bytes", name, len(data))
        self._database.execute("REPLACE INTO document VALUES (?, ?, ?)", (name, digest, data))
        return digest

    def get(self, name: str) -> Optional[bytes]:
        query = "SELECT data FROM document WHERE name = ?"
        row = self._database.execute(query, (name,)).fetchone()
        return None if row is None else row[0]

    def find(self, beginning: str) -> List[Dict[str, str]]:
        query = "SELECT name, digest FROM document WHERE substr(name, 1, ?) = ? ORDER BY name"
        rows = self._database.execute(query, (len(beginning), beginning))
        return [{"name": name, "digest": digest} for name, digest in rows]

    def export(self, beginning: str) -> Generator[Tuple[str, bytes], None, int]:
        """Streams the documents whose names begin so. Returns how many there are."""
        found = self.find(beginning)
        for number, document in enumerate(found):
            context().progress(number, len(found), "documents")
            yield document["name"], self.get(document["name"]) or b""
        return len(found)

    def clear(self) -> None:
        self._database.execute("DELETE FROM document")

    def checkout_done(self) -> None:
        # The next checkout must not get an open transaction.
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")


if __name__ == "__main__":
    serve(Documents)
