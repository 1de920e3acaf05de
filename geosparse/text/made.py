"""Text that is made: tables, JSON, logs and dialogue from a seeded generator, the same on every machine."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

ROWS = 400
"""Rows, records or turns of one made document."""
Item = TypeVar("Item")

NAMES = ("Ada", "Bruno", "Chen", "Dalia", "Emil", "Fatima", "Goran", "Hanna", "Ivan", "Jun", "Kofi", "Lena", "Mateo")
SURNAMES = ("Abbott", "Becker", "Castro", "Dubois", "Eriksen", "Fischer", "Garcia", "Haddad", "Ito", "Jones", "Kumar")
CITIES = ("Berlin", "Lagos", "Lima", "Osaka", "Paris", "Quito", "Riga", "Seoul", "Turin", "Utrecht", "Vienna", "Zagreb")
GOODS = ("apples", "bolts", "candles", "drills", "envelopes", "flour", "gloves", "hinges", "ink", "jars", "kettles")
SERVICES = ("auth", "billing", "cache", "gateway", "mailer", "search", "storage", "worker")
EVENTS = (
    ("INFO", "request completed method=GET path=/api/v1/{good}/{number} status=200 duration_ms={small}"),
    ("INFO", "user {name} signed in from 10.0.{small}.{small}"),
    ("DEBUG", "cache miss for key {good}:{number}, loading from storage"),
    ("WARN", "slow query took {number} ms: SELECT * FROM {good} WHERE city = '{city}'"),
    ("ERROR", "connection to {service}.internal:5432 refused, retry {small} of 5"),
    ("INFO", "job {number} finished: {small} rows written, 0 failed"),
)
QUESTIONS = (
    (
        "How many {good} do I need for {small} people?",
        "Plan two {good} for each person, so {double} in all. Buy a few more if somebody may come by unannounced.",
    ),
    (
        "What's the weather like in {city} in spring?",
        "Spring in {city} is mild. Take a light jacket, and an umbrella for the afternoons. Shall I list what to pack?",
    ),
    (
        "Can you explain what a cache does? I'm new to this.",
        "Of course! A cache keeps copies of things that were slow to get. The next time somebody asks, the copy is "
        "handed out at once. The hard part is to know when a copy is out of date.",
    ),
    (
        "my order {number} hasn't arrived yet :( it was sent to {city}",
        "I'm sorry about that. Order {number} left our warehouse {small} days ago and waits at the post office in "
        "{city}. Shall I ask them to deliver it again, {name}?",
    ),
    (
        "What is {small} times {small}?",
        "{small} times {small} is {square}.",
    ),
    (
        "write a short poem about {good} please",
        "Here you go:\n\nSmall {good} in a row,\nout in the evening glow,\none for the friend who stays,\none for the "
        "longer days.",
    ),
    (
        "Thanks! And who wrote the report, {name} or {other}?",
        "{other} wrote it, and {name} checked the figures. Do you want me to send it to both of them?",
    ),
)


def table(seed: int) -> str:
    """Orders with tabs between the columns, then the same kind of rows with commas and with bars."""
    draw = Draw(seed)
    header = ("id", "name", "city", "item", "count", "price", "date")
    layouts: tuple[Callable[[Sequence[str]], str], ...] = (
        "\t".join,
        ",".join,
        lambda cells: f"| {' | '.join(cells)} |",
    )
    blocks = []
    for block in range(12):
        line = layouts[block % len(layouts)]
        rows = [line(header)] + ([line(["---"] * len(header))] if block % len(layouts) == 2 else [])
        rows += [line(_order(draw)) for _ in range(ROWS // 20)]
        blocks.append("\n".join(rows))
    return "\n\n".join(blocks)


def records(seed: int) -> str:
    """JSON: an indented list of nested objects, then one object a line."""
    draw = Draw(seed)
    documents = []
    for block in range(8):
        rows = [_record(draw) for _ in range(ROWS // 50)]
        documents.append(
            json.dumps(rows, indent=2) if block % 2 == 0 else "\n".join(json.dumps(record) for record in rows)
        )
    return "\n".join(documents)


def log(seed: int) -> str:
    """What services log: a time, a level, a service and an event a line."""
    draw = Draw(seed)
    lines, milliseconds = [], 0
    for _ in range(ROWS):
        milliseconds += draw.whole(1, 2000)
        seconds, rest = divmod(milliseconds, 1000)
        level, event = draw.one(EVENTS)
        stamp = f"2024-03-17T{9 + seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{rest:03d}Z"
        lines.append(f"{stamp} {level:<5} [{draw.one(SERVICES)}-{draw.whole(1, 4)}] {draw.filled(event)}")
    return "\n".join(lines)


def dialogue(seed: int) -> str:
    """Questions of a user and answers of an assistant."""
    draw = Draw(seed)
    turns = []
    for _ in range(ROWS // 4):
        question, answer = draw.filled("\0".join(draw.one(QUESTIONS))).split("\0")
        turns.append(f"User: {question}\n\nAssistant: {answer}")
    return "\n\n".join(turns)


def patterns(seed: int) -> str:
    """A dump of bytes in hexadecimal, columns of numbers, and a line that repeats, in blocks."""
    draw = Draw(seed)
    blocks = []
    for block in range(12):
        line = draw.filled("{name} put the {good} back on the shelf and closed the door.")
        dump = (
            f"{16 * row:08x}  " + " ".join(f"{draw.whole(0, 255):02x}" for _ in range(16))
            for row in range(8 * block, 8 * block + 8)
        )
        numbers = ("  ".join(f"{draw.whole(-99999, 99999) / 1000:9.3f}" for _ in range(5)) for _ in range(10))
        blocks += ["\n".join(dump), "\n".join(numbers), "\n".join([line] * 16)]
    return "\n\n".join(blocks)


class Draw:
    """Random choices that depend on the seed alone: of Python's generator only `random`, whose numbers are fixed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def whole(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        return low + int(self._random.random() * (high - low + 1))

    def one(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.whole(0, len(items) - 1)]

    def filled(self, pattern: str) -> str:
        """The pattern with words and numbers in its places."""
        small = self.whole(2, 60)
        return pattern.format(
            good=self.one(GOODS),
            city=self.one(CITIES),
            name=self.one(NAMES),
            other=self.one(NAMES),
            service=self.one(SERVICES),
            number=self.whole(100, 99999),
            small=small,
            double=2 * small,
            square=small * small,
        )


def _order(draw: Draw) -> list[str]:
    return [
        str(draw.whole(1000, 9999)),
        f"{draw.one(NAMES)} {draw.one(SURNAMES)}",
        draw.one(CITIES),
        draw.one(GOODS),
        str(draw.whole(1, 40)),
        f"{draw.whole(1, 99)}.{draw.whole(0, 99):02d}",
        f"2024-{draw.whole(1, 12):02d}-{draw.whole(1, 28):02d}",
    ]


def _record(draw: Draw) -> dict[str, object]:
    number, name, city, good, count, price, date = _order(draw)
    return {
        "id": int(number),
        "customer": {"name": name, "city": city, "newsletter": draw.whole(0, 1) == 1},
        "items": [{"sku": f"{good[:3].upper()}-{draw.whole(100, 999)}", "count": int(count), "price": float(price)}],
        "tags": [draw.one(GOODS) for _ in range(draw.whole(0, 3))],
        "placed": f"{date}T{draw.whole(0, 23):02d}:{draw.whole(0, 59):02d}:00Z",
        "note": None,
    }
