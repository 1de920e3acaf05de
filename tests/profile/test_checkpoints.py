"""A profile that is stopped, resumed, or shared between processes is the same file, bit for bit."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from geosparse.geometry.moments import Moments
from geosparse.profile import checkpoints
from geosparse.profile.checkpoints import Parts, Window, process_rank

from ..artifacts.test_profile import TEXT
from ..tiny import save_tiny

COMMAND = [sys.executable, "-m", "geosparse", "profile", "model", "--text", "book.txt", "--lengths", "40,80"]
COMMAND += ["--windows", "8", "--queries", "9", "--out"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    save_tiny(folder / "model")
    (folder / "book.txt").write_text(TEXT * 3, encoding="utf-8")
    subprocess.run([*COMMAND, "whole.safetensors"], cwd=folder, check=True, capture_output=True, env=environment())
    return folder


def environment(**changes):
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"} | changes


def files(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again(folder):
    whole = (folder / "whole.safetensors").read_bytes()
    waiting = folder / "killed.safetensors.parts"
    # Each process is killed once it has left a window more than the one before it.
    for kept in (1, 4):
        process = subprocess.Popen([*COMMAND, "killed.safetensors"], cwd=folder, env=environment())
        while process.poll() is None and len(list(waiting.glob("window-*"))) < kept:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert waiting.is_dir()
    (waiting / "window-00000.safetensors").write_bytes(b"half of it")
    subprocess.run([*COMMAND, "killed.safetensors"], cwd=folder, check=True, capture_output=True, env=environment())
    assert (folder / "killed.safetensors").read_bytes() == whole
    assert not waiting.exists()


@pytest.mark.slow
@pytest.mark.parametrize("names", checkpoints.LAUNCHERS[:3])
def test_two_processes_write_the_file_of_one(folder, names):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    running = []
    for rank in range(2):
        shared = environment(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **dict(zip(names, (str(rank), "2"), strict=True))
        )
        running.append(
            subprocess.Popen([*COMMAND, "shared.safetensors"], cwd=folder, stdout=subprocess.PIPE, env=shared)
        )
    said = [process.communicate(timeout=100)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert said[0].endswith(b"Wrote shared.safetensors, 2 processes sharing the windows.\n")
    assert said[1] == b""
    assert (folder / "shared.safetensors").read_bytes() == (folder / "whole.safetensors").read_bytes()
    (folder / "shared.safetensors").unlink()
    assert not {name for name in files(folder) if "shared" in name}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torch"])
def test_launchers_start_two_processes_that_write_the_file_of_one(folder, launcher):
    pytest.importorskip("accelerate", reason="needs accelerate")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    start = {
        "accelerate": [
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "--main_process_port",
            port,
        ],
        "torch": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", port],
    }[launcher]
    command = [sys.executable, "-m", *start, *COMMAND[1:], f"{launcher}.safetensors"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment())
    assert found.returncode == 0, found.stderr[-2000:]
    assert f"Wrote {launcher}.safetensors, 2 processes sharing the windows.\n" in found.stdout
    assert (folder / f"{launcher}.safetensors").read_bytes() == (folder / "whole.safetensors").read_bytes()


def test_windows_of_another_run_do_not_count(tmp_path):
    import torch

    from geosparse.artifacts.profile import ARRAYS
    from geosparse.artifacts.tail_moments import TAIL_ARRAYS

    sums = Moments(*(torch.rand(2).double() for _ in dataclasses.fields(Moments)))
    window = Window({name: torch.rand(2) for name in (*ARRAYS, *TAIL_ARRAYS)}, sums, 0.1)
    here, there = Parts(tmp_path, {"seed": 0}), Parts(tmp_path, {"seed": 1})
    assert here.load(0) is None
    here.save(0, window)
    found = here.load(0)
    assert found.nll == 0.1
    assert all(torch.equal(array, window.arrays[name]) for name, array in found.arrays.items())
    assert torch.equal(found.moments.sink_mass, sums.sink_mass)
    assert there.load(0) is None
    assert here.load(1) is None


def test_alone_without_a_launcher(monkeypatch):
    for names in checkpoints.LAUNCHERS:
        for name in names:
            monkeypatch.delenv(name, raising=False)
    assert process_rank() == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert process_rank() == (3, 4)
