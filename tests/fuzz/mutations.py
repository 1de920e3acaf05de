"""Ways to damage a file: its bytes, the JSON in it, and the header of a `.safetensors` file."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, False, "", [], {}, [[]], [None], {"": {}}, [1] * 999, {"a": 1}, [2**62, 4], [0]),
    *(0, -1, 1, 2, 2**31 - 1, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, 10**400),
    *(0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf")),
    *("\0", "a\nb", "\x1b[2J\x1b]0;x\x07", "../../../etc/passwd", "\ud800", "NaN", "x" * 9999),
    *("topn", "best", "drop", "F32", "F64", "BOOL"),
)
WORDS = (b"\xff" * 8, b"\0" * 8, struct.pack("<q", -1), struct.pack("<Q", 2**40), struct.pack("<Q", 2**63), b"[" * 64)
FLOATS = (float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e-45, 3e38, -3e38)


def damaged_bytes(rng: random.Random, blob: bytes) -> bytes:
    """One to four small damages of the bytes."""
    data = bytearray(blob)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.choice((1, 8, 300)))
        elif kind == 3:
            del data[at : at + rng.choice((1, 4, 100))]
        elif kind == 4:
            data[at : at + 8] = rng.choice(WORDS)
        elif kind == 5:
            piece = data[at : at + 200]
            data[at:at] = piece * rng.choice((1, 5))
        else:
            data[at : at + 1] = bytes([rng.randrange(256)])
    return bytes(data)


def damaged_json(rng: random.Random, data: Any) -> Any:
    """A copy of a JSON value with one to three of its places replaced, removed, doubled, swapped or renamed."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(data))
        if not places:
            return copy.deepcopy(rng.choice(VALUES))
        parent, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind <= 2:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 3:
            del parent[key]
        elif kind == 4 and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        elif kind == 4:
            parent[str(key) + "_"] = parent.pop(key)
        else:
            other, name = rng.choice(places)
            parent[key] = copy.deepcopy(other[name]) if _has(other, name) else None
    return data


def _places(data: Any) -> Any:
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in children:
        yield data, key
        yield from _places(value)


def _has(parent: Any, key: Any) -> bool:
    return key in parent if isinstance(parent, dict) else key < len(parent)


def json_bytes(data: Any) -> bytes:
    """As Python writes it, with NaN and half surrogate pairs where the data has them."""
    return json.dumps(data).encode("utf-8", "surrogatepass")


def unpack(blob: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body of a `.safetensors` file."""
    size = int.from_bytes(blob[:8], "little")
    return json.loads(blob[8 : 8 + size]), blob[8 + size :]


def pack(header: Any, body: bytes) -> bytes:
    """A file of any header and body, however wrong."""
    text = json_bytes(header)
    return struct.pack("<Q", len(text)) + text + body


def damaged_safetensors(rng: random.Random, blob: bytes) -> bytes:
    """Damage of the header, of the metadata, of the numbers, or of the bytes of a `.safetensors` file."""
    header, body = unpack(blob)
    kind = rng.randrange(5)
    if kind == 0:
        return damaged_bytes(rng, blob)
    if kind == 1:
        return pack(damaged_json(rng, header), body)
    if kind == 2:
        data = bytearray(body)
        for _ in range(rng.choice((1, 9))):
            at = 4 * rng.randrange(len(data) // 4)
            data[at : at + 4] = struct.pack("<f", rng.choice(FLOATS))
        return pack(header, bytes(data))
    if kind == 3:
        return struct.pack("<Q", rng.choice((0, 1, 7, 2**20, 2**32, 2**62, 2**64 - 1))) + blob[8:]
    metadata = header["__metadata__"]
    name = rng.choice(sorted(metadata))
    try:
        inner = json_bytes(damaged_json(rng, json.loads(metadata[name]))).decode("utf-8", "replace")
    except ValueError:
        inner = str(rng.choice(VALUES))
    return pack(header | {"__metadata__": metadata | {name: inner}}, body)
