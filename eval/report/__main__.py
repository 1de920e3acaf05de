"""`python -m eval.report`: tables, plots and pages from `results/` alone; the same results give the same bytes.

Writes `results/README.md` and `results/report.html` (all results), `report.html` and `pareto.png` beside every result,
and the tables between `<!-- eval: NAME -->` and `<!-- end -->` in `quality.md` and `baselines.md` of
`docs/benchmarks/`. Pages are not committed; `--pages FOLDER` writes them for a site instead: `index.html`, and
`NAME.html` for each recipe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from geosparse.errors import GeosparseError
from geosparse.reports.pages import write_page
from geosparse.utils.console import Parser, run_command
from geosparse.utils.files import write_atomic

from .figure import save_pareto
from .markdown import results_page, score_table
from .page import recipe_part, render, write_site
from .points import Loaded

ROOT = Path(__file__).parents[2]
# Where tables of results stand between other words.
DOCUMENTS = (ROOT / "docs" / "benchmarks" / "quality.md", ROOT / "docs" / "benchmarks" / "baselines.md")
GENERATED_TABLE = re.compile(r"(<!-- eval: (\S+) -->\n).*?(\n?<!-- end -->)", flags=re.DOTALL)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = Parser(prog="python -m eval.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of results (results/)")
    parser.add_argument(
        "--documents", type=Path, nargs="*", default=DOCUMENTS, help="files whose tables are renewed (docs/benchmarks/)"
    )
    parser.add_argument("--pages", type=Path, help="write only the pages of a site, into this folder")

    def command() -> None:
        options = parser.parse_args(arguments)
        if options.pages is not None:
            written = write_site(options.pages, [recipe_part(loaded) for loaded in results_in(options.results)])
        else:
            written = make(options.results, options.documents)
        for path in written:
            print(f"Wrote {path}.")

    return run_command("eval.report", command)


def find(results: Path) -> list[Loaded]:
    """Every result of a recipe below a folder, by name; what lies in `_scratch` does not count."""
    paths = [path for path in results.rglob("result.json") if (path.parent / "recipe.yaml").exists()]
    shown = [path for path in paths if "_scratch" not in path.relative_to(results).parts]
    return [Loaded.of(path.parent) for path in sorted(shown)]


def results_in(results: Path) -> list[Loaded]:
    """`find`, where there has to be one.

    Raises:
        GeosparseError: No result there, or a damaged one.
    """
    results_found = find(results)
    if not results_found:
        raise GeosparseError(f"{results} holds no result of a recipe: run one first, e.g. python -m eval.run smoke.")
    return results_found


def make(results: Path, documents: Sequence[Path] = ()) -> list[Path]:
    """Write everything; returns what was written.

    Raises:
        GeosparseError: No result there, a damaged one, no such document, or in it the table of a result that is not
            there.
    """
    if missing := [str(document) for document in documents if not document.is_file()]:
        raise GeosparseError(f"{missing[0]} is not there, so its tables cannot be renewed: name files that are.")
    results_found, written, recipes = results_in(results), [], []
    for loaded in results_found:
        recipes.append(recipe_part(loaded))
        written.append(write_page(loaded.folder / "report.html", render(recipes[-1:])))
        png = save_pareto(loaded.folder / "pareto.png", loaded)
        written += [png] if png else []
    written.append(write_page(results / "report.html", render(recipes)))
    _write(results / "README.md", results_page(results_found, results))
    written.append(results / "README.md")
    by_name = {loaded.result.run.recipe: loaded for loaded in results_found}
    for document in documents:
        old = document.read_text(encoding="utf-8")
        new = renew(old, by_name)
        if new != old:
            _write(document, new)
            written.append(document)
    return written


def renew(text: str, by_name: dict[str, Loaded]) -> str:
    """`text` with the table of each marked block made anew."""

    def table(match: re.Match[str]) -> str:
        name = match.group(2)
        if name not in by_name:
            raise GeosparseError(f"A document shows a table of {name}, of which there is no result: run the recipe.")
        return f"{match.group(1)}{score_table(by_name[name])}\n<!-- end -->"

    return GENERATED_TABLE.sub(table, text)


def _write(path: Path, text: str) -> None:
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    raise SystemExit(main())
