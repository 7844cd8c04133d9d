"""A live page on this machine: the runs below a folder, and the curves of those that are running. Nobody else can open it."""

from __future__ import annotations

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mapet.errors import CheckpointError, SettingsError
from mapet.report import page
from mapet.report.listing import HEADINGS, list_runs
from mapet.report.reading import ReportedRun
from mapet.report.sorting import SORTING
from mapet.runtime.run_directory import RunDirectory

_POINTS = 200  # of a curve
_SECURITY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
_STYLE = """<style>
svg { width: 100%; height: 140px; display: block; } polyline { fill: none; stroke: var(--accent); stroke-width: 2;
  vector-effect: non-scaling-stroke; }
</style>"""
# Changes what has changed and nothing else, so that nothing flickers, and rows stay as they were sorted.
_SCRIPT = """<script>
const body = document.querySelector("tbody"), curves = document.querySelector(".figures"), state = document.querySelector("#state");
const set = (element, text) => { if (element.textContent !== text) element.textContent = text; };
const make = (parent, name, key) => {
  const old = [...parent.children].find(child => child.dataset.run === key);
  if (old) return old;
  const made = document.createElement(name); made.dataset.run = key; return parent.appendChild(made);
};
const drop = (parent, keys) => [...parent.children].forEach(child => { if (!keys.has(child.dataset.run)) child.remove(); });
const row = run => {
  const line = make(body, "tr", run.path);
  run.cells.forEach((text, column) => {
    const cell = line.children[column] || line.appendChild(document.createElement(column ? "td" : "th"));
    set(cell, text);
  });
};
const curve = run => {
  const figure = make(curves, "figure", run.path);
  if (!figure.firstChild) figure.innerHTML =
    '<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img"><polyline/></svg><figcaption></figcaption>';
  const xs = run.curve.map(point => point[0]), ys = run.curve.map(point => point[1]);
  const low = Math.min(...ys), high = Math.max(...ys), first = Math.min(...xs), last = Math.max(...xs);
  const at = (value, from, to) => to > from ? (value - from) / (to - from) : .5;
  const line = run.curve.map(([x, y]) => `${100 * at(x, first, last)},${98 - 96 * at(y, low, high)}`).join(" ");
  const drawn = figure.querySelector("polyline");
  if (drawn.getAttribute("points") !== line) drawn.setAttribute("points", line);
  const range = `between ${low.toPrecision(4)} and ${high.toPrecision(4)} since step ${first}`;
  set(figure.querySelector("figcaption"), `${run.path}: loss ${ys.at(-1).toPrecision(4)} at step ${last}, ${range}`);
};
const refresh = async () => {
  try {
    const runs = await (await fetch("runs.json", { cache: "no-store" })).json();
    const running = runs.filter(run => run.curve.length);
    runs.forEach(row); running.forEach(curve);
    drop(body, new Set(runs.map(run => run.path))); drop(curves, new Set(running.map(run => run.path)));
    set(state, `${runs.length} runs, ${runs.filter(run => run.cells[1] === "running").length} of them running.`);
  } catch (error) { set(state, "Nothing answers any more: `mapet runs --serve` was stopped, or the folder cannot be read."); }
  setTimeout(refresh, 3000);
};
refresh();
</script>"""


def live_page(folder: Path) -> str:
    """The page; its script fills it."""
    content = [
        _STYLE,
        page.heading(f"Runs below {folder}", 1),
        '<p id="state"></p>',
        '<div class="figures"></div>',
        page.table(HEADINGS, []),
        SORTING,
        _SCRIPT,
    ]
    return page.page("Runs", content)


def live_runs(folder: Path) -> list[dict[str, Any]]:
    """Path, cells and, of a running one, the curve of every run: [[step, loss], ...]."""
    runs = list_runs(folder)
    return [
        {
            "path": os.path.relpath(run.path, folder),
            "cells": run.cells(folder),
            "curve": _curve(Path(run.path)) if run.state == "running" else [],
        }
        for run in runs
    ]


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """Answers on 127.0.0.1 once `serve_forever` is called. What is asked for never names a file.

    Args:
        folder: Searched with everything below it, at every question.
        port: 0 for any that is free.

    Raises:
        SettingsError: There is no such folder, or the port is taken or not allowed.
    """
    list_runs(folder)

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in ("127.0.0.1", "localhost"):  # another site's name that leads here
                self._answer(403, "text/plain", "Open http://127.0.0.1 instead.")
            elif self.path == "/":
                self._answer(200, "text/html", live_page(folder))
            elif self.path == "/runs.json":
                self._answer(200, "application/json", json.dumps(live_runs(folder)))
            else:
                self._answer(204 if self.path == "/favicon.ico" else 404, "text/plain", "")

        def _answer(self, status: int, kind: str, content: str) -> None:
            data = content.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Security-Policy", _SECURITY)
            if status != 204:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Is quiet."""

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Answers)
    except (OSError, OverflowError) as error:
        raise SettingsError(f"Nothing can be served on port {port}: {error}. Give another --port.") from None


def serve(folder: Path, port: int) -> None:
    """Serves the page until Ctrl-C."""
    with server(folder, port) as serving:
        print(f"http://127.0.0.1:{serving.server_address[1]} shows the runs below {folder}; Ctrl-C ends it.", flush=True)
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            return


def _curve(path: Path) -> list[list[float]]:
    try:
        metrics = ReportedRun(RunDirectory.existing(path), path.name).metrics
    except CheckpointError:
        return []
    stride = max(1, len(metrics) // _POINTS)
    return [[entry["step"], entry["loss"]] for entry in [*metrics[:-1:stride], *metrics[-1:]]]
