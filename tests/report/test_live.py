"""`mapet runs --serve`: the page of the runs below a folder, on this machine alone."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mapet.errors import SettingsError
from mapet.report.live import server
from mapet.runtime.files import write_json
from mapet.runtime.run_directory import RunDirectory
from tests.browser import browse, needs_browser
from tests.command import mapet


@pytest.fixture
def running(tmp_path: Path) -> RunDirectory:
    """A run that has just logged two entries."""
    run = RunDirectory(tmp_path / "runs" / "<b>one")
    write_json(run.config, {"data": "somewhere", "science": {"objective": {"name": "mim"}}})
    write_json(run.environment, [])
    for step in (10, 20):
        run.append_metrics({"step": step, "loss": 5.0 - step / 10})
    return run


@pytest.fixture
def port(running: RunDirectory) -> Iterator[int]:
    with server(running.path.parent, 0) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.02,))
        thread.start()
        yield serving.server_address[1]
        serving.shutdown()
        thread.join()


def fetch(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer.status, content


def test_new_steps_of_a_running_run_appear(running: RunDirectory, port: int) -> None:
    (before,) = json.loads(fetch(port, "/runs.json")[1])
    assert before["cells"][:4] == ["<b>one", "running", "MIM", "20"]
    assert before["curve"] == [[10, 4.0], [20, 3.0]]
    running.append_metrics({"step": 30, "loss": 2.0})
    (after,) = json.loads(fetch(port, "/runs.json")[1])
    assert after["curve"][-1] == [30, 2.0]
    running.backbone.mkdir()
    (finished,) = json.loads(fetch(port, "/runs.json")[1])
    assert (finished["cells"][1], finished["curve"]) == ("finished", [])


def test_a_run_whose_loss_was_not_finite_has_failed(running: RunDirectory, port: int) -> None:
    (running.path / "nonfinite.json").write_text("{}")
    assert json.loads(fetch(port, "/runs.json")[1])[0]["cells"][1] == "failed"


@pytest.mark.parametrize(
    "path", ["/../etc/passwd", "//etc/passwd", "/%2e%2e/config.json", "/<b>one/config.json".replace("<", "%3C")]
)
def test_no_path_opens_a_file(port: int, path: str) -> None:
    assert fetch(port, path) == (404, "")


def test_other_methods_and_other_hosts_are_refused(port: int) -> None:
    assert fetch(port, "/", "POST")[0] == 501
    assert fetch(port, "/", Host=f"example.org:{port}")[0] == 403


@needs_browser
def test_in_a_browser(port: int, tmp_path: Path) -> None:
    shown = browse(f"http://127.0.0.1:{port}/", tmp_path / "profile", "--dump-dom", "--virtual-time-budget=2000")
    assert "1 runs, 1 of them running" in shown
    assert "&lt;b&gt;one" in shown
    assert '<polyline points="0,2 100,98"' in shown


def test_wrong_places(running: RunDirectory, port: int) -> None:
    wrong: list[tuple[Any, int, str]] = [(running.path / "nowhere", 0, "no folder"), (running.path, port, "another --port")]
    for folder, number, message in wrong:
        with pytest.raises(SettingsError, match=message):
            server(folder, number)


@pytest.mark.parametrize("option", [["--compare"], ["--json"], ["--where", "seed=1"]])
def test_options_that_have_no_meaning_with_the_live_page_are_refused(tmp_path: Path, option: list[str]) -> None:
    assert mapet("runs", str(tmp_path), "--serve", *option) == 2
