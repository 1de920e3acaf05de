"""The command line: wiring only. Exit code 0 is success, 2 a mistake of the user's, 1 anything else."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .artifact import check_writable, dump_json
from .errors import GeosparseError

DEFAULT_MODEL = "smollm2-135m"
MODEL_HELP = "folder, .gguf file, hub id owner/name, or alias: smollm2-135m (default), gemma3-270m"
POLICY_HELP = (
    "fisher (default), output_error, mass, separability, entropy, regime, uniform, or a control: permuted, random"
)
SELECTOR_HELP = "how tokens are found: topn (default), lowbit, paged, paged+lowbit, sink_recent, or auto (with --bytes)"
TEXT_HELP = ".txt or .jsonl file, hf:owner/name[:split], or pydoc:calibration|planning|test (embedded)"
DENSE_HELP = "decode densely below so many tokens, or where `doctor --calibrate` measured that to be faster: measured"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # OpenMP threads that spin for long stall every other process of a small machine, threads that sleep at once wake
    # too late for a kernel of 100 us; a few microseconds of spinning do neither. Must precede the import of torch.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        options = _parse(arguments)
        options.run(options)
        sys.stdout.flush()
    except GeosparseError as error:
        print(f"geosparse: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("geosparse: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        # What is still buffered would fail once more, with a traceback, when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            where = error.filename or "standard output"
            print(f"geosparse: error: Cannot use {where}: {error.strerror or error}.", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = build_parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["lm-eval"] and words[1:2] and words[1].startswith("-"):
        # Else argparse would take the value of a flag that it does not know, such as a task, for the model.
        words.insert(1, DEFAULT_MODEL)
    options, rest = parser.parse_known_args(words)
    if rest and options.command != "lm-eval":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest and not rest[0].startswith("-"):
        parser.error(f"the model comes first, before the flags: geosparse lm-eval MODEL ..., found {rest[0]!r}")
    options.rest = rest
    return options


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(prog="geosparse", description="Per-head sparse attention, planned from measured geometry.")
    parser.add_argument("--version", action="version", version=f"geosparse {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    add = _adder(commands, "demo", _demo, "the whole chain on a small real model, with a report", "--out demo")
    add("--out", type=Path, required=True, help="folder for profile, plan, result.json and report.html")
    add("--model", default=DEFAULT_MODEL, help=MODEL_HELP)
    add("--calibration", default="pydoc:calibration", help=TEXT_HELP)
    add("--text", default="pydoc:test", help=f"test text: {TEXT_HELP}")
    add("--length", type=int, default=1024, help="tokens per window (1024)")
    add("--windows", type=int, default=4, help="windows for the profile and for each score (4)")

    example = "smollm2-135m --text book.txt --length 1024 --windows 4 --out p.safetensors"
    add = _adder(commands, "profile", _profile, "measure every head's token selection on a text", example)
    _add_model(add)
    add("--text", default="pydoc:calibration", help=TEXT_HELP)
    add("--length", type=int, help="tokens per window (1024)")
    add("--lengths", type=_whole_numbers, help="several lengths instead, shortest first, e.g. 512,1024,2048,4096")
    add("--windows", type=int, default=4, help="windows of the shortest length, evenly spaced over the text (4)")
    add("--selectors", type=_words, default=("topn",), help="selectors to measure: topn (default), lowbit, paged, ...")
    add("--queries", type=int, default=64, help="query positions sampled per window (64)")
    add("--seed", type=int, default=0, help="seed of the sampling (0)")
    add("--out", type=Path, required=True, help="profile to write, .safetensors")

    example = (
        "p.safetensors --mean-keep 32 --policy fisher --tail centroid --out plan.json\n"
        "  geosparse plan --diff plan.json other.json"
    )
    add = _adder(commands, "plan", _plan, "choose how many tokens each head keeps", example)
    add("profile", type=Path, nargs="?", help="profile from `geosparse profile`")
    add("--mean-keep", type=float, help="tokens kept per head, on average")
    add("--density", type=float, help="instead of --mean-keep: the same as a fraction of the length")
    add("--bytes", type=float, help="instead of --mean-keep: bytes that a decode step reads of the cache, modelled")
    add("--tolerance", type=float, help="instead: the smallest budget within this relative loss increase, e.g. 0.01")
    add("--model", help=f"for --tolerance, the model to measure: {MODEL_HELP}")
    add("--text", help=f"for --tolerance, text to search on (pydoc:planning): {TEXT_HELP}")
    add("--verify-text", help="for --tolerance, text to verify on, used for nothing else (pydoc:test)")
    add("--windows", type=int, help="for --tolerance, windows to search on, and twice as many to verify (8)")
    add("--length", type=int, help="context to plan for, tokens (the longest of the profile)")
    add("--selector", help=SELECTOR_HELP)
    add("--share-kv", action="store_true", default=None, help="the heads of one KV group keep the same tokens")
    add("--policy", help=POLICY_HELP)
    add("--tail", help="what stands for the rest: centroid, renormalize, drop, or best (default): the best per head")
    add("--seed", type=int, help="seed of the controls (0)")
    add("--out", type=Path, help="plan to write, .json")
    add("--diff", type=Path, nargs=2, metavar="PLAN", help="make no plan: how do two plans for one model differ")

    add = _adder(commands, "inspect", _inspect, "what is in a plan or profile", "plan.json")
    add("artifact", type=Path, help="a plan (.json) or profile (.safetensors)")
    add("--html", type=Path, metavar="FILE", help="also write it as one HTML page with maps of its heads")

    add = _adder(
        commands, "export", _export, "a plan in a format that others read", "plan.json --to csv --out plan.csv"
    )
    add("plan", type=Path, help="plan from `geosparse plan`")
    add("--to", required=True, metavar="FORMAT", help="csv, hf (a model's folder), kvpress, duo-attention")
    add("--out", type=Path, required=True, help="file to write; a folder for hf and duo-attention")

    example = "smollm2-135m --plan plan.json --text book.txt --length 1024 --windows 8"
    add = _adder(commands, "score", _score, "loss of the model, dense and sparse, on the same tokens", example)
    _add_model(add)
    add("--plan", type=Path, help="plan to apply; without it only the dense model is scored")
    add("--text", default="pydoc:test", help=TEXT_HELP)
    add("--length", type=int, default=1024, help="tokens per window (1024)")
    add("--windows", type=int, default=8, help="windows, evenly spaced over the text (8)")

    example = "smollm2-135m --plan plan.json --prompt 'Why is the sky blue?' --chat"
    add = _adder(commands, "generate", _generate, "write text with the sparse model", example)
    _add_model(add)
    add("--plan", type=Path, help="plan to apply; without it the dense model writes")
    add("--prompt", required=True, help="text to continue; - reads standard input")
    add("--chat", action="store_true", help="put the prompt into the tokenizer's chat template")
    add("--max-new-tokens", type=int, default=128, help="at most so many tokens (128)")
    add("--prefill", default="exact", help="the prompt: exact (each token by the plan, default), dense or block")
    add("--dense-below", type=_tokens_or_measured, default=0, help=DENSE_HELP)

    example = "smollm2-135m --plan plan.json --tasks niah_single_1 --metadata '{\"max_seq_lengths\":[1024]}' --limit 5"
    add = _adder(commands, "lm-eval", _lm_eval, "lm-evaluation-harness, dense and sparse", example)
    _add_model(add)
    add("--plan", type=Path, help="plan to apply; without it only the dense model is evaluated")
    add("--no-dense", action="store_true", help="evaluate only the sparse model")
    add("--out", type=Path, help="write the result as JSON")

    example = "smollm2-135m --plan plan.json --context 4096 --new-tokens 32"
    add = _adder(commands, "bench", _bench, "speed of prefill and decode, dense against sparse", example)
    _add_model(add)
    add("--plan", type=Path, required=True, help="plan to apply")
    add("--context", type=int, default=4096, help="tokens of prompt (4096)")
    add("--new-tokens", type=int, default=32, help="decode steps to time (32)")
    add("--text", default="pydoc:test", help=TEXT_HELP)

    add = _adder(commands, "doctor", _doctor, "what is installed, and whether it works", "--calibrate smollm2-135m")
    add(
        "--calibrate",
        metavar="MODEL",
        help="measure from which context on sparse decoding of this model is faster here",
    )
    add("--dtype", default="float32", help="float32 (default), bfloat16, float16 or auto")
    add("--device", help="where to measure, e.g. cuda (default: cpu)")
    return parser


class _Parser(argparse.ArgumentParser):
    """One sentence and exit code 2 on a wrong flag; no abbreviations, so that lm-eval's flags stay its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see `{self.prog} --help`.\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stdout.flush()
        super().exit(status, message)


def _adder(commands: Any, name: str, run: Any, what: str, example: str) -> Any:
    parser = commands.add_parser(name, help=what, description=what, epilog=f"example:\n  geosparse {name} {example}")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)
    return parser.add_argument


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"whole numbers with commas between them, found {text!r}") from None


def _tokens_or_measured(text: str) -> int | str:
    if text == "measured" or text.isdecimal():
        return text if text == "measured" else int(text)
    raise argparse.ArgumentTypeError(f"a whole number of tokens, or measured, found {text!r}")


def _add_model(add: Any) -> None:
    add("model", nargs="?", default=DEFAULT_MODEL, help=MODEL_HELP)
    add("--dtype", default="float32", help="float32 (default), bfloat16, float16 or auto")
    add("--device", help="where to put the model, e.g. cuda (default: cpu)")


def _load(options: argparse.Namespace) -> tuple[Any, Any]:
    from .models import load_model

    return load_model(options.model, dtype=options.dtype, device=options.device)


def _show(options: argparse.Namespace, data: Any, text: str) -> None:
    print(dump_json(data) if options.json else text, end="" if options.json else "\n")


def _load_plan(options: argparse.Namespace) -> Any:
    from .plan import Plan

    return None if options.plan is None else Plan.load(options.plan)


def _demo(options: argparse.Namespace) -> None:
    from .demo import demo_text, run_demo
    from .profiler import ProfileConfig

    result = run_demo(
        options.out,
        options.model,
        options.calibration,
        options.text,
        ProfileConfig(length=options.length, windows=options.windows),
        options.windows,
        show_progress=True,
    )
    _show(options, result, demo_text(result, options.out))


def _profile(options: argparse.Namespace) -> None:
    from .inspection import describe_profile
    from .parts import process_rank
    from .profiler import ProfileConfig, profile_to_file
    from .text import load_texts

    if options.length is not None and options.lengths is not None:
        raise GeosparseError("--length is one length and --lengths several: give one of the two.")
    config = ProfileConfig(
        windows=options.windows,
        queries=options.queries,
        seed=options.seed,
        lengths=options.lengths or (options.length or 1024,),
        selectors=options.selectors,
    )
    check_writable(options.out)
    texts = load_texts(options.text)
    model, tokenizer = _load(options)
    profile = profile_to_file(options.out, model, tokenizer, texts, config, show_progress=True)
    if process_rank()[0]:
        return
    data, text = describe_profile(profile)
    _show(options, data | {"out": str(options.out)}, f"{text}\nWrote {options.out}.")


def _plan(options: argparse.Namespace) -> None:
    from .inspection import describe_plan
    from .planner import make_plan
    from .profile import Profile

    if options.diff is not None:
        return _diff(options)
    for name, given in (("PROFILE", options.profile), ("--out", options.out)):
        if given is None:
            raise GeosparseError(f"geosparse plan needs {name}: geosparse plan PROFILE --mean-keep 32 --out plan.json.")
    names = ("policy", "tail", "seed", "density", "length", "selector", "share_kv")
    chosen = {name: value for name in names if (value := getattr(options, name)) is not None}
    profile = Profile.load(options.profile)
    if options.tolerance is None:
        plan = make_plan(profile, options.mean_keep, bytes_read=options.bytes, **chosen)
    else:
        plan = _within_tolerance(options, profile, chosen)
    plan.save(options.out)
    data, text = describe_plan(plan)
    _show(options, data | {"out": str(options.out)}, f"{text}\nWrote {options.out}.")


def _within_tolerance(options: argparse.Namespace, profile: Any, chosen: dict[str, Any]) -> Any:
    from .models import load_model
    from .planner import make_plan
    from .text import load_texts, token_windows
    from .tolerance import plan_within

    if any(getattr(options, name) is not None for name in ("mean_keep", "density", "bytes")):
        raise GeosparseError("--tolerance finds the budget itself: leave out --mean-keep, --density and --bytes.")
    search, verify = (
        load_texts(text) for text in (options.text or "pydoc:planning", options.verify_text or "pydoc:test")
    )
    if search == verify:
        raise GeosparseError("--text and --verify-text are the same: verify on text that was not searched on.")
    model, tokenizer = load_model(options.model or DEFAULT_MODEL)
    profile.check(model)
    length, count = options.length or profile.length, options.windows or 8
    return plan_within(
        model,
        lambda mean_keep: make_plan(profile, mean_keep, **chosen),
        options.tolerance,
        token_windows(tokenizer, search, length, count),
        token_windows(tokenizer, verify, length, 2 * count),
        show_progress=True,
        say=lambda line: print(line, file=sys.stderr),
    )


def _diff(options: argparse.Namespace) -> None:
    from .comparison import compare_plans, describe_comparison
    from .plan import Plan

    others = (
        "density",
        "bytes",
        "tolerance",
        "model",
        "text",
        "verify_text",
        "windows",
        "length",
        "selector",
        "share_kv",
        "policy",
        "tail",
        "seed",
        "out",
    )
    for name in ("profile", "mean_keep", *others):
        if getattr(options, name) is not None:
            flag = "a profile" if name == "profile" else f"--{name.replace('_', '-')}"
            raise GeosparseError(f"--diff compares two plans and makes none: leave out {flag}.")
    data = compare_plans(*map(Plan.load, options.diff))
    _show(options, data, describe_comparison(data))


def _inspect(options: argparse.Namespace) -> None:
    from .inspection import describe, describe_plan, describe_profile, is_profile

    if options.html is None:
        data, text = describe(options.artifact)
        return _show(options, data, text)
    if is_profile(options.artifact):
        from .profile import Profile
        from .profile_page import write_profile_page

        profile = Profile.load(options.artifact)
        write_profile_page(options.html, profile)
        data, text = describe_profile(profile)
    else:
        from .plan import Plan
        from .plan_page import write_plan_page

        plan = Plan.load(options.artifact)
        write_plan_page(options.html, plan)
        data, text = describe_plan(plan)
    _show(options, data | {"html": str(options.html)}, f"{text}\nWrote {options.html}.")


def _export(options: argparse.Namespace) -> None:
    from .integrations.export import export_plan
    from .plan import Plan

    files, note = export_plan(Plan.load(options.plan), options.to, options.out)
    names = [str(file) for file in files]
    _show(options, {"format": options.to, "files": names, "note": note}, f"Wrote {' and '.join(names)}.\n{note}")


def _score(options: argparse.Namespace) -> None:
    from .inspection import describe_score
    from .scoring import check_windows, score
    from .text import load_texts, token_windows

    plan = _load_plan(options)
    texts = load_texts(options.text)
    model, tokenizer = _load(options)
    if plan is not None:
        plan.check(model)
    windows = token_windows(tokenizer, texts, options.length, options.windows)
    notes = list(check_windows(windows, options.windows))
    result = score(model, plan, windows, show_progress=True) | {"text": options.text, "notes": notes}
    _show(options, result, describe_score(result))


def _generate(options: argparse.Namespace) -> None:
    from .generate import generate

    plan = _load_plan(options)
    model, tokenizer = _load(options)
    prompt = _read_prompt() if options.prompt == "-" else options.prompt
    serving = {"prefill": options.prefill, "dense_below": options.dense_below}
    result = generate(
        model, tokenizer, prompt, plan, options.max_new_tokens, chat=options.chat, stream=not options.json, **serving
    )
    if options.json:
        _show(options, result, "")
    elif plan is not None:
        print(
            f"[{result['new_tokens']} tokens, density {result['density']:.4f}]",
            *result["notes"],
            sep="\n",
            file=sys.stderr,
        )


def _read_prompt() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise GeosparseError("Standard input is not UTF-8 text: give a prompt in UTF-8.") from error


def _lm_eval(options: argparse.Namespace) -> None:
    from .integrations.lm_eval import run, table

    if options.out is not None:
        check_writable(options.out)
    result = run(
        options.model,
        options.plan,
        options.rest,
        dtype=options.dtype,
        device=options.device,
        dense=not options.no_dense,
    )
    if not result:  # not the first of several processes
        return
    if options.out is not None:
        from .artifact import write_json

        write_json(options.out, result)
    _show(options, result, table(result))


def _bench(options: argparse.Namespace) -> None:
    from .bench import bench
    from .inspection import describe_bench
    from .text import load_texts, token_windows

    plan = _load_plan(options)
    texts = load_texts(options.text)
    model, tokenizer = _load(options)
    plan.check(model)
    prompt = token_windows(tokenizer, texts, options.context, 1)[0]
    result = bench(model, plan, prompt, options.new_tokens, show_progress=True)
    _show(options, result, describe_bench(result))


def _doctor(options: argparse.Namespace) -> None:
    from .doctor import examine

    data, text = examine()
    if options.calibrate:
        from .architecture import attention_layers
        from .breakeven import NEVER, calibrate
        from .patch import shape_of

        options.model = options.calibrate
        model, _ = _load(options)
        shapes = {shape.key: shape for shape in (shape_of(model, layer) for layer in attention_layers(model))}
        data["break_even"] = {key: calibrate(shape) for key, shape in shapes.items()}
        for key, found in data["break_even"].items():
            words = (f"{word} " + ("never" if n == NEVER else f"from {n} tokens") for word, n in found.items())
            text += f"\nsparse decoding is no slower than dense on {key}: {', '.join(words)}"
    _show(options, data, text)
