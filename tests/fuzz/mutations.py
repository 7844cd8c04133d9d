"""Damage: the same seed, the same damage."""

from __future__ import annotations

import io
import json
import random
import zipfile
from typing import Any

_MOST_EDITS, _LONGEST = 4, 64
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF)
_ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**40,
    1.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "\x00",
    "\ud800",
    "a" * 5000,
    "../../etc/passwd",
    "os:system",
    "hf://datasets/a/b",
    [],
    {},
    [[[[]]]],
    {"": {}},
)


def damage_bytes(content: bytes, draws: random.Random) -> bytes:
    """`content` with one to four edits: bytes changed, removed, repeated, inserted or moved, or the end cut off."""
    damaged = bytearray(content)
    for _ in range(draws.randint(1, _MOST_EDITS)):
        at, length = draws.randrange(len(damaged) + 1), draws.randint(1, _LONGEST)
        match draws.randrange(7):
            case 0:
                if at < len(damaged):
                    damaged[at] ^= 1 << draws.randrange(8)
            case 1:
                damaged[at : at + 1] = bytes([draws.choice(_NUMBERS)])
            case 2:
                del damaged[at : at + length]
            case 3:
                damaged[at:at] = damaged[at : at + length] * draws.randint(1, 3)
            case 4:
                damaged[at:at] = draws.randbytes(length)
            case 5:
                damaged[at : at + 8] = draws.choice((b"\x00" * 8, b"\xff" * 8, b"\xff\xff\xff\x7f", b"99999999"))
            case _:
                del damaged[at:]
    return bytes(damaged)


def damage_zipped_pickle(content: bytes, draws: random.Random) -> bytes:
    """A file of torch.save whose pickle is damaged and whose checksums are right, as somebody who means harm would write it."""
    damaged = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(damaged, "w") as after:
        for entry in before.infolist():
            inside = before.read(entry)
            after.writestr(entry, damage_bytes(inside, draws) if entry.filename.endswith("data.pkl") else inside)
    return damaged.getvalue()


def damage_json(content: bytes, draws: random.Random) -> bytes:
    """A JSON text with one to three of its values replaced, removed, renamed or nested; one in four is damaged as bytes."""
    if draws.randrange(4) == 0:
        return damage_bytes(content, draws)
    tree = json.loads(content)
    for _ in range(draws.randint(1, 3)):
        tree = _changed(tree, draws)
    text = json.dumps(tree)
    match draws.randrange(60):
        case 0:
            text = "[" * 20_000 + "]" * 20_000
        case 1:
            text = text.replace("1", "1" * 6000, 1)
    return text.encode()


def damage_text(content: bytes, draws: random.Random) -> bytes:
    """A text with one to four edits out of what texts are made of; one in four is damaged as bytes."""
    if draws.randrange(4) == 0:
        return damage_bytes(content, draws)
    text = content.decode()
    for _ in range(draws.randint(1, _MOST_EDITS)):
        at = draws.randrange(len(text) + 1)
        odd = draws.choice(
            ("\n", "\r", ",", '"', ":", "=", "{", "}", "[", "]", "&a ", "*a", "\ufeff", "\x00", "-", ".", "9" * 30, "ä", "\t")
        )
        text = draws.choice(
            (text[:at] + odd + text[at:], text[:at] + text[at + draws.randint(1, 9) :], text[at:] + text[:at], text + text[:at])
        )
    return text.encode()


def _changed(tree: Any, draws: random.Random) -> Any:
    """`tree` with one value changed, somewhere in it."""
    if isinstance(tree, dict) and tree and draws.randrange(12):
        name = draws.choice([*tree])
        match draws.randrange(8):
            case 0:
                return {key: value for key, value in tree.items() if key != name}
            case 1:
                return {(f"{key}_" if key == name else key): value for key, value in tree.items()}
            case _:
                return {key: _changed(value, draws) if key == name else value for key, value in tree.items()}
    if isinstance(tree, list) and tree and draws.randrange(12):
        place = draws.randrange(len(tree))
        return [_changed(value, draws) if index == place else value for index, value in enumerate(tree)]
    if isinstance(tree, int | float) and draws.randrange(3) == 0:
        return draws.choice((-tree, tree + 1, tree * 1000, tree / 3, str(tree), [tree]))
    return draws.choice(_ODD_VALUES)
