"""Pages come from templates: none is written in Python, all travel with the package, and what is shown is escaped."""

import ast
import fnmatch
import re
import tomllib
from pathlib import Path

import jinja2
import pytest

import geosparse
from geosparse.reports.pages import environment, percent, render

PACKAGE = Path(geosparse.__file__).parent
ROOT = Path(__file__).parents[2]
TAGS = (
    "html|head|body|main|section|div|span|p|h[1-6]|pre|table|t[rdh]|ul|li|d[ltd]|figure|style|svg|g|rect|text|line|path"
)
# A tag that opens, or a rule of CSS.
MARKUP = re.compile(rf"<(?:{TAGS})[\s>]|[.#][\w-]+\s*\{{|style=\"")


def strings(path):
    """The strings of a module, parts of f-strings too, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    loose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in loose:
            yield node.value


@pytest.mark.parametrize("folder", [PACKAGE, ROOT / "eval"], ids=lambda folder: folder.name)
def test_no_markup_is_written_in_python(folder):
    # What `texts.py` writes is read by models, not by people.
    modules = [path for path in sorted(folder.rglob("*.py")) if path.name != "texts.py"]
    assert modules
    found = [(path.name, text) for path in modules for text in strings(path) if MARKUP.search(text)]
    assert found == []


def test_templates_travel_with_the_package():
    with (ROOT / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["geosparse"]
    templates = [path.relative_to(PACKAGE).as_posix() for path in (PACKAGE / "reports" / "templates").iterdir()]
    assert len(templates) >= 6
    assert [name for name in templates if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []


def test_everything_is_escaped_and_nothing_may_be_missing():
    page = render("plan.html.j2", title="<i>&", facts=["<b>"], budgets=None, origin=[("<p>", "<script>")])
    assert "<h1>&lt;i&gt;&amp;</h1>" in page
    assert "<script>" not in page
    assert "<b>" not in page
    with pytest.raises(jinja2.UndefinedError):
        render("plan.html.j2", title="t", facts=[], budgets=None)


def test_templates_of_another_package_extend_those_of_this_one():
    assert (
        environment("eval.report")
        .get_template("results.html.j2")
        .render(title="t", colours="", hues=(), columns=(), recipes=())
        .startswith("<!doctype html>\n")
    )


def test_percent_has_a_decimal_where_it_is_small():
    assert [percent(share) for share in (0.0, 0.0126, 0.0994, 0.0996, 0.5)] == [
        "0.0 %",
        "1.3 %",
        "9.9 %",
        "10 %",
        "50 %",
    ]
