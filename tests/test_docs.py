"""Every command and every snippet of README and the documentation runs, in order, in a folder of its own.

The model is a tiny one in a folder that is called like the alias. Blocks that cannot run here say so in a comment
before them; the few words that are replaced are in `SHORTER`.
"""

import json
import re
import shlex
from pathlib import Path

import pytest

import geosparse as gs
from geosparse.cli import main
from geosparse.commands import COMMANDS
from geosparse.runtime import breakeven

from .tiny import VOCABULARY, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^(?P<mark><!-- not run: .+ -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
# Other programs than geosparse.
NOT_RUN = {"pip": "installs packages", "pytest": "is this suite"}
# A random model loses more than a tolerance for a real one; the rest is for speed.
SHORTER = {
    "--tolerance 0.01": "--tolerance 5 --windows 4",
    "--tolerance 0.02": "--tolerance 5",
    "--limit 5": "--limit 1",
    "--context 4096": "--context 512",
    "--windows 8": "--windows 2",
    "demo --out demo": "demo --out demo --length 256 --windows 2",
}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
WORDS = ("alpha", "Beta", "gamma;", "delta", "so")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a reader would be: a model, texts, and another plan to compare with."""
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
    monkeypatch.setattr(breakeven, "CONTEXTS", (64, 128))
    gs.Plan.uniform(gs.load_model("smollm2-135m")[0], 8).save("other.json")
    return tmp_path


def blocks(page):
    return [match for match in BLOCK.finditer(page.read_text(encoding="utf-8")) if not match["mark"]]


def commands(text):
    """The commands of a block of shell: joined lines, comments gone, `&&` taken apart."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            if words := shlex.split(part, comments=True):
                yield words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs(page, folder, capfd):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed, and demo draws")
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install geosparse[lm-eval]")
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


def test_every_command_has_its_how_to():
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^## ([\w-]+):", text, flags=re.MULTILINE)) == sorted(COMMANDS)


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: geosparse\.(.+)\.(\w+)$", text, flags=re.MULTILINE)
    assert dict((name, home) for home, name in listed) == gs._HOMES


def test_the_notebook_runs(folder):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install geosparse[dev]")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install geosparse[dev]")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install geosparse[dev]")
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    assert "density" in json.dumps(notebook["cells"])
    assert (folder / "plan.json").exists()


def test_the_notebook_is_committed_without_results():
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
