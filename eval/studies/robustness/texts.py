"""Held-out kinds of text: what plans are tried on, none of it in the built-in kinds that calibrate them."""

from __future__ import annotations

import html.entities
import inspect
import json
import sys
import sysconfig
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from geosparse.errors import GeosparseError
from geosparse.text import load_texts, token_windows
from geosparse.text.kinds import read_twice
from geosparse.text.made import CITIES, GOODS, NAMES, Draw

MODULES = ("heapq", "textwrap", "shelve", "sched", "fileinput", "bisect")
HEADERS = ("object.h", "abstract.h", "bytearrayobject.h", "dictobject.h")
LINES = 1500
NOVEL, SECOND_NOVEL = "books/2701_moby_dick.txt", "books/1342_pride_and_prejudice.txt"
TURN = "<|im_start|>{}\n{}<|im_end|>\n"


def stdlib_source() -> str:
    """Python: modules of the standard library."""
    return "\n\n".join(inspect.getsource(import_module(name)) for name in MODULES)


def c_headers() -> str:
    """C: headers of Python."""
    folder = Path(sysconfig.get_paths()["include"])
    return "\n\n".join((folder / name).read_text(encoding="utf-8") for name in HEADERS if (folder / name).exists())


def entity_page() -> str:
    """HTML: a page with a table of all named entities."""
    page = ElementTree.Element("html")
    table = ElementTree.SubElement(ElementTree.SubElement(page, "body"), "table")
    for name, text in html.entities.html5.items():
        if not name.endswith(";"):
            continue
        row = ElementTree.SubElement(table, "tr", id=name.strip(";"))
        ElementTree.SubElement(row, "td", {"class": "glyph"}).text = f"U+{ord(text[0]):04X}"
        ElementTree.SubElement(ElementTree.SubElement(row, "td"), "code").text = f"&{name}"
        ElementTree.SubElement(row, "a", href=f"/unicode/{ord(text[0]):04x}").text = unicodedata.name(
            text[0], "control"
        )
    ElementTree.indent(page)
    return ElementTree.tostring(page, encoding="unicode", method="html")


def characters(separator: str) -> str:
    """A table of Unicode characters."""
    every = (chr(code) for code in range(0x21, 0x2000))
    return "\n".join(
        separator.join((f"{ord(c):04X}", unicodedata.name(c), unicodedata.category(c), unicodedata.bidirectional(c)))
        for c in every
        if unicodedata.name(c, "")
    )


def character_records() -> str:
    """JSON: the same characters as objects."""
    letters = [chr(code) for code in range(0xC0, 0x700) if unicodedata.name(chr(code), "")]
    rows = [
        {"code": ord(c), "name": unicodedata.name(c).title(), "lower": c.lower(), "category": unicodedata.category(c)}
        for c in letters
    ]
    return json.dumps({"version": 3, "characters": rows}, indent=1, ensure_ascii=False)


def access_log() -> str:
    """Lines of a web server."""
    draw = Draw(7)
    return "\n".join(
        f"192.168.{draw.whole(0, 3)}.{draw.whole(2, 254)} - {draw.one(NAMES).lower()} "
        f"[{draw.whole(1, 28):02d}/Feb/2023:{draw.whole(0, 23):02d}:{draw.whole(0, 59):02d}:{draw.whole(0, 59):02d} "
        f'+0000] "{draw.one(("GET", "POST"))} /{draw.one(GOODS)}/{draw.one(CITIES).lower()}?page={draw.whole(1, 40)} '
        f'HTTP/1.1" {draw.one((200, 200, 200, 304, 404))} {draw.whole(200, 90000)}'
        for _ in range(LINES)
    )


def hexadecimal() -> str:
    """A dump of compressed bytes."""
    data = zlib.compress(stdlib_source().encode())
    rows = [data[start : start + 16] for start in range(0, len(data), 16)]
    return "\n".join(f"{16 * number:08x}  {row.hex(' ')}" for number, row in enumerate(rows))


def repeated_line() -> str:
    """One line, many times."""
    return "The quick brown fox jumps over the lazy dog, and the dog does not mind.\n" * LINES


WITHOUT_DATA: dict[str, Callable[[], str]] = {
    "documentation": lambda: "\n\n".join(load_texts("pydoc:test")),
    "python": stdlib_source,
    "c": c_headers,
    "html": entity_page,
    "json": character_records,
    "table": lambda: characters("\t"),
    "access log": access_log,
    "hexadecimal": hexadecimal,
    "repeated line": repeated_line,
}

Cut = Callable[[Any, str, int, int], torch.Tensor]


def _from_start(tokenizer: Any, text: str, length: int, count: int) -> torch.Tensor:
    """The very first windows, where the title page is."""
    return token_windows(tokenizer, text, length, None)[:count]


def _chat(folder: Path) -> str:
    rows = (json.loads(line) for line in _first(folder, "hub/openai/gsm8k", "test").open(encoding="utf-8"))
    return "".join(TURN.format("user", row["question"]) + TURN.format("assistant", row["answer"]) for row in rows)


def _first(folder: Path, name: str, part: str) -> Path:
    paths = sorted(path for path in (folder / name).rglob("*.jsonl") if part in path.name)
    if not paths:
        raise GeosparseError(f"{folder / name} holds no .jsonl file of the part {part!r}: give the folder of the data.")
    return paths[0]


def texts_of(data: Path | None, given: Sequence[str]) -> dict[str, tuple[str, Cut]]:
    """Kinds of text by name, each with the text and how windows are cut from it.

    Args:
        data: Folder with `books/`, `wikitext2/` and `hub/`; None leaves out what is made of them.
        given: Further kinds, "NAME=SOURCE" each.

    Raises:
        GeosparseError: A source that is not there, or not written as NAME=SOURCE.
    """
    known: dict[str, tuple[str, Cut]] = {name: (make(), token_windows) for name, make in WITHOUT_DATA.items()}
    if data is not None:
        novel, second = (load_texts(data / name)[0] for name in (NOVEL, SECOND_NOVEL))
        known |= {
            "novel": (novel, token_windows),
            "second novel": (second, token_windows),
            "novel, CR LF": (novel.replace("\n", "\r\n"), token_windows),
            "title page": (novel, _from_start),
            "title page, CR LF": (second.replace("\n", "\r\n"), _from_start),
            "novel, capitals": (second.upper(), token_windows),
            "novel, second reading": (novel, read_twice),
            "code, second reading": (stdlib_source(), read_twice),
            "wikitext": (load_texts(data / "wikitext2/wiki.test.raw")[0], token_windows),
            "chat": (_chat(data), token_windows),
        }
    for entry in given:
        name, _, source = entry.partition("=")
        if not name or not source:
            raise GeosparseError(f"A further kind of text is NAME=SOURCE, found {entry!r}.")
        known[name] = ("\n\n".join(load_texts(source)), token_windows)
    return known


def python_version() -> str:
    """Of the interpreter, whose library some kinds are made of."""
    return sys.version.split()[0]
