"""The prose around a needle."""

from __future__ import annotations

import random
from itertools import islice

from eval.tasks.haystack import PLACES, sentences


def test_the_prose_names_neither_places_nor_numbers() -> None:
    text = " ".join(islice(sentences(random.Random(0)), 500))
    assert not any(place in text for place in PLACES)
    assert not any(character.isdigit() for character in text)
