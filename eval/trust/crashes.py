"""What machines do to a run: `python -m eval.trust.crashes --rounds 30 --out results/trust/faults.json`.

Every command is killed at random moments, interrupted, asked to end, given a full disk and a folder that is read only,
and run twice at once with one output. After each: every output is whole or not there, no process is left, and the same
command completes, with the same bytes where its output is determined, and leaves nothing beside its outputs.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from geosparse.utils.console import Parser, json_text, run_command, whole
from geosparse.utils.files import check_writable, write_json
from geosparse.utils.provenance import device_name, versions

from .commands import COMMANDS, RECIPE, Command, end, environment, orphans, own_command, start

SCHEMA = "geosparse.eval.faults/1"
SMALL_DISK_SIZE = "96k"


class CrashBench:
    """A folder with the inputs of the commands, and one reference run of each."""

    def __init__(self, inputs: Path, work: Path, command: Command) -> None:
        self.inputs, self.work, self.command = inputs, work, command
        self.reference = self.fresh("reference")
        begun = time.monotonic()
        done = self.run(self.reference)
        assert done.returncode == 0, done.stderr
        self.seconds = time.monotonic() - begun
        self.files = self.listing(self.reference)

    def fresh(self, name: str) -> Path:
        """A new folder with links to the inputs."""
        folder = self.work / name
        folder.mkdir(parents=True)
        self.link(folder)
        return folder

    def link(self, folder: Path) -> None:
        for path in self.inputs.iterdir():
            (folder / path.name).symlink_to(path)

    def run(self, folder: Path) -> subprocess.CompletedProcess[str]:
        """To its end."""
        command = self.command.words
        return subprocess.run(
            command, cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=600
        )

    def listing(self, folder: Path) -> set[str]:
        """All files and folders that the command left."""
        return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_symlink()}

    def problems(self, folder: Path) -> list[str]:
        """Outputs that are there and not whole, and processes that are left."""
        problems = []
        for name, read in self.command.outputs.items():
            if (folder / name).exists():
                try:
                    read(folder / name)
                except (ValueError, AssertionError, OSError) as error:
                    problems.append(f"{name} is not whole: {error}")
        return problems + [f"the process {pid} is left" for pid in orphans()]

    def completes(self, folder: Path) -> list[str]:
        """What is wrong after the same command was run once more to its end."""
        done = self.run(folder)
        if done.returncode:
            return [f"the restart ended with {done.returncode}: {done.stderr[-300:]}"]
        problems = self.problems(folder)
        if self.listing(folder) != self.files:
            problems.append(f"left beside the outputs: {sorted(self.listing(folder) ^ self.files)}")
        for name in self.command.same:
            if (folder / name).read_bytes() != (self.reference / name).read_bytes():
                problems.append(f"{name} differs from that of an undisturbed run")
        return problems


Fault = Callable[[CrashBench, random.Random, int], list[str]]


def killed(bench: CrashBench, rng: random.Random, rounds: int) -> list[str]:
    """SIGKILL at a random moment of the run, every other time shortly after the first file appears."""
    return _stopped(bench, rng, rounds, signal.SIGKILL, "killed", {-signal.SIGKILL})


def interrupted(bench: CrashBench, rng: random.Random, rounds: int) -> list[str]:
    """SIGINT, as from Ctrl-C."""
    return _stopped(bench, rng, rounds, signal.SIGINT, "interrupted", {130, -signal.SIGINT})


def asked_to_end(bench: CrashBench, rng: random.Random, rounds: int) -> list[str]:
    """SIGTERM, as from a scheduler."""
    return _stopped(bench, rng, rounds, signal.SIGTERM, "terminated", {143, -signal.SIGTERM})


def _stopped(bench: CrashBench, rng: random.Random, rounds: int, number: int, name: str, codes: set[int]) -> list[str]:
    problems = []
    for turn in range(rounds):
        folder = bench.fresh(f"{name}{turn}")
        process = start(bench.command, folder)
        _wait(bench, rng, folder, process, turn)
        code, err = end(process, number)
        of_turn = bench.problems(folder)
        if code not in {0, *codes} or (code and "Traceback" in err):
            of_turn.append(f"it ended with {code}: {err[-300:]}")
        gentle = number != signal.SIGKILL and code != 0
        if gentle and (left := {path for path in bench.listing(folder) if "/." in f"/{path}"}):
            of_turn.append(f"temporary files are left: {sorted(left)}")
        problems += [f"{name} {turn}: {problem}" for problem in [*of_turn, *bench.completes(folder)]]
        shutil.rmtree(folder)
    return problems


def _wait(bench: CrashBench, rng: random.Random, folder: Path, process: subprocess.Popen[str], turn: int) -> None:
    """Until a random moment."""
    if turn % 2 == 0:
        time.sleep(rng.uniform(0, bench.seconds))
        return
    while process.poll() is None and not bench.listing(folder):
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.3 * bench.seconds) * rng.random() ** 2)


def full_disk(bench: CrashBench, _: random.Random, __: int) -> list[str]:
    """A disk that fills up during the run: one sentence, the old file stays, and with room the run completes."""
    with _mounted(bench.work / "full", f"size={SMALL_DISK_SIZE},nr_inodes=1k") as folder:
        if folder is None:
            return ["skipped: no right to mount"]
        bench.link(folder)
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        done = bench.run(folder)
        problems = bench.problems(folder)
        if done.returncode not in (1, 2) or "No space left" not in done.stderr or "Traceback" in done.stderr:
            problems.append(f"on a full disk it ended with {done.returncode}: {done.stderr[-300:]}")
        filler.unlink()
        if subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=False).returncode == 0:
            problems += bench.completes(folder)
        return problems


def read_only(bench: CrashBench, _: random.Random, __: int) -> list[str]:
    """A folder that nobody, not even root, may write to: one sentence, at once."""
    with _mounted(bench.work / "readonly", "size=1m") as folder:
        if folder is None:
            return ["skipped: no right to mount"]
        bench.link(folder)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        done = bench.run(folder)
        if done.returncode != 2 or "Read-only file system" not in done.stderr or done.stderr.count("\n") != 1:
            return [f"it ended with {done.returncode}: {done.stderr[-300:]}"]
        return bench.problems(folder)


def two_at_once(bench: CrashBench, _: random.Random, rounds: int) -> list[str]:
    """Two processes with one output: both complete, or the second says why not; the output is that of one."""
    problems = []
    for turn in range(max(1, rounds // 10)):
        folder = bench.fresh(f"twice{turn}")
        refuses = bench.command.refuses
        for process in [start(bench.command, folder) for _ in range(2)]:
            err = process.communicate(timeout=600)[1]
            refused = process.returncode == 2 and refuses is not None and refuses in err
            if process.returncode and not refused:
                problems.append(f"one of two ended with {process.returncode}: {err[-300:]}")
        problems += bench.completes(folder)
        shutil.rmtree(folder)
    return problems


FAULTS: dict[str, Fault] = {
    "killed": killed,
    "interrupted": interrupted,
    "asked to end": asked_to_end,
    "full disk": full_disk,
    "read only": read_only,
    "two at once": two_at_once,
}


@contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path | None]:
    """A small file system in memory; None where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def make_inputs(folder: Path) -> None:
    """A model of random numbers with a tokenizer of bytes, two texts, a recipe, and a profile."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from geosparse.hf.loading import load_model
    from geosparse.profile.profiler import ProfileConfig, profile_model

    vocabulary = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), bos_token_id=0, eos_token_id=1, **sizes, **heads))
    model.save_pretrained(folder / "model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(
        folder / "model"
    )
    text = " ".join(f"{word}{number}" for number in range(99) for word in ("alpha", "Beta", "gamma;", "delta"))
    (folder / "book.txt").write_text(text, encoding="utf-8")
    (folder / "other.txt").write_text(text[::-1], encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    loaded = load_model(str(folder / "model"))
    profile_model(*loaded, text, ProfileConfig(length=64, windows=2, queries=4, kinds=())).save(
        folder / "p.safetensors"
    )


def run(commands: dict[str, Command], faults: Sequence[str], rounds: int, seed: int) -> dict[str, Any]:
    """All faults of all commands; per pair the problems found, none where all held."""
    result: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as work:
        inputs = Path(work) / "inputs"
        inputs.mkdir()
        make_inputs(inputs)
        for what, command in commands.items():
            bench = CrashBench(inputs, Path(work) / what, command)
            result[what] = {"seconds": round(bench.seconds, 2)}
            for fault in faults:
                problems = FAULTS[fault](bench, random.Random(f"{seed} {what} {fault}"), rounds)
                skipped = [problem for problem in problems if problem.startswith("skipped")]
                result[what][fault] = {"problems": [p for p in problems if p not in skipped], "skipped": skipped}
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write."""
    return run_command("eval.trust.crashes", lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    parser = Parser(prog="python -m eval.trust.crashes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--commands", default=",".join(COMMANDS), help=f"of {', '.join(COMMANDS)} (all)")
    parser.add_argument("--faults", default=",".join(FAULTS), help=f"of {', '.join(FAULTS)} (all)")
    parser.add_argument("--rounds", type=whole(1), default=30, help="stops per command and signal (30)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the moments (0)")
    parser.add_argument("--own", metavar="COMMAND", help="a further command, run in a folder with model and texts")
    parser.add_argument("--own-outputs", default="", help="its JSON files, with commas between them")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    if options.out is not None:
        check_writable(options.out)
    commands = {name: COMMANDS[name] for name in options.commands.split(",") if name}
    if options.own is not None:
        commands["own"] = own_command(options.own.split(), [name for name in options.own_outputs.split(",") if name])
    results = run(commands, options.faults.split(","), options.rounds, options.seed)
    facts = {"schema": SCHEMA, "rounds": options.rounds, "seed": options.seed, "device": device_name("cpu")}
    result = facts | {"commands": results, "provenance": versions()}
    if options.out is not None:
        write_json(options.out, result)
    print(json_text(result), end="")
    return 1 if any(part[fault]["problems"] for part in results.values() for fault in FAULTS if fault in part) else 0


if __name__ == "__main__":
    raise SystemExit(main())
