"""Held-out texts: each is of the kind that its name says."""

import ast
import json

from eval.studies.robustness.texts import character_records, characters, entity_page, hexadecimal, stdlib_source


def test_texts_are_of_their_kind():
    ast.parse(stdlib_source())
    assert len(json.loads(character_records())["characters"]) > 100
    assert all(line.count("\t") == 3 for line in characters("\t").splitlines())
    assert entity_page().endswith("</html>")


def test_a_dump_counts_its_bytes():
    lines = hexadecimal().splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == ["00000000", "00000010", "00000020"]
    assert len(lines[0].split("  ")[1].split()) == 16
