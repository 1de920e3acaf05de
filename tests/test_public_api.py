"""The public names and their signatures are those of `public_api.txt`: changing them is a decision, never an accident.

After a decision: `python -m tests.test_public_api > tests/public_api.txt`, a line in CHANGELOG.md, and the version by
semver.org: while it is 0.x, a new minor version where something that worked no longer does.
"""

import dataclasses
import inspect
import re
import tomllib
from pathlib import Path

import geosparse as gs
from geosparse.cli.commands import COMMANDS
from geosparse.cli.main import build_parser

ROOT = Path(__file__).parents[1]


def public_api():
    """One line per public name, method, field, command and flag."""
    lines = []
    for name in gs.__all__:
        value = getattr(gs, name)
        if inspect.isclass(value):
            lines += [f"class {name}", *(f"{name}.{member}" for member in members(value))]
        else:
            lines.append(f"{name}{inspect.signature(value)}")
    subparsers = next(action for action in build_parser()._actions if action.dest == "command")
    for command in COMMANDS:
        for action in subparsers.choices[command]._actions:
            names = "/".join(action.option_strings) or action.dest
            lines.append(f"geosparse {command} {names}")
    return "\n".join(lines) + "\n"


def members(kind):
    """Fields, properties and methods of a class, its own and documented."""
    fields = {field.name: field for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
    for name, field in fields.items():
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        yield f"{name}: {field.type}{' = ...' if has_default else ''}"
    for name, value in vars(kind).items():
        if name.startswith("_") or name in fields:
            continue
        if isinstance(value, property):
            yield f"{name}: {value.fget.__annotations__.get('return')}"
        elif callable(getattr(kind, name)):
            yield f"{name}{inspect.signature(getattr(kind, name))}"


def test_names_and_signatures_are_frozen():
    frozen = (Path(__file__).parent / "public_api.txt").read_text(encoding="utf-8")
    assert public_api().splitlines() == frozen.splitlines()


def test_the_version_is_semantic_everywhere_the_same_and_in_the_changelog():
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == gs.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?", gs.__version__)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(gs.__version__)}\b", changelog, flags=re.MULTILINE)


if __name__ == "__main__":
    print(public_api(), end="")
