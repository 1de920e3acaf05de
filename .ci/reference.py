"""The pages that are made from the code: `python .ci/reference.py` writes them, `tests/test_docs.py` compares.

`docs/reference/cli.md` follows from the parser, and the file map in `docs/development/architecture.md` from the first
line of each module's docstring.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLI = ROOT / "docs" / "reference" / "cli.md"
ARCHITECTURE = ROOT / "docs" / "development" / "architecture.md"
FOLDERS = ("geosparse", "eval")
MAP = re.compile(r"(<!-- files: .*? -->\n).*?(<!-- end -->)", flags=re.DOTALL)
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
    """Write both pages."""
    CLI.write_text(cli_page(), encoding="utf-8")
    ARCHITECTURE.write_text(with_file_map(ARCHITECTURE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def cli_page() -> str:
    """`docs/reference/cli.md`."""
    sys.path.insert(0, str(ROOT))
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
