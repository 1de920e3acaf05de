"""Atomic writes and validated reads: every file that geosparse leaves behind goes through here."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import secrets
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import GeosparseError

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
        os.fsencode(path)
    except UnicodeEncodeError:
        raise GeosparseError(
            f"Cannot {action} {str(path)!a}: no file name has half a surrogate pair in it; give another one."
        ) from None
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
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise GeosparseError(f"Cannot read {path}: it is not a plain file; give one.")
        path.open("rb").close()
    return status.st_size


def check_writable(path: Path | str) -> Path:
    """Fail before long work starts when `path` (a file to be) cannot be written; leaves nothing behind."""
    path = Path(path)
    with os_errors_as("write", path):
        target = _target(path)
        probe = _temporary(next(parent for parent in target.parents if parent.exists()), target.name)
        try:
            _create(probe)
        finally:
            _forget(probe)
    return path


def _target(path: Path) -> Path:
    """The plain file, there or to be, that `path` means: links are followed, so that a link stays one.

    Raises:
        GeosparseError: It is a folder or anything else that a rename would put a plain file in the place of.
    """
    if path.is_dir():
        raise GeosparseError(f"Cannot write {path}: it is a folder; give a file name.")
    # Links in /proc, to which /dev/stdout leads, stand for open files and not for names.
    if path.exists() and (not path.is_file() or _stands_for_open_file(path)):
        raise GeosparseError(f"Cannot write {path}: it is not a plain file; give another file name.")
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    # A rename asks for the folder's permission alone.
    if target.exists() and not os.access(target, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    return target


def _stands_for_open_file(path: Path) -> bool:
    """Whether a link on the way from `path` to its target is one of /proc or /dev/fd."""
    path = path.absolute()
    while path.is_symlink():
        folder = os.path.realpath(path.parent)
        if folder.startswith(("/proc/", "/dev/fd")):
            return True
        path = Path(folder, os.readlink(path))
    return os.path.realpath(path.parent).startswith(("/proc/", "/dev/fd"))


def own_prefix(name: str) -> str:
    """How the names of this process's temporary files and folders for `name` begin, as `remove_stale` knows them."""
    return f"{_prefix(name)}{os.getpid()}."


def remove_stale(folder: Path, name: str) -> None:
    """Remove the temporary files and folders for `name` of processes that were killed and whose number means the same
    here: on this machine, since it was started, in this container."""
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
    return f".{name.encode(errors='replace')[:99].decode(errors='ignore')}.{platform.node()[:64]}.{_numbering()}."


def _numbering() -> str:
    """What tells apart machines and containers that have one host name: only here do process numbers mean the same.

    A word of 12 hex digits, from the start of the system and the namespace of process numbers; random where the system
    does not say them, so that no file of another process is ever taken for ours.
    """
    if not sys.platform.startswith("linux"):
        return hashlib.sha256(f"{platform.node()} {uuid.getnode()}".encode(errors="replace")).hexdigest()[:12]
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return hashlib.sha256(f"{started} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:12]
    except OSError:
        return secrets.token_hex(6)


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
    if len(os.fsencode(name)) > MAX_NAME:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    return folder / f"{own_prefix(name)}{secrets.token_hex(6)}"


def _create(path: Path) -> None:
    """An empty file, with the permissions that the process gives to new files."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))


def _forget(path: Path) -> None:
    """Remove a temporary file, if it is there; what went wrong before says more than what goes wrong here."""
    with suppress(OSError):
        path.unlink()


def write_atomic(path: Path | str, write: Callable[[Path], object]) -> Path:
    """Call `write(temporary)` beside `path`, flush it to disk, then rename: the target is old or whole, never half.

    Where `path` is a symbolic link, what it leads to is written. A file that is replaced passes on its permissions.

    Raises:
        GeosparseError: The folder is not writable, the disk is full, or a text holds half a surrogate pair; nothing is
            left behind.
    """
    path = check_writable(path)
    with os_errors_as("write", path):
        target = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(target.parent, target.name)
        temporary = _temporary(target.parent, target.name)
    try:
        with os_errors_as("write", path):
            _create(temporary)
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            _pass_on(target, temporary)
            temporary.replace(target)
            _flush_folder(target.parent)
    except UnicodeEncodeError as error:
        character = error.object[error.start]
        raise GeosparseError(
            f"Cannot write {path}: its text holds {character!a}, which UTF-8 has no bytes for; give other text."
        ) from error
    finally:
        _forget(temporary)
    return path


def _pass_on(target: Path, temporary: Path) -> None:
    """Give `temporary` the permissions of the file that it replaces, and where possible its owner."""
    try:
        old = target.stat()
    except FileNotFoundError:
        return
    new = temporary.stat()
    if hasattr(os, "chown") and (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        with suppress(OSError):
            os.chown(temporary, old.st_uid, old.st_gid)
    temporary.chmod(stat.S_IMODE(old.st_mode))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Inside, no other process or thread that asks for it changes the file `path`: what one adds, no other takes away.

    The lock is on a file beside it, which stays. Where the system has no such locks (Windows), nothing is locked.

    Raises:
        GeosparseError: The folder is not writable.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with os_errors_as("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            os.close(handle)
            raise
    try:
        yield
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Make a rename in `folder` outlive a loss of power, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def dump_json(data: object, ascii_only: bool = False) -> str:
    """Stable, readable JSON: same data, same bytes; NaN and infinity are refused."""
    return json.dumps(data, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=ascii_only) + "\n"


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
