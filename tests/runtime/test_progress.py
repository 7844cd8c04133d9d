from __future__ import annotations

import io
import sys
import time

import pytest
from rich.console import Console

from mapet.runtime import progress as module
from mapet.runtime.printable import printable
from mapet.runtime.progress import facts_once, format_seconds, progress, say, say_fact
from tests.command import mapet


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3599.6, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_seconds_are_written_as_people_do(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_log_file_gets_a_line_now_and_then(capsys, monkeypatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(module, "_SHARE_BETWEEN_LINES", 0.0)
    with progress("Working", total=4, start=2) as bar:
        bar.note("loss 1.5")
        bar.advance()
        bar.advance()
    assert capsys.readouterr().err.splitlines() == ["Working 3/4 in 0 s, eta 0 s  loss 1.5", "Working 4/4 in 0 s  loss 1.5"]


def test_a_long_job_prints_seldom(capsys, monkeypatch) -> None:
    """The lines of eight hours, one step a second, in a log file."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress("Working", total=8 * 3600) as bar:
        for _ in range(8 * 3600):
            now[0] += 1.0
            bar.advance()
    assert 50 < len(capsys.readouterr().err.splitlines()) < 150


def test_short_work_says_nothing(capsys) -> None:
    with progress("Working", total=2) as bar:
        bar.advance(2)
    assert capsys.readouterr().err == ""


def test_names_that_are_not_utf8_are_shown(capsys) -> None:
    say("caf\udce9.png, caf\u00e9.png")
    assert "caf\\udce9.png, caf\u00e9.png" in capsys.readouterr().err


def test_a_bar_waits_until_it_is_worth_showing(monkeypatch) -> None:
    for after, shown in ((0.0, True), (0.02, True), (60.0, False)):
        screen = Console(file=io.StringIO(), force_terminal=True)
        monkeypatch.setattr(module, "console", screen)
        with progress("Working", total=2, after=after) as bar:
            assert ("Working" in screen.file.getvalue()) is (after == 0)
            time.sleep(0.03)
            bar.advance()
        assert ("Working" in screen.file.getvalue()) is shown


def test_brackets_in_messages_are_no_markup(capsys) -> None:
    say("[red]paths[/red] like [0]")
    assert "[red]paths[/red] like [0]" in capsys.readouterr().err


HOSTILE = "a\x1b]0;owned\x07\x1b[2J\rb\x9b31m\u202egnp.\u2028c\x7f"


def test_control_characters_are_escaped(capsys) -> None:
    """F25."""
    shown = "a\\x1b]0;owned\\x07\\x1b[2J\\rb\\x9b31m\\u202egnp.\\u2028c\\x7f"
    assert printable(HOSTILE) == shown
    assert printable("two\nlines\tof text, caf\u00e9, \u6771\u4eac") == "two\nlines\tof text, caf\u00e9, \u6771\u4eac"
    say(HOSTILE)
    assert shown in capsys.readouterr().err


def test_a_command_prints_no_control_characters(tmp_path, capsys) -> None:
    """F25: names of files come back in results, errors and progress."""
    folder = tmp_path / "a\x1b[31mb"
    assert mapet("tokenizer", "random", "--out", folder, "-k", "8", "--image-size", "16", "--patch-size", "8") == 0
    assert mapet("evaluate", "tokens", folder) == 2
    assert mapet("codebook", folder / "none", "digits") == 2
    found = capsys.readouterr()
    assert "\x1b" not in found.out + found.err
    assert "a\\x1b[31mb" in found.out
    assert "a\\x1b[31mb" in found.err


def test_a_command_without_standard_streams_ends_like_others(tmp_path, monkeypatch) -> None:
    """F17: as Python starts where a scheduler has closed them."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    for number, code in enumerate((0, 2)):
        words = ("tokenizer", "random", "--out", tmp_path / "a", "-k", "8", "--image-size", "16", "--patch-size", str(8 - number))
        assert mapet(*words) == code


def test_a_fact_of_many_runs_is_said_once(capsys) -> None:
    """Whatever else is said is said each time, and so is a fact outside of the block."""
    with facts_once():
        for _ in range(2):
            say_fact("Holding out 2 images.")
            say("Done.")
    say_fact("Holding out 2 images.")
    assert capsys.readouterr().err.splitlines() == ["Holding out 2 images.", "Done.", "Done.", "Holding out 2 images."]
