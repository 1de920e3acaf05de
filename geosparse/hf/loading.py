"""Load a causal language model by folder, GGUF file, alias or hub id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from logging import LogRecord
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GeosparseError, did_you_mean
from ..utils.files import os_errors_as
from .aliases import ALIASES, alias_folder
from .layers import drops_soft_cap

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16", "auto")


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
    target = _device(device, device_map)
    resolved = resolve(name)
    gguf = isinstance(resolved, Path) and resolved.is_file()
    local = isinstance(resolved, Path)
    where: dict[str, Any] = {"local_files_only": local, "trust_remote_code": trust_remote_code}
    if gguf:
        where["gguf_file"] = Path(resolved).name
    source = str(Path(resolved).parent if gguf else resolved)
    with _plain_errors(name, local), _quiet():
        config = _causal_config(name, source, where)
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
        options = where | ({"quantization_config": _unpacked()} if gguf else {})
        options |= {"attn_implementation": "eager"} if drops_soft_cap(config) else {}
        model, info = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=wanted, device_map=device_map, output_loading_info=True, **options
        )
    if missing := sorted(info["missing_keys"]):
        raise GeosparseError(
            f"{name} is not a whole {type(model).__name__}: {len(missing)} of its weights are missing "
            f"({missing[0]} first); give a checkpoint of the whole causal language model."
        )
    if target is not None:
        model.to(target)
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
        return alias_folder(name, _convert)
    if name.endswith(".gguf") or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise GeosparseError(f"There is no model at {name}: no such file or folder; check the path.")
    if "/" not in name:
        raise GeosparseError(
            f"Unknown model {name!r}, which may be a folder, a .gguf file, a hub id owner/name or an alias; "
            f"{did_you_mean(name, ALIASES)}"
        )
    return name


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
        torch.empty(0, device=device, dtype=torch.float32)
        return torch.device(device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise GeosparseError(f"Device {device!r} cannot be used here ({reason(error)}); try cpu.") from error


def _causal_config(name: str, source: str, where: dict[str, Any]) -> PretrainedConfig:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, __version__

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
    if int(__version__.split(".")[0]) < 5 and hasattr(config.get_text_config(), "rope_parameters"):
        raise GeosparseError(
            f"{name} was saved by transformers {config.transformers_version}, and {__version__} would take other "
            "positions for it (rope_parameters): use transformers 5, or save the model with transformers 4."
        )
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
            raise OSError(reason(error)) from error


def _is_no_report(record: LogRecord) -> bool:
    """False for transformers' table of weights that a checkpoint lacks: `load_model` says that in one sentence."""
    return "LOAD REPORT" not in record.getMessage()


@contextmanager
def _quiet(warnings: bool = True) -> Iterator[None]:
    """No progress bars from transformers; no warnings either where `warnings` is False."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    if not warnings:
        logging.set_verbosity_error()
    loading = logging.get_logger("transformers.modeling_utils")
    loading.addFilter(_is_no_report)
    try:
        yield
    finally:
        loading.removeFilter(_is_no_report)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


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
                f"Cannot load {name}: it is no folder here and the hub did not supply it ({reason(error)}); check "
                f"the name, the network and your access, or give a folder, a .gguf file or {', '.join(ALIASES)}."
            )
        else:
            text = f"Cannot load {name}: {reason(error)}; check that it is a whole saved model and fits here."
        raise GeosparseError(text) from error


def reason(error: BaseException) -> str:
    """The first line of an error, as a clause."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
