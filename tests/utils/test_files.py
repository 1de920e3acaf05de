"""Files are old or whole, never half; what cannot be written again is refused when read."""

import errno
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geosparse.errors import GeosparseError, did_you_mean
from geosparse.utils import files
from geosparse.utils.files import (
    MAX_COUNT,
    check_writable,
    dump_json,
    finite_or_none,
    is_count,
    own_prefix,
    read_json,
    remove_stale,
    write_atomic,
    write_json,
)

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
        patch.setattr("geosparse.utils.files.os.close", close_and_stop)
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


def test_writing_leaves_the_umask_to_other_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask belongs to the whole process"))
    write_json(tmp_path / "a.json", 1)


def test_a_file_that_is_replaced_passes_on_its_permissions(tmp_path):
    target = write_json(tmp_path / "a.json", 1)
    for mode in (0o600, 0o664, 0o755):
        target.chmod(mode)
        write_json(target, mode)
        assert stat.S_IMODE(target.stat().st_mode) == mode
        assert read_json(target, "number") == mode


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_a_file_that_is_replaced_keeps_its_owner(tmp_path):
    target = write_json(tmp_path / "a.json", 1)
    os.chown(target, 1234, 2345)
    write_json(target, 2)
    assert (target.stat().st_uid, target.stat().st_gid) == (1234, 2345)


def chain(folder):
    """A link in a folder that is a link, to a relative link, to a file in another folder; and that file."""
    (folder / "store").mkdir()
    (folder / "links").mkdir()
    (folder / "here").symlink_to("links")
    (folder / "links" / "first.json").symlink_to("second.json")
    (folder / "links" / "second.json").symlink_to("../store/a.json")
    return folder / "here" / "first.json", folder / "store" / "a.json"


@pytest.mark.parametrize("old", [None, "old"])
def test_output_through_links_goes_to_their_target(tmp_path, old):
    link, target = chain(tmp_path)
    if old is not None:
        target.write_text(old)
    assert write_json(link, {"new": 1}) == link
    assert read_json(target, "test") == {"new": 1}
    assert not target.is_symlink()
    assert (tmp_path / "links" / "first.json").is_symlink()
    assert (tmp_path / "links" / "second.json").is_symlink()
    assert names(tmp_path / "store") == ["a.json"]
    assert names(tmp_path / "links") == ["first.json", "second.json"]


def test_a_link_into_folders_to_be_makes_them(tmp_path):
    (tmp_path / "a.json").symlink_to(tmp_path / "new" / "deep" / "b.json")
    write_json(tmp_path / "a.json", 1)
    assert names(tmp_path / "new" / "deep") == ["b.json"]


def test_a_writer_that_stops_midway_leaves_links_and_target(tmp_path):
    link, target = chain(tmp_path)
    target.write_text("old")
    with pytest.raises(RuntimeError):
        write_atomic(link, half_then(RuntimeError()))
    assert target.read_text() == "old"
    assert names(tmp_path / "store") == ["a.json"]
    assert (tmp_path / "links" / "first.json").is_symlink()


@pytest.mark.parametrize("call", [check_writable, lambda path: write_json(path, 1)])
def test_what_is_no_plain_file_is_refused_and_stays(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        for name, reason in {"folder": "it is a folder", "socket": "it is not a plain file"}.items():
            (tmp_path / f"to-{name}").symlink_to(name)
            for path in (name, f"to-{name}"):
                before = os.lstat(path)
                assert reason in sentence(call, tmp_path / path)
                assert os.lstat(path).st_mode == before.st_mode
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    assert "symbolic links" in sentence(call, tmp_path / "loop")
    assert names(tmp_path) == ["folder", "loop", "pool", "socket", "to-folder", "to-socket"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="this system has no /proc")
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_standard_output_is_refused_whatever_it_is(tmp_path, name):
    """A rename would leave the shell with a file that has no name; through a link in /dev it could replace that."""
    (tmp_path / "link").symlink_to("/dev/stdout")
    code = (
        "import sys; from geosparse.utils.files import write_json\n"
        "try: write_json(sys.argv[1], 1)\n"
        "except ValueError as error: sys.exit(str(error))"
    )
    for stdout in (subprocess.PIPE, (tmp_path / "out").open("w"), subprocess.DEVNULL):
        done = subprocess.run(
            [sys.executable, "-c", code, name], cwd=tmp_path, stdout=stdout, stderr=subprocess.PIPE, text=True
        )
        assert done.stderr == f"Cannot write {name}: it is not a plain file; give another file name.\n"
    assert names(tmp_path) == ["link", "out"]
    assert os.path.islink("/dev/stdout")
    assert (tmp_path / "link").is_symlink()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write every file")
def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path):
    target = write_json(tmp_path / "a.json", 1)
    target.chmod(0o400)
    assert "Permission denied" in sentence(write_json, target, 2)


def test_file_names_that_no_system_has_are_refused(tmp_path):
    for name in ("a\ud800", "a\0b"):
        assert "give another one." in sentence(write_json, tmp_path / name, 1)
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="file names of this system are Unicode")
def test_file_names_that_are_not_utf8(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.json")
    write_json(path, 1)
    assert read_json(path, "number") == 1


def test_half_a_surrogate_pair_is_one_sentence_and_leaves_the_old_file(tmp_path):
    target = write_json(tmp_path / "a.json", {"old": 1})
    assert "holds '\\ud83d'" in sentence(write_json, target, {"name": "bad \ud83d"})
    assert names(tmp_path) == ["a.json"]
    assert read_json(target, "test") == {"old": 1}


def test_files_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path):
    code = "from geosparse.utils.files import own_prefix; print(own_prefix('a.json'))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert ended != own_prefix("a.json")
    for prefix in (ended, own_prefix("a.json")):
        (tmp_path / f"{prefix}abc").write_text("half")
    (tmp_path / f"{ended}folder").mkdir()
    remove_stale(tmp_path, "a.json")
    assert names(tmp_path) == [f"{own_prefix('a.json')}abc"]


def test_processes_of_another_container_with_the_same_host_name_are_not_judged(tmp_path, monkeypatch):
    """Their numbers mean nothing here: a file of one whose number is free here may be half written."""
    with monkeypatch.context() as there:
        there.setattr(files, "_numbering", lambda: "0123456789ab")
        there.setattr(os, "getpid", lambda: 2**22 + 1)  # more than Linux gives
        theirs = own_prefix("a.json")
    (tmp_path / f"{theirs}abc").write_text("half")
    write_json(tmp_path / "a.json", 1)
    assert names(tmp_path) == [f"{theirs}abc", "a.json"]


CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc"]


def may_unshare():
    try:
        return subprocess.run([*CONTAINER, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not may_unshare(), reason="this user may not make a namespace of process numbers")
@pytest.mark.parametrize("command", [CONTAINER, CONTAINER[:-1]])
def test_a_writer_in_another_namespace_keeps_its_file(tmp_path, command):
    """With one host name and one folder, as two containers of one image have; with /proc of its own, or the host's."""
    own = write_atomic(tmp_path / "b.json", lambda temporary: temporary.write_text("{}"))
    wait = "import sys; t.write_text('1'); print(t.name, flush=True); sys.stdin.readline()"
    code = f"from geosparse.utils.files import write_atomic\ndef write(t):\n {wait}\nwrite_atomic('a.json', write)"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, sys.executable, "-c", code], cwd=tmp_path, **pipes) as writer:
        half = writer.stdout.readline().strip()
        write_json(tmp_path / "a.json", "ours")
        assert half in names(tmp_path)
        writer.communicate("\n")
    assert writer.returncode == 0
    assert names(tmp_path) == ["a.json", own.name]
    assert read_json(tmp_path / "a.json", "number") == 1


def test_threads_that_write_one_file_leave_one_of_theirs(tmp_path):
    threads = [threading.Thread(target=write_json, args=(tmp_path / "a.json", number)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_json(tmp_path / "a.json", "number") in range(16)
    assert names(tmp_path) == ["a.json"]


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
