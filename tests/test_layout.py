"""The house: imports go downwards only, and importing is cheap."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "geosparse"
STUDIES = ROOT / "eval"

# The architecture: a folder or file imports only from those on lower floors.
ORDER = (
    "errors < utils < ops < geometry, hf, text < artifacts < plan, sparsify"
    " < profile, measure, reports < integrations < cli"
)
# The same for eval.
STUDY_ORDER = "statistics < harness < baselines, benchmarks, report, tasks < gpu, studies, trust < run, speed"
# Subclasses of transformers' classes live here; the modules are imported when used.
SUBCLASSES = PACKAGE / "sparsify/cache"
CACHES = {"cache", "growing", "sparse_cache"}
# What triton compiles has to be decorated by it; imported when used.
KERNELS = PACKAGE / "ops/triton/kernels"
HEAVY = {
    "transformers",
    "lm_eval",
    "datasets",
    "matplotlib",
    "triton",
    "flash_attn",
    "gguf",
    "accelerate",
    "scipy",
    "sklearn",
    "jinja2",
}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def top_name(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path, everywhere):
    """(relative level, first name) of the imports of a module; only those at module level unless `everywhere`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else _eager(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((0, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            yield from ((node.level, name) for name in names)


def _eager(body):
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node


def floors_of(order):
    return {name: number for number, floor in enumerate(order.split(" < ")) for name in floor.split(", ")}


def assert_downwards(path, root, floors):
    """Imports of other folders are of lower floors; those of the root itself are of single names of the package."""
    folder, depth = path.relative_to(root).parts[0].removesuffix(".py"), len(path.relative_to(root).parts)
    others = {name for level, name in imported(path, everywhere=True) if level == depth} - {folder}
    assert all(floors[name] < floors[folder] for name in others & floors.keys()), others


@pytest.mark.parametrize(("root", "order"), [(PACKAGE, ORDER), (STUDIES, STUDY_ORDER)], ids=["geosparse", "eval"])
def test_every_folder_has_its_floor(root, order):
    present = {path.relative_to(root).parts[0].removesuffix(".py") for path in root.rglob("*.py")}
    assert present - {"__init__", "__main__"} == floors_of(order).keys()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    if path.parent != PACKAGE or path.name not in ("__init__.py", "__main__.py"):
        assert_downwards(path, PACKAGE, floors_of(ORDER))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_when_used(path):
    if path.is_relative_to(KERNELS):
        return
    assert "kernels" not in {name for level, name in imported(path, everywhere=False) if level}
    if not path.is_relative_to(SUBCLASSES):
        assert not {name for level, name in imported(path, everywhere=False) if level == 0} & HEAVY
        assert not CACHES & {name for level, name in imported(path, everywhere=False) if level}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_never_imports_the_studies(path):
    assert "eval" not in {name for level, name in imported(path, everywhere=True) if level == 0}


@pytest.mark.parametrize("path", sorted(STUDIES.rglob("*.py")), ids=lambda path: str(path.relative_to(STUDIES)))
def test_the_studies_import_heavy_libraries_when_used_and_nothing_of_the_tests(path):
    eager = {name for level, name in imported(path, everywhere=False) if level == 0}
    assert not eager & HEAVY
    assert "tests" not in {name for level, name in imported(path, everywhere=True) if level == 0}


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*/**/*.py")), ids=lambda path: str(path.relative_to(STUDIES)))
def test_the_studies_import_downwards(path):
    assert "eval" not in {name for level, name in imported(path, everywhere=True) if level == 0}
    assert_downwards(path, STUDIES, floors_of(STUDY_ORDER))


def test_the_studies_are_not_in_the_wheel():
    with (ROOT / "pyproject.toml").open("rb") as file:
        found = tomllib.load(file)["tool"]["setuptools"]["packages"]["find"]["include"]
    assert found == ["geosparse", "geosparse.*"]


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, geosparse; print(sorted({'torch', 'transformers', 'matplotlib', 'lm_eval'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_no_path_of_a_machine_is_committed():
    pattern = re.compile(r"(?<![\w.])/(?:work|root|home)/")
    texts = [path for ending in ("*.py", "*.md", "*.toml", "*.txt") for path in ROOT.rglob(ending)]
    hidden = {".venv", ".git", "build"}
    checked = [path for path in texts if not hidden & set(path.relative_to(ROOT).parts) and path != Path(__file__)]
    assert checked
    assert not [path for path in checked if pattern.search(path.read_text(encoding="utf-8"))]


def test_public_names_do_not_depend_on_what_was_imported_before():
    code = (
        "import geosparse.measure.loss, geosparse as gs; assert all(callable(getattr(gs, name)) for name in gs.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not {top_name(path) for path in modules()} & set(__import__("geosparse").__all__)


def test_importing_adds_little_to_torch():
    """Own modules and the standard library's, nothing that torch has not loaded already: no clock, as a busy machine
    would decide. `SparseCache` is left out: it extends a class of transformers, which it imports."""
    code = (
        "import sys, torch\nbefore = set(sys.modules)\nimport geosparse\n"
        "for name in set(geosparse.__all__) - {'SparseCache'}:\n    getattr(geosparse, name)\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "geosparse" in loaded
    assert loaded <= {"geosparse"} | sys.stdlib_module_names
