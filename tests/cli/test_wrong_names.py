from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import mapet

PROGRAM = """
import contextlib, io, json, sys
from mapet.cli.main import main
for words in json.loads(sys.argv[1]):
    sys.argv[1:], said = words.split(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            main()
    except SystemExit as end:
        print(json.dumps([words, end.code, said.getvalue(), "torch" in sys.modules]))
"""
WRONG_NAMES = (
    "evaluate knnn run",
    "evaluate linear:papr run",
    "evaluate transfer:knnn run",
    "pretrain digits --recipe digitz --out run",
    "pretrain digits --recipe digits --set training.lrr=3 --out run",
    "pretrain digits --recipe digits --set objective.name=mapett --out run",
    "objectives mimm",
)
NOTHING_THERE = (
    "pretrain no/where --recipe digits --out run",
    "tokenize no/where --tokenizer no/where --out run",
    "tokenize digits --tokenizer no/where --out run",
    "tokenizer fit no/where --out run",
    "tokenizer train no/where --teacher pixels --out run",
    "codebook no/where digits --out run",
    "compare no/where --recipe digits --objectives mim --out run",
    "evaluate knn no/where",
    "evaluate knn random:vit_tiny_patch16_224 no/where",
    "export no/where --to timm --out run",
)

TOO_LONG = tuple(words.replace("no/where", "x" * 300) for words in NOTHING_THERE)


def test_wrong_words_are_refused_before_torch_is_imported(tmp_path: Path) -> None:
    """All in one process, as none of them imports it."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(WRONG_NAMES + NOTHING_THERE + TOO_LONG)]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    endings = [json.loads(line) for line in printed.splitlines()]
    assert [words for words, *_ in endings] == [*WRONG_NAMES, *NOTHING_THERE, *TOO_LONG]
    for words, code, said, torch_is_imported in endings:
        assert (code, torch_is_imported) == (2, False), words
        there = "no/where" if words in NOTHING_THERE else "mapet: File name too long: xxx"
        expected = "Did you mean" if words in WRONG_NAMES else there
        assert expected in said, words


def test_a_path_that_may_not_be_looked_at_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stat = Path.stat

    def refuse(path: Path, **options: bool) -> os.stat_result:
        if "locked" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    assert mapet("evaluate", "knn", "locked/run") == 2
    assert capsys.readouterr().err.startswith("mapet: Permission denied: locked/run. Give another path")


def test_a_protocol_of_ones_own_needs_no_dot(tmp_path, monkeypatch) -> None:
    from mapet.evaluation.presets import protocol_of

    (tmp_path / "my_probe.py").write_text("from mapet.evaluation.probes.knn import KNN\n\n\nclass Mine(KNN):\n    name = 'mine'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert protocol_of("my_probe:Mine").name == "mine"
