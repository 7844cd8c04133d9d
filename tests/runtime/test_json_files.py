"""F17, F19: JSON that anybody may have written ends in words, and a changed entry is noticed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mapet.errors import CheckpointError, ModelError
from mapet.runtime.json_files import parse_json, read_json, sealed, unsealed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[" * 100_000, "nests more than 100 levels"),
        ('{"a":' * 500 + "1" + "}" * 500, "nests more than 100 levels"),
        ("1" * 5_000, "a number of 5,000 digits"),
        ('{"a": 1, "a": 2}', "names 'a' twice"),
        ("\0", "Expecting value"),
    ],
)
def test_odd_texts_are_value_errors(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "\udc80"], "b": {"c": -3}}
    assert parse_json(json.dumps(value)) == value


def test_only_regular_files_of_the_right_kind_are_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match="it is a named pipe, not a regular file"):
        read_json(pipe)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ModelError, match="holds a list, not an object"):
        read_json(tmp_path / "list.json", dict, ModelError)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path / "bytes.json")


def test_a_seal_covers_every_entry(tmp_path: Path) -> None:
    values = {"name": "vit", "std": [0.5, 0.25]}
    kept = sealed(values)
    assert unsealed(kept, tmp_path) == values
    assert unsealed(values, tmp_path) == values  # files of older versions have none
    with pytest.raises(CheckpointError, match="not what was written"):
        unsealed(values, tmp_path, required=True)
    for changed in ({**kept, "std": [0.5, 0.26]}, {**kept, "more": 1}, {**kept, "own_sha256": "0"}):
        with pytest.raises(CheckpointError, match="not what was written"):
            unsealed(changed, tmp_path)
