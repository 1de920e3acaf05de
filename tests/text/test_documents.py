"""Reading texts and cutting token windows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from geosparse.errors import GeosparseError
from geosparse.text import documents as text
from geosparse.text import load_texts, text_sha256, token_windows


def fails(source: str | Path) -> str:
    with pytest.raises(GeosparseError) as caught:
        load_texts(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def words(count: int, bos: bool) -> PreTrainedTokenizerFast:
    """A tokenizer that knows the numbers below `count` as words; number n has id n + 1, BOS has 0."""
    vocabulary = {"<s>": 0} | {str(number): number + 1 for number in range(count)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", add_bos_token=bos, model_max_length=4)


def numbers(count: int) -> str:
    return " ".join(map(str, range(count)))


def test_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes("\ufeffOne.\r\n\nTwo é.".encode())
    assert load_texts(path) == ["One.\r\n\nTwo é."]
    assert load_texts(str(path)) == load_texts(path)


def test_jsonl_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = ['"plain"', '{"text": "wins", "other": "much longer"}', "", '{"id": 3, "a": "b", "body": "longest"}', '" "']
    path.write_text("\n".join([*rows, json.dumps({"text": "a\u2028b"}, ensure_ascii=False)]) + "\n", encoding="utf-8")
    assert load_texts(path) == ["plain", "wins", "longest", "a\u2028b"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{oops", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("[1]", "line 2 has no string: it is a list"),
        ('{"id": 3}', "line 2 has no string: it is an object with fields id"),
    ],
)
def test_bad_jsonl_names_the_line(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "a.jsonl").write_text('"good"\n' + line)
    assert said in fails(tmp_path / "a.jsonl")


def test_unreadable_files(tmp_path: Path) -> None:
    assert "No such file" in fails(tmp_path / "none.txt")
    assert "is a folder" in fails(tmp_path)
    for content, said in ((b"", "no text"), (b" \n\t", "no text"), (b"ok \xff\xfe", "byte 3"), (b"a\0b", "zero bytes")):
        (tmp_path / "a.txt").write_bytes(content)
        assert said in fails(tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_text("\n")
    assert "no text" in fails(tmp_path / "a.jsonl")


def fake_datasets(calls: list[Any]) -> Any:
    def load(name: str, config: str | None, split: str) -> list[dict[str, str]]:
        calls.append((name, config, split))
        if split == "none":
            raise ValueError("Unknown split.\nMore.")
        return [{"text": "one"}, {"text": "two"}]

    return SimpleNamespace(load_dataset=load, get_dataset_split_names=lambda name: ["test", "none"])


def test_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setitem(sys.modules, "datasets", fake_datasets(calls))
    for name in ("hf:a/b", "hf:a/b:test", "hf:a/b:small", "hf:a/b:small:test"):
        assert load_texts(name) == ["one", "two"]
    assert calls == [("a/b", None, "test")] * 2 + [("a/b", "small", "test")] * 2
    assert "Cannot load the data set hf:a/b:none: Unknown split;" in fails("hf:a/b:none")
    assert "not a data set's name" in fails("hf:")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install geosparse[lm-eval]" in fails("hf:a/b")


def test_documentation_parts_are_disjoint_and_balanced(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [load_texts(f"pydoc:{part}") for part in text.PARTS]
    paragraphs = [{" ".join(p.split()) for t in part for p in t.split("\n\n")} for part in parts]
    long = [{p for p in part if len(p) > text.PARAGRAPH} for part in paragraphs]
    assert not long[0] & (long[1] | long[2])
    assert not long[1] & long[2]
    sizes = [sum(map(len, part)) for part in parts]
    assert min(sizes) > 100_000
    assert max(sizes) < 1.1 * min(sizes)
    assert parts[0] == load_texts("pydoc:calibration")
    assert "did you mean 'calibration'" in fails("pydoc:calibratoin")
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert "without pydoc_data" in fails("pydoc:test")


def test_sha256_is_of_the_joined_text() -> None:
    assert text_sha256(["a", "b"]) == text_sha256("a\n\nb") != text_sha256("ab")


def test_windows_without_bos() -> None:
    windows = token_windows(words(20, bos=False), numbers(20), 6, None)
    assert windows.dtype == torch.int64
    assert windows.flatten().tolist() == list(range(1, 19))
    assert windows.shape == (3, 6)


def test_windows_with_bos() -> None:
    windows = token_windows(words(20, bos=True), [numbers(10), " ".join(map(str, range(10, 20)))], 6, None)
    assert windows[:, 0].tolist() == [0] * 4
    assert windows[:, 1:].flatten().tolist() == list(range(1, 21))


@pytest.mark.parametrize(
    ("count", "first"), [(1, [1]), (2, [1, 7]), (3, [1, 5, 9]), (6, [1, 3, 5, 7, 9, 11]), (99, None)]
)
def test_windows_are_evenly_spaced(count: int, first: list[int] | None) -> None:
    windows = token_windows(words(12, bos=False), numbers(12), 2, count)
    assert windows[:, 0].tolist() == (first or [1, 3, 5, 7, 9, 11])


def test_windows_that_cannot_be(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = words(20, bos=True)
    with pytest.raises(GeosparseError, match=r"The text has 5 tokens, a window needs 7; give longer text"):
        token_windows(tokenizer, numbers(5), 8, None)
    with pytest.raises(GeosparseError, match="2 or more"):
        token_windows(tokenizer, numbers(5), 1, None)
    with pytest.raises(GeosparseError, match="Cannot take 0 windows"):
        token_windows(tokenizer, numbers(5), 2, 0)
    assert not caplog.records
