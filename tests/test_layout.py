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

# Lower layers first; a module may import from its own layer and those before it.
LAYERS = [
    {"errors"},
    {"artifact", "provenance", "progress", "registry", "statistics", "threads"},
    {"bounds"},
    {"console"},
    {"ops"},
    {"geometry", "text", "weights"},
    {"assumptions", "interplay"},
    {"regimes"},
    {"runtime"},
    {"identity", "models", "selectors"},
    {"plan", "profile"},
    {"cache", "offload", "planning"},
    {"policies"},
    {"planner"},
    {"attention"},
    {"patch"},
    {"passes"},
    {"profiler"},
    {"scoring"},
    {"tolerance"},
    {"reports"},
    {"bench", "doctor", "generate", "integrations"},
    {"demo"},
    {"commands"},
    {"cli"},
    {"__main__", "__init__"},
]
# The same for eval: a folder imports only from those on lower floors.
STUDY_ORDER = "statistics < harness < baselines, benchmarks, report, tasks < gpu, studies, trust < run, speed"
# Subclasses of transformers' classes live here; the module itself is imported when used.
SUBCLASSES = {"cache", "offload"}
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


def test_every_module_has_its_layer():
    assert {top_name(path) for path in modules()} == set().union(*LAYERS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    place = {name: index for index, layer in enumerate(LAYERS) for name in layer}
    if path.name == "__init__.py" and path.parent == PACKAGE:
        return
    depth = len(path.relative_to(PACKAGE).parts)
    for level, name in imported(path, everywhere=True):
        if level == depth and name in place:
            assert place[name] <= place[top_name(path)], f"{path.name} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_when_used(path):
    if path.is_relative_to(KERNELS):
        return
    assert "kernels" not in {name for level, name in imported(path, everywhere=False) if level}
    if top_name(path) not in SUBCLASSES:
        assert not {name for level, name in imported(path, everywhere=False) if level == 0} & HEAVY
        depth = len(path.relative_to(PACKAGE).parts)
        assert not {name for level, name in imported(path, everywhere=False) if level == depth} & SUBCLASSES


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_never_imports_the_studies(path):
    assert "eval" not in {name for level, name in imported(path, everywhere=True) if level == 0}


@pytest.mark.parametrize("path", sorted(STUDIES.rglob("*.py")), ids=lambda path: str(path.relative_to(STUDIES)))
def test_the_studies_import_heavy_libraries_when_used_and_nothing_of_the_tests(path):
    eager = {name for level, name in imported(path, everywhere=False) if level == 0}
    assert not eager & HEAVY
    assert "tests" not in {name for level, name in imported(path, everywhere=True) if level == 0}


def study_floors():
    floors = [floor.split(", ") for floor in STUDY_ORDER.split(" < ")]
    return {name: number for number, floor in enumerate(floors) for name in floor}


def test_every_study_has_its_floor():
    present = {path.relative_to(STUDIES).parts[0].removesuffix(".py") for path in STUDIES.rglob("*.py")}
    assert present - {"__init__"} == study_floors().keys()


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*/**/*.py")), ids=lambda path: str(path.relative_to(STUDIES)))
def test_the_studies_import_downwards(path):
    floors, folder = study_floors(), path.relative_to(STUDIES).parts[0]
    depth = len(path.relative_to(STUDIES).parts)
    assert "eval" not in {name for level, name in imported(path, everywhere=True) if level == 0}
    others = {name for level, name in imported(path, everywhere=True) if level == depth} - {folder}
    assert all(floors[name] < floors[folder] for name in others), others


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
    code = "import geosparse.scoring, geosparse as gs; assert all(callable(getattr(gs, name)) for name in gs.__all__)"
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
