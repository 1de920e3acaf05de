"""What is measured, sample by sample, on disk as soon as it is known: a run that was killed goes on where it was.

One file of JSON lines per task and variant. It only grows; a line that a kill cut short does not count, and is cut off
before the next one is written. Its first line names everything that decides the numbers: a file of anything else is
begun anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geosparse.errors import GeosparseError
from geosparse.utils.files import dump_json, os_errors_as

Record = dict[str, Any]


class Part:
    """The samples of one task under one variant."""

    def __init__(self, path: Path, about: dict[str, Any], note: str | None = None) -> None:
        """Take the samples that the file holds, where they are of the same run.

        Args:
            path: The file of JSON lines.
            about: What decides the numbers.
            note: What stands in the first line and decides nothing: the commit.
        """
        self.path = path
        self.key = hashlib.sha256(dump_json(about).encode()).hexdigest()
        self.records: dict[int, Record] = {}
        self.notes: list[str] = []
        self._note = note
        self._end = self._read()

    def _read(self) -> int:
        """Take the whole lines; returns where they end, 0 for a file of another run."""
        try:
            lines = self.path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return 0
        end = 0
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
            except ValueError:
                break
            if number == 0 and record.get("key") != self.key:
                return 0
            if "key" in record:
                self.notes.append(record["note"])
            else:
                self.records[record["sample"]] = record
            end += len(line) + 1
        return end

    def append(self, record: Record) -> None:
        """Write one sample; it counts once this returns.

        Raises:
            ValueError: A number in it is NaN or infinite; nothing is written.
        """
        line = _line(record)
        with os_errors_as("write", self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self.path.exists() else "w+b") as file:
                file.truncate(self._end)
                file.seek(self._end)
                if self._end == 0 or self._note not in self.notes:
                    self.notes.append(self._note)  # type: ignore[arg-type]
                    file.write(_line({"key": self.key, "note": self._note}))
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
                self._end = file.tell()
        self.records[record["sample"]] = record


def _line(data: Record) -> bytes:
    return json.dumps(data, sort_keys=True, allow_nan=False).encode() + b"\n"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Refuse a second run in the same folder.

    Raises:
        GeosparseError: Another process runs there.
    """
    with os_errors_as("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise GeosparseError(f"This recipe is running already in {folder}: wait for it, or stop it.") from error
        yield
    finally:
        lock.close()
