"""`geosparse profile`."""

from __future__ import annotations

from pathlib import Path

from ...errors import GeosparseError
from ...ops.selectors import MEASURED, SELECTORS
from ...utils.console import say, whole, wholes
from ...utils.files import check_writable
from .shared import TEXT_HELP, Add, Options, add_model, load, show, words

DEFAULT_TEXT = "pydoc:calibration"
WHAT = "measure every head's token selection on a text"
EXAMPLE = "smollm2-135m --text pydoc:calibration --length 1024 --windows 4 --out p.safetensors"


def arguments(add: Add) -> None:
    """The flags."""
    add_model(add)
    add("--text", action="append", help=f"{TEXT_HELP} (default: pydoc:calibration); repeated: several kinds of text")
    add("--only", action="store_true", help="measure the given text only, without the built-in kinds")
    add("--length", type=whole(8), help="tokens per window (1024)")
    add("--lengths", type=wholes(8), help="several lengths instead, shortest first, e.g. 512,1024,2048,4096")
    add("--windows", type=whole(1), default=4, help="windows of the shortest length, evenly spaced over the text (4)")
    add(
        "--selectors",
        type=words,
        default=MEASURED,
        help=f"selectors to measure, of {', '.join(SELECTORS)} (default: {','.join(MEASURED)})",
    )
    add("--queries", type=whole(1), default=64, help="query positions sampled per window (64)")
    add("--one-pass", action="store_true", help="leave out what heads' errors do to each other: faster, worse plans")
    add("--seed", type=whole(0), default=0, help="seed of the sampling (0)")
    add("--out", type=Path, required=True, help="profile to write, .safetensors")


def run(options: Options) -> None:
    """Measure, or go on measuring, and write the profile."""
    from ...profile.checkpoints import process_rank
    from ...profile.profiler import ProfileConfig, profile_to_file
    from ...reports.terminal import describe_profile

    if options.length is not None and options.lengths is not None:
        raise GeosparseError("--length is one length and --lengths several: give one of the two.")
    config = ProfileConfig(
        options.length,
        windows=options.windows,
        queries=options.queries,
        seed=options.seed,
        lengths=(1024,) if options.lengths is None else options.lengths,
        selectors=options.selectors,
        second_pass=not options.one_pass,
        kinds=() if options.only else ProfileConfig.kinds,
    )
    check_writable(options.out)
    texts = _texts(options.text or [DEFAULT_TEXT])
    model, tokenizer = load(options)
    try:
        profile = profile_to_file(options.out, model, tokenizer, texts, config, show_progress=True)
    except KeyboardInterrupt:
        _say_what_is_kept(options.out)
        raise
    rank, processes = process_rank()
    if rank:
        return
    data, text = describe_profile(profile)
    shared = f", {processes} processes sharing the windows" if processes > 1 else ""
    from ...ops.serving import serving

    path, why = serving(model.get_input_embeddings().weight.device)
    data |= {"path": path, "path_reason": why}
    show(options, data | {"out": str(options.out), "processes": processes}, f"{text}\nWrote {options.out}{shared}.")


def _say_what_is_kept(out: Path) -> None:
    parts = out.with_name(f"{out.name}.parts")
    if parts.is_dir() and any(parts.iterdir()):
        say(f"geosparse: finished windows are kept in {parts}: run the same command again to go on from them.")


def _texts(sources: list[str]) -> list[str] | dict[str, list[str]]:
    """The documents of one source; of several, by the names of the sources."""
    from ...text import load_texts

    if len(sources) == 1:
        return load_texts(sources[0])
    names = [source.removeprefix("builtin:") for source in sources]
    if len(set(names)) < len(names):
        raise GeosparseError(f"--text names the same text twice: {max(names, key=names.count)}; name it once.")
    return {name: load_texts(source) for name, source in zip(names, sources, strict=True)}
