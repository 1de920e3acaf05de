"""Every command and every snippet of the documents runs, in order, in a folder of its own for each page; links resolve,
figures name their weights, and generated parts are those of the code.

The model is a tiny one in a folder that is called like the alias. Blocks that cannot run here say so in a comment
before them; the few words that are replaced are in `SHORTER`.
"""

import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import geosparse as gs
from geosparse.cli.commands import COMMANDS
from geosparse.cli.main import main
from geosparse.sparsify import break_even

from .plugins import command, install
from .tiny import VOCABULARY, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
OTHER_PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CODE_OF_CONDUCT.md", ROOT / "examples/README.md"]
NOTEBOOK = DOCS / "quickstart.ipynb"
BLOCK = re.compile(r"^(?P<mark><!-- not run: .+ -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
# Other programs than geosparse.
NOT_RUN = {"pip": "installs packages", "pytest": "is this suite"}
# A random model loses more than a tolerance for a real one, and its cache has fewer bytes; the rest is for speed.
SHORTER = {
    "--tolerance 0.02": "--tolerance 5",
    "--bytes 6e6": "--bytes 60000",
    "--limit 5": "--limit 1",
    "--windows 8": "--windows 2",
    "demo --out demo": "demo --out demo --length 256 --windows 2",
}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
WORDS = ("alpha", "Beta", "gamma;", "delta", "so")
# Words that have to be read twice, and what to write.
UNWANTED = {
    "of now": "present tense: say what holds",
    "of before": "present tense: say what holds",
    "was first": "present tense: say what holds",
    "so many": "a number, or N",
    "so many percent": "XX %",
    "mended": "fixed, or corrected",
    "told apart": "separated",
    "tell apart": "separate",
    "tells apart": "separates",
    "peer": "baseline",
    "peers": "baselines",
    "theirs": "the noun",
    "beside": "next to, or compared with",
    "of our own": "name the subject",
    "in turn": "name the order",
}
# As a unit it is "per head"; "the tokens a head keeps" is plain English.
UNIT_A_HEAD = re.compile(r"\b(?:tokens?|bytes|N|keys) a head\b(?! (?:keeps|may|sees))", re.IGNORECASE)
WEIGHTS = {"SmolLM2": "Q4_1", "Gemma-3-270M": "Q4_K_M"}


def reference():
    """The program that makes pages from the code."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / ".ci" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a reader would be: a model, texts, and the plan that some pages start from."""
    model = tiny_model(vocab_size=len(VOCABULARY), max_position_embeddings=8192)
    model.save_pretrained(tmp_path / "smollm2-135m")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "smollm2-135m")
    for name in ("book", "other", "search"):
        text = " ".join(f"{word}{number}{name}" for number in range(900) for word in WORDS)
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("GEOSPARSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setattr(break_even, "CONTEXTS", (64, 128))
    gs.Plan.uniform(gs.load_model("smollm2-135m")[0], 8).save("plan.json")
    return tmp_path


def blocks(page):
    return [match for match in BLOCK.finditer(page.read_text(encoding="utf-8")) if not match["mark"]]


def commands(text):
    """The commands of a block of shell: joined lines, comments gone, `&&` taken apart."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            if words := shlex.split(part, comments=True):
                yield words


def text_of(page):
    """A page with the files that it includes."""
    included = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return included.sub(lambda m: (ROOT / m[1]).read_text(encoding="utf-8"), page.read_text(encoding="utf-8"))


def prose(text):
    """A page without what is not English: code, comments, addresses, formulas."""
    for pattern in (r"```.*?^```", r"<!--.*?-->", r"`[^`]*`", r"\]\([^)]*\)", r"\$\$.*?\$\$", r"<[^>]+>"):
        text = re.sub(pattern, " ", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\s+", " ", text)


def name(page):
    return page.relative_to(ROOT).as_posix()


# Each shows a package that adds to geosparse: a module, a pyproject.toml, and the commands that then know it.
PACKAGES = [DOCS / "guides" / "custom_policy.md", DOCS / "guides" / "custom_selector.md"]


@pytest.mark.slow
@pytest.mark.parametrize("page", PACKAGES, ids=name)
def test_every_package_of_a_guide_works_from_outside(page, folder):
    module, project, commanded = blocks(page)
    about = tomllib.loads(project["text"])
    ((group, points),) = about["project"]["entry-points"].items()
    (word,) = about["tool"]["setuptools"]["py-modules"]
    assert f"`{word}.py`" in page.read_text(encoding="utf-8")
    environment = install(folder, group, points, {word: module["text"]})
    for words in commands(commanded["text"]):
        assert words[0] == "geosparse"
        done = command(environment, *words[1:])
        assert done.returncode == 0, (words, done.stderr)
        if "--help" in words:
            assert all(point in done.stdout for point in points)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page) and page not in PACKAGES], ids=name)
def test_every_block_runs(page, folder, capfd):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed, and demo draws")
    names = {}
    for block in blocks(page):
        text = block["text"]
        for words, shorter in SHORTER.items():
            text = text.replace(words, shorter)
        if block["kind"] == "python":
            exec(compile(text, str(page), "exec"), names)
        else:
            assert block["kind"] == "sh", f"{page.name}: a block of {block['kind']} is not run by anything"
            for words in commands(text):
                if words[0] in NOT_RUN:
                    continue
                assert words[0] == "geosparse", f"{page.name}: nothing runs {words[0]}"
                code = main(words[1:])
                assert code == 0, (words, capfd.readouterr().err)


def test_every_command_is_shown_at_work():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page != reference().CLI)
    assert not [command for command in COMMANDS if f"\ngeosparse {command} " not in text]


def test_every_public_name_is_in_the_reference():
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: geosparse\.(\w+)$", text, flags=re.MULTILINE)) == sorted(gs.__all__)


def test_the_command_line_page_and_the_file_map_are_those_of_the_code():
    made = reference()
    renew = "run python .ci/reference.py"
    assert made.CLI.read_text(encoding="utf-8") == made.cli_page(), renew
    text = made.ARCHITECTURE.read_text(encoding="utf-8")
    assert made.MAP.search(text)
    assert text == made.with_file_map(text), renew


def test_the_tables_of_the_registries_are_those_of_the_code():
    made = reference()
    text = made.CONCEPTS.read_text(encoding="utf-8")
    assert [match[2] for match in made.TABLE.finditer(text)] == ["selectors", "tails", "policies"]
    assert text == made.with_tables(text), "run python .ci/reference.py"


def test_the_file_map_lists_every_module_that_holds_anything():
    made = reference()
    listed = re.findall(r"^\| `([^`]+)`", made.file_map(), flags=re.MULTILINE)
    present = [path for top in made.FOLDERS for path in (ROOT / top).rglob("*.py") if path.stat().st_size]
    assert sorted(listed) == sorted(name(path).removesuffix("__init__.py") for path in present)


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES], ids=name)
def test_every_link_resolves(page):
    text = re.sub(r"```.*?^```", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|srcset)=\"([^\"]+)\"", text)
    broken = []
    for target in targets:
        path, _, anchor = target.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        found = (page.parent / path).resolve() if path else page
        there = found.exists() and found.is_relative_to(ROOT)
        if not there or (anchor and found.suffix == ".md" and anchor not in anchors(found)):
            broken.append(target)
    assert not broken


def anchors(page):
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES, NOTEBOOK], ids=name)
def test_no_word_has_to_be_read_twice(page):
    text = prose(text_of(page))
    assert not {w: i for w, i in UNWANTED.items() if re.search(rf"\b{re.escape(w)}\b", text, re.IGNORECASE)}
    assert not UNIT_A_HEAD.search(text), "per head"


@pytest.mark.parametrize("page", [*PAGES, NOTEBOOK], ids=name)
def test_figures_name_their_weights(page):
    text = text_of(page)
    assert not [weights for model, weights in WEIGHTS.items() if model in prose(text) and weights not in text]


def test_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1500


# Recipe, task and variant of each row of the table in README; the last, where it was timed.
RESULTS = [
    ("smollm2-135m/frontier", "perplexity-wiki.test.raw-1024", "fisher-blend-64"),
    ("smollm2-135m/frontier", "perplexity-wiki.test.raw-1024", "fisher-blend-32"),
    ("smollm2-135m/frontier", "perplexity-wiki.test.raw-1024", "fisher-blend-16"),
    ("smollm2-135m/baselines", "decode-2701_moby_dick.txt-8192", "fisher-blend-5pct-lowbit"),
    ("gemma3-270m/8k", "perplexity-2600_war_and_peace.txt-8192", "fisher-blend-64"),
    ("gemma3-270m/32k", "perplexity-2600_war_and_peace.txt-32768", "fisher-blend-64"),
]
CALLED = {
    "smollm2-135m": "SmolLM2-135M-Instruct, Q4_1 unpacked to fp32",
    "gemma3-270m": "Gemma-3-270M, Q4_K_M unpacked to fp32",
}


def test_readme_table_is_the_committed_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Results\n")[1]
    rows = [line for line in text.splitlines() if line.startswith("| ")][1 : len(RESULTS) + 1]
    assert rows == [row_of(*wanted) for wanted in RESULTS]


def row_of(recipe, task, variant):
    folder = ROOT / "results" / recipe
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    (row,) = [m for m in result["measurements"] if (m["task"], m["variant"], m["metric"]) == (task, variant, "nll")]
    length = next(each["length"] for each in result["tasks"] if each["id"] == task)
    info = next(each for each in result["variants"] if each["id"] == variant)
    kept = round(info["mean_keep"] or info["density"] * length)
    interval = "one passage" if row["interval"] is None else "{:+.3f} to {:+.3f}".format(*row["interval"])
    density = 100 * row["density"]
    timed = json.loads((folder / "timing.json").read_text(encoding="utf-8"))["rows"]
    speed = [each.get("times_dense") for each in timed if (each["task"], each["variant"]) == (task, variant)]
    cells = [
        CALLED[recipe.split("/")[0]],
        f"{length:,}",
        f"{kept} ({density:.0f} %)" if density > 10 else f"{kept} ({density:.1f} %)",
        f"{row['difference']:+.3f} ({interval})",
        f"{speed[0]:.1f}" if speed and speed[0] else "not timed",
    ]
    return "| " + " | ".join(cells) + " |"


def test_the_demo_table_is_the_committed_result():
    from geosparse.reports.demo import markdown_table

    text = (DOCS / "benchmarks" / "quality.md").read_text(encoding="utf-8")
    table = text.split("<!-- table: results/demo/result.json -->\n", 1)[1].split("\n<!-- end -->", 1)[0]
    assert table == markdown_table(json.loads((ROOT / "results/demo/result.json").read_text(encoding="utf-8")))


def committed(path):
    return json.loads((ROOT / "results" / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", ["smollm2-135m-8000", "smollm2-135m-8000-bf16", "smollm2-135m-1024"])
def test_the_speed_page_has_the_committed_milliseconds(file):
    found = committed(f"speed/cpu/{file}.json")
    text = (DOCS / "benchmarks" / "speed.md").read_text(encoding="utf-8")
    dtype = {"float32": "fp32", "bfloat16": "bf16"}[found["dtype"]]
    times = [f"{found[kind]['ms_per_token']:.0f}" for kind in ("dense", "sparse")]
    plan = f"`{found['sparse']['tail']}`, `topn`"
    row = f"| AMD EPYC (Zen 4), {dtype} | {found['context']:,} | {plan} | {' | '.join(times)} |"
    (shown,) = [line for line in text.splitlines() if line.startswith(row)]
    numbers = re.findall(r"[\d.]+", shown.removeprefix(row))
    assert float(numbers[0]) - 0.05 <= found["ratio"] <= float(numbers[-1]) + 0.05


def test_the_memory_page_has_the_committed_peak():
    text = (DOCS / "benchmarks" / "memory.md").read_text(encoding="utf-8")
    assert f"{committed('runtime/gemma3-270m/memory-32768.json')['peak_bytes'] / 2**30:.1f} GiB at the peak" in text
    ratio = committed("runtime/smollm2-135m/scoring-4096.json")["sparse_over_dense"]
    speed = (DOCS / "benchmarks" / "speed.md").read_text(encoding="utf-8")
    assert f"Scoring 4,096 tokens takes {ratio:.2f} times as long" in speed


def test_the_pictures_for_light_and_dark_pages_are_one_drawing():
    light, dark = ((DOCS / "assets" / f"pipeline-{n}.svg").read_text(encoding="utf-8") for n in ("light", "dark"))
    colour = re.compile(r"#[0-9a-f]{6}")
    assert colour.sub("", light) == colour.sub("", dark)
    pairs = set(zip(colour.findall(light), colour.findall(dark), strict=True))
    assert all(a != b for a, b in pairs)


@pytest.mark.slow
def test_the_notebook_runs(folder):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install geosparse[dev]")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install geosparse[dev]")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install geosparse[dev]")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    assert "density" in json.dumps(notebook["cells"])
    assert (folder / "plan.json").exists()


def test_the_notebook_is_committed_without_results():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
