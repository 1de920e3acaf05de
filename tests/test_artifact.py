"""Files are old or whole, never half; what cannot be written again is refused when read."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geosparse.artifact import (
    MAX_COUNT,
    check_writable,
    dump_json,
    finite_or_none,
    is_count,
    read_json,
    write_atomic,
    write_json,
)
from geosparse.errors import GeosparseError, did_you_mean

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def sentence(function, *arguments):
    with pytest.raises(GeosparseError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def half_then(error):
    def write(path):
        path.write_text("half")
        raise error

    return write


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()])
def test_a_writer_that_stops_midway_leaves_the_old_file(tmp_path, error):
    target = write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(type(error)):
        write_atomic(target, half_then(error))
    assert names(tmp_path) == ["a.json"]
    assert json.loads(target.read_text()) == {"old": 1}


@pytest.mark.parametrize("call", [check_writable, lambda path: write_json(path, {"new": 1})])
def test_an_interrupt_right_after_a_file_was_made_leaves_none(tmp_path, monkeypatch, call):
    close = os.close

    def close_and_stop(handle):
        close(handle)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("geosparse.artifact.os.close", close_and_stop)
        with pytest.raises(KeyboardInterrupt):
            call(tmp_path / "a.json")
    assert names(tmp_path) == []


def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path):
    target = write_json(tmp_path / "a.json", {"old": 1})
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert sentence(write_atomic, target, half_then(full)) == f"Cannot write {target}: No space left on device."
    assert names(tmp_path) == ["a.json"]
    assert json.loads(target.read_text()) == {"old": 1}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_disk_that_is_really_full(tmp_path):
    def write(_):
        with open("/dev/full", "w") as file:
            file.write("x")

    assert "No space left on device" in sentence(write_atomic, tmp_path / "a.json", write)
    assert names(tmp_path) == []


def test_folders_are_made_when_writing_and_not_when_checking(tmp_path):
    target = tmp_path / "new" / "deep" / "a.json"
    assert check_writable(target) == target
    assert names(tmp_path) == []
    write_json(target, [1])
    assert names(target.parent) == ["a.json"]


def test_relative_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json("a.json", 1)
    write_json(Path("b/a.json"), 1)
    assert names(tmp_path) == ["a.json", "b"]


def test_unusable_targets_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for function in (check_writable, lambda path: write_json(path, 1)):
        assert "it is a folder; give a file name" in sentence(function, tmp_path)
        assert "Cannot write" in sentence(function, tmp_path / "file" / "a.json")
        assert "Cannot write" in sentence(function, tmp_path / "file" / "deeper" / "a.json")
        assert "File name too long" in sentence(function, tmp_path / ("x" * 300))
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_device_is_never_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a plain file" in sentence(write_json, tmp_path / "pipe", 1)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission(tmp_path):
    tmp_path.chmod(0o500)
    assert "Permission denied" in sentence(check_writable, tmp_path / "a.json")
    tmp_path.chmod(0o700)


def test_files_have_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        target = write_json(tmp_path / "a.json", 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")], {"a": {"b": float("nan")}}])
def test_numbers_that_json_lacks_are_not_written(tmp_path, value):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", value)
    assert names(tmp_path) == []


@given(VALUES)
def test_json_round_trip(tmp_path_factory, value):
    try:
        dump_json(value).encode()
    except UnicodeEncodeError:
        return
    path = write_json(tmp_path_factory.mktemp("json") / "a.json", value)
    assert read_json(path, "test") == value
    assert dump_json(read_json(path, "test")) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\x00\xff\xfe",
        b'{"a": NaN}',
        b"[-Infinity]",
        b"[1e999]",
        b'"\\ud800"',
        b"[" * 100_000,
        b"9" * 10_000,
        b"{} {}",
        '{"é": 1}'.encode("latin-1"),
    ],
)
def test_damaged_json_is_one_sentence(tmp_path, raw):
    path = tmp_path / "a.json"
    path.write_bytes(raw)
    text = sentence(read_json, path, "plan")
    assert text == f"{path} is not a plan, or it is damaged: it does not parse as JSON; give or make another one."


def test_files_that_cannot_be_read(tmp_path):
    assert (
        sentence(read_json, tmp_path / "none", "plan") == f"Cannot read {tmp_path / 'none'}: No such file or directory."
    )
    assert "Is a directory" in sentence(read_json, tmp_path, "plan")
    (tmp_path / "big").write_bytes(b" " * 100)
    assert "100 bytes is more than a plan can have" in sentence(read_json, tmp_path / "big", "plan", 99)


def test_small_helpers():
    assert finite_or_none(1.5) == 1.5
    assert finite_or_none(float("nan")) is None
    assert [is_count(value) for value in (1, MAX_COUNT, 0, -1, True, 1.0, "1", None, MAX_COUNT + 1)] == [True] * 2 + [
        False
    ] * 7
    assert did_you_mean("fischer", ["fisher", "uniform"]) == "did you mean 'fisher'?"
    assert did_you_mean("zzz", ["fisher", "uniform"]) == "choose from fisher, uniform."
