"""The pages that are made from the code: `python .ci/reference.py` writes them, `tests/test_docs.py` compares.

`docs/reference/cli.md` follows from the parser, the file map in `docs/development/architecture.md` from the first line
of each module's docstring, and the tables of selectors, tails and policies in `docs/concepts.md` from their registries.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
CLI = ROOT / "docs" / "reference" / "cli.md"
ARCHITECTURE = ROOT / "docs" / "development" / "architecture.md"
CONCEPTS = ROOT / "docs" / "concepts.md"
FOLDERS = ("geosparse", "eval")
MAP = re.compile(r"(<!-- files: .*? -->\n).*?(<!-- end -->)", flags=re.DOTALL)
TABLE = re.compile(r"(<!-- registry: (\w+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
HEAD = """# Command line

Made by `python .ci/reference.py` from the parser; do not edit.

Every command prints a result for programs with `--json`, shows an example with `--help`, and answers a mistake with one
sentence and exit code 2.

- A **model** is a folder, a `.gguf` file, a hub id, or one of the aliases `smollm2-135m` and `gemma3-270m`, which need
  no hub: SmolLM2-135M-Instruct from a Q4_1 file and Gemma-3-270M from a Q4_K_M file, both unpacked to floating point.
- A **text** is a `.txt` or `.jsonl` file, `hf:owner/name`, or `pydoc:calibration`, `pydoc:planning` or `pydoc:test`,
  three disjoint parts of the documentation that Python itself ships.

[Guides](../guides/choose_a_budget.md) show the commands at work.
"""


def main() -> int:
    """Write the pages."""
    CONCEPTS.write_text(with_tables(CONCEPTS.read_text(encoding="utf-8")), encoding="utf-8")
    CLI.write_text(cli_page(), encoding="utf-8")
    ARCHITECTURE.write_text(with_file_map(ARCHITECTURE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def cli_page() -> str:
    """`docs/reference/cli.md`."""
    from geosparse.cli.main import build_parser

    parts = [HEAD]
    for name, parser in _commands(build_parser()).items():
        parts += [f"## {name}", f"{_sentence(parser.description or '')}", _usage(name, parser), _table(parser)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (commands,) = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    return dict(commands.choices)


def _usage(name: str, parser: argparse.ArgumentParser) -> str:
    example = (parser.epilog or "").removeprefix("example:\n")
    lines = "\n".join(line.strip() for line in example.splitlines())
    return f"<!-- not run: the guides run every command -->\n```sh\n{lines}\n```"


def _table(parser: argparse.ArgumentParser) -> str:
    rows = ["| argument | meaning |", "|---|---|"]
    for action in parser._actions:
        if "--help" in action.option_strings:
            continue
        value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
        value = " ".join(value) if isinstance(value, tuple) else value
        value = " ".join([value] * action.nargs) if isinstance(action.nargs, int) and action.nargs > 1 else value
        label = f"{', '.join(action.option_strings)} {value}".strip() if action.option_strings else value
        rows.append(f"| `{label}` | {_cell(action.help or '')} |")
    return "\n".join(rows)


def with_tables(text: str) -> str:
    """The page of concepts with the tables of the registries made anew."""
    made = {"selectors": selectors_table, "tails": tails_table, "policies": policies_table}
    return TABLE.sub(lambda match: f"{match[1]}\n{made[match[2]]()}\n\n{match[3]}", text)


def selectors_table() -> str:
    """Built-in selectors."""
    from geosparse.ops.selectors import ECONOMICAL, SELECTORS

    rows = []
    for rule in (SELECTORS[name] for name in SELECTORS.built_in):
        kernels = "none" if rule.kernel is None else "prefill, decode" if rule.prefill_kernel else "decode"
        rows.append((_name(rule.name, ECONOMICAL), rule.keeps, rule.reads, kernels))
    return _rows(("name", "which N tokens are kept", "what a decode step reads to find them", "CPU kernels"), rows)


def tails_table() -> str:
    """Tails and families of tails."""
    from geosparse.ops.tails import DEFAULT_TAIL, FAMILY_MEANING, TAIL_RULES

    rows = []
    for name, rule in TAIL_RULES.items():
        beta = f"{rule.shares.mean:g}" if rule.shares.gives_all else "-"
        rows.append((_name(name, DEFAULT_TAIL), rule.meaning, beta))
    rows += [(_name(name, DEFAULT_TAIL), meaning, "-") for name, meaning in FAMILY_MEANING.items()]
    return _rows(("name", "where the missing mass goes", "β"), rows)


def policies_table() -> str:
    """Built-in policies."""
    from geosparse.plan.policies import DEFAULT_POLICY, POLICIES

    rows = [(_name(name, DEFAULT_POLICY), POLICIES[name].favours) for name in POLICIES.built_in]
    return _rows(("name", "which heads get more tokens"), rows)


def _name(name: str, default: str) -> str:
    return f"`{name}`" + (" (default)" if name == default else "")


def _rows(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    line = "|---" * len(head) + "|"
    body = (" | ".join(map(_cell, row)) for row in rows)
    return "\n".join([f"| {' | '.join(head)} |", line, *(f"| {row} |" for row in body)])


def with_file_map(text: str) -> str:
    """The page of the architecture with the file map made anew."""
    return MAP.sub(lambda match: match.group(1) + "\n" + file_map() + "\n" + match.group(2), text)


def file_map() -> str:
    """A table per folder: each module and what the first line of its docstring says."""
    folders: dict[str, list[str]] = defaultdict(list)
    for top in FOLDERS:
        for path in sorted((ROOT / top).rglob("*.py")):
            said = first_line(path)
            name = path.parent.relative_to(ROOT).as_posix() + "/"
            own = path.name if path.name != "__init__.py" else ""
            if said:
                folders[name].append(f"| `{name}{own}` | {_cell(said)} |")
    tables = [f"### `{name}`\n\n| file | what |\n|---|---|\n" + "\n".join(rows) for name, rows in folders.items()]
    return "\n\n".join(tables) + "\n"


def first_line(path: Path) -> str:
    """What a module's docstring says first; empty for a module without one."""
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(said.split("\n\n")[0].split())


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("%%", "%")


if __name__ == "__main__":
    raise SystemExit(main())
