"""Every causal model type of the installed transformers, tiny and random: `python -m eval.trust.architectures`.

With every token kept a sparsified model is the dense one (fp32, 1e-4), or geosparse refuses the type in one sentence.
Each type runs in a process of its own, so that one that dies does not end the run; a run that is interrupted goes on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from geosparse.errors import GeosparseError, did_you_mean
from geosparse.utils.console import Parser, json_text, run_command
from geosparse.utils.files import check_writable, read_json, write_json
from geosparse.utils.progress import track
from geosparse.utils.provenance import versions

from .architecture_checks import FAULTS, examine, warm_up
from .architecture_page import page

SCHEMA = "geosparse.eval.architectures/1"
ROOT = Path(__file__).parents[2]
OUT = ROOT / "results" / "trust" / "architectures.json"
PAGE = ROOT / "docs" / "reference" / "architectures.md"
SECONDS = 240
MEMORY = 10 << 30


def model_types() -> list[str]:
    """The names in transformers' mapping of causal language models, in alphabetical order."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _child(kind: str, pipe: Any) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    pipe.send(examine(kind))


def isolated(kind: str) -> dict[str, Any]:
    """`examine` in a process of its own, with a limit on time and memory."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(kind, there))
    process.start()
    there.close()
    try:
        if not here.poll(SECONDS):
            return {"outcome": "raw", "sentence": f"It took longer than {SECONDS} s."}
        answer: dict[str, Any] = here.recv()
        return answer
    except EOFError:
        process.join()
        return {"outcome": "raw", "sentence": f"The process died with code {process.exitcode}."}
    finally:
        process.kill()
        process.join()


def run(kinds: Sequence[str], known: dict[str, Any], out: Path | None) -> Iterable[tuple[str, dict[str, Any]]]:
    """Examine `kinds`, add each to `known` and write `out` after each."""
    for kind in track(kinds, "architectures"):
        start = time.perf_counter()
        known[kind] = isolated(kind) | {"seconds": round(time.perf_counter() - start, 1)}
        if out is not None:
            write_json(out, result_of(known))
        yield kind, known[kind]


def result_of(known: dict[str, Any]) -> dict[str, Any]:
    """The JSON object of a run."""
    counts = Counter(result["outcome"] for result in known.values())
    types = dict(sorted(known.items()))
    return {"schema": SCHEMA, "counts": dict(sorted(counts.items())), "types": types, "provenance": versions()}


def line(kind: str, result: dict[str, Any]) -> str:
    """One type on the terminal."""
    figures = [f"{name} {error:.0e}" for name, error in result.get("errors", {}).items()]
    notes = [f"{name}: {why}" for name, why in result.get("left_out", {}).items()]
    said = [result["sentence"]] if "sentence" in result else []
    return f"{kind:26} {result['outcome']:10} {'; '.join([*said, ', '.join(figures), *notes])}"


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write; 1 where a type ends in a raw error or differs in silence."""
    parser = Parser(prog="python -m eval.trust.architectures", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", metavar="TYPE", help="a model type; may be repeated (all)")
    parser.add_argument("--out", type=Path, help=f"JSON file ({OUT.relative_to(ROOT)} for all types, else none)")
    parser.add_argument("--resume", action="store_true", help="keep what the JSON file of these versions has")
    parser.add_argument("--page", type=Path, help="write the page of the documentation from the JSON file and stop")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return run_command("eval.trust.architectures", lambda: _run(parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> int:
    out = options.out or (None if options.only else OUT)
    if options.page is not None:
        text = page(read_json(options.out or OUT, "result"))
        check_writable(options.page)
        options.page.write_text(text, encoding="utf-8")
        return 0
    every = model_types()
    for kind in options.only or ():
        if kind not in every:
            raise GeosparseError(f"{kind!r} is no causal model type of this transformers; {did_you_mean(kind, every)}")
    if out is not None:
        check_writable(out)
    known: dict[str, Any] = {}
    if options.resume and out is not None and out.exists():
        before = read_json(out, "result")
        if before.get("provenance") == versions():
            known = dict(before["types"])
    _ready()
    kinds = [kind for kind in (options.only or every) if kind not in known]
    for kind, examined in run(kinds, known, out):
        if not options.json:
            print(line(kind, examined), flush=True)
    result = result_of(known)
    print(json_text(result) if options.json else ", ".join(f"{n} {what}" for what, n in result["counts"].items()))
    if out == OUT:
        PAGE.write_text(page(result), encoding="utf-8")
    return int(any(examined["outcome"] in FAULTS for examined in known.values()))


def _ready() -> None:
    """What every child process needs, imported once."""
    import logging
    import warnings

    import torch
    import transformers

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    warm_up()


if __name__ == "__main__":
    raise SystemExit(main())
