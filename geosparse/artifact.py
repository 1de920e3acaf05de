"""Atomic writes and validated reads: every file that geosparse leaves behind goes through here."""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import GeosparseError

MAX_COUNT = 2**31 - 1
MAX_NAME = 255
MAX_JSON = 16 << 20
"""Bytes of JSON that are parsed: 100 MB of empty lists would take 3 GB of memory."""


@contextmanager
def os_errors_as(action: str, path: Path | str) -> Iterator[None]:
    """Turn an OSError (disk full, not writable, not there) into one sentence that names the path."""
    if "\0" in str(path):
        raise GeosparseError(f"Cannot {action} {str(path)!r}: a file name has no zero byte in it; give another one.")
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise GeosparseError(f"Cannot {action} {path}: {reason}.") from error


def check_readable(path: Path | str) -> int:
    """The size in bytes of a plain file that can be read; a pipe would wait for ever, a device never end.

    Raises:
        GeosparseError: It is missing, unreadable, a folder or not a plain file.
    """
    path = Path(path)
    with os_errors_as("read", path):
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise GeosparseError(f"Cannot read {path}: it is not a plain file; give one.")
        path.open("rb").close()
    return found.st_size


def check_writable(path: Path | str) -> Path:
    """Fail before long work starts when `path` (a file to be) cannot be written; leaves nothing behind."""
    path = Path(path)
    with os_errors_as("write", path):
        if path.is_dir():
            raise GeosparseError(f"Cannot write {path}: it is a folder; give a file name.")
        # A rename would put a plain file in the place of a device such as /dev/null.
        if path.exists() and not path.is_file():
            raise GeosparseError(f"Cannot write {path}: it is not a plain file; give another file name.")
        probe = _temporary(next(parent for parent in path.absolute().parents if parent.exists()), path.name)
        try:
            _create(probe)
        finally:
            _forget(probe)
    return path


def own_prefix(name: str) -> str:
    """How the names of this process's temporary files and folders for `name` begin, as `remove_stale` knows them."""
    return f"{_prefix(name)}{os.getpid()}."


def remove_stale(folder: Path, name: str) -> None:
    """Remove the temporary files and folders for `name` of processes on this machine that were killed."""
    if os.name != "posix":
        return
    prefix = _prefix(name)
    for entry in os.listdir(folder):
        pid = entry.removeprefix(prefix).split(".")[0]
        if entry.startswith(prefix) and pid.isdigit() and not _alive(int(pid)):
            path = folder / entry
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _prefix(name: str) -> str:
    # Cut, as a file name has 255 bytes and the name itself may take most of them.
    return f".{name.encode()[:99].decode(errors='ignore')}.{platform.node()[:64]}."


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True  # alive and somebody else's, or no process of ours
    return True


def _temporary(folder: Path, name: str) -> Path:
    """A file to be in `folder` whose name only this process knows; known before there is a file, so that no interrupt
    can come between the two."""
    if len(name.encode()) > MAX_NAME:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    return folder / f"{own_prefix(name)}{secrets.token_hex(6)}"


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _forget(path: Path) -> None:
    """Remove a temporary file, if it is there; what went wrong before says more than what goes wrong here."""
    with suppress(OSError):
        path.unlink()


def write_atomic(path: Path | str, write: Callable[[Path], object]) -> Path:
    """Call `write(temporary)` beside `path`, flush it to disk, then rename: the target is old or whole, never half.

    Raises:
        GeosparseError: The folder is not writable or the disk is full; nothing is left behind.
    """
    path = check_writable(path)
    with os_errors_as("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path.parent, path.name)
        temporary = _temporary(path.parent, path.name)
    try:
        with os_errors_as("write", path):
            _create(temporary)
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
            _flush_folder(path.parent)
    finally:
        _forget(temporary)
    return path


def _flush_folder(folder: Path) -> None:
    """Make a rename in `folder` outlive a loss of power, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def dump_json(data: object) -> str:
    """Stable, readable JSON: same data, same bytes; NaN and infinity are refused."""
    return json.dumps(data, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def parse_json(text: str) -> Any:
    """JSON that `dump_json` can write again, in UTF-8.

    Raises:
        ValueError: Not JSON, or NaN, a number beyond fp64, or half a surrogate pair in it.
        RecursionError: Nested too deeply.
    """
    data = json.loads(text)
    json.dumps(data, allow_nan=False, ensure_ascii=False).encode("utf-8")
    return data


def write_json(path: Path | str, data: object) -> Path:
    """Write `data` as JSON, atomically."""
    text = dump_json(data)
    return write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path | str, what: str, limit: int = MAX_JSON) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        what: What it should be ("plan"), for the error.
        limit: Largest accepted size, bytes.

    Raises:
        GeosparseError: The file is missing, unreadable, too large or not JSON.
    """
    path = Path(path)
    size = check_readable(path)
    if size > limit:
        raise GeosparseError(f"{path} is not a {what}: {size} bytes is more than a {what} can have; give another file.")
    with os_errors_as("read", path):
        raw = path.read_bytes()
    try:
        return parse_json(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, what, "it does not parse as JSON") from error


def check_header(path: Path, limit: int) -> None:
    """Refuse a `.safetensors` file whose first 8 bytes claim more than `limit` bytes of names and metadata: all of them
    would be parsed."""
    check_readable(path)
    with os_errors_as("read", path), path.open("rb") as file:
        claimed = int.from_bytes(file.read(8), "little")
    require(claimed <= limit, f"a header of {claimed} bytes is more than {limit}.")


def damaged(path: Path, what: str, reason: str) -> GeosparseError:
    """The error for a file that does not hold what it should; `reason` is a clause or a sentence."""
    return GeosparseError(f"{path} is not a {what}, or it is damaged: {reason.rstrip('.')}; give or make another one.")


def finite_or_none(value: float) -> float | None:
    """`value`, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None


def require(condition: bool, sentence: str) -> None:
    """Raise GeosparseError(sentence) unless `condition` holds."""
    if not condition:
        raise GeosparseError(sentence)


def is_number(value: object) -> bool:
    """Whether a JSON value is a number that fp64 can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_count(value: object) -> bool:
    """Whether a JSON value is a whole number from 1 to `MAX_COUNT`."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_COUNT
