"""The report: what was run, what it was worth, and what it looks like from inside, on one page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mapet.errors import MapetError
from mapet.report import page
from mapet.report.between_runs import comparisons
from mapet.report.codebook import codebook_figures
from mapet.report.curves import curves
from mapet.report.drawing import Picture, slug
from mapet.report.masks import mask_figures
from mapet.report.prediction import prediction_figure
from mapet.report.probe_bars import probe_bars
from mapet.report.probes import copies_words, summarise
from mapet.report.reading import ReportedRun, flat, open_runs
from mapet.report.segmentation import segmentation_figures
from mapet.report.vitals import vital_figures, warning_texts
from mapet.runtime.files import atomic_file, write_text
from mapet.runtime.lock import only_writer
from mapet.runtime.progress import format_seconds, progress
from mapet.runtime.run_directory import RunDirectory

_OVERVIEW = "Overview"
_LONGEST_NAME = 100
# What values of another kind than mapet writes end in, where they are used.
_DAMAGE = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError)


def write_report(runs: Sequence[RunDirectory], out: Path | None = None) -> Path:
    """Writes one self-contained page about one or several runs, and its figures as PNG files beside it.

    What a run does not have yet is left out, with a sentence that says what would bring it.

    Args:
        runs: At least one; several are shown side by side.
        out: The page, by default report.html in the run, or report-with-OTHERS.html in the first of several; figures go to a
            folder named after it ("report-figures").

    Returns:
        The path of the page.

    Raises:
        CheckpointError: config.json of a run cannot be read.
        InUseError: Another process writes the page.
        StorageError: The page cannot be written.
    """
    out = Path(out) if out is not None else _default_page(runs)
    with only_writer(out):
        report = _Report(open_runs(runs))
        content = report.page()
        for picture in report.pictures:
            with atomic_file(out.with_name(f"{out.stem}-figures") / f"{picture.name}.png") as unfinished:
                unfinished.write_bytes(picture.png)
        write_text(out, content)
    return out


def _default_page(runs: Sequence[RunDirectory]) -> Path:
    """Of several runs another page than the first run's own."""
    others = "-".join(slug(run.path.resolve().name) for run in runs[1:])
    return runs[0].path / f"report-with-{others[:_LONGEST_NAME]}.html" if others else runs[0].report


class _Report:
    """Collects the pictures while the page is put together."""

    def __init__(self, runs: list[ReportedRun]) -> None:
        self.runs = runs
        self.pictures: list[Picture] = []

    def page(self) -> str:
        """Section by section, with progress."""
        title, sections = _title(self.runs), []
        parts = self._parts()
        with progress("Report", len(parts)) as bar:
            for heading, content in parts.items():
                bar.note(heading)
                found = content()
                if found and heading != _OVERVIEW:
                    found = page.section(heading, found)
                sections.append(found)
                bar.advance()
            bar.note("")
        return page.page(title, [page.heading(title, 1), *filter(None, sections)])

    def _parts(self) -> dict[str, Callable[[], str]]:
        """What makes each section, under its title; what gives nothing has none."""
        return {
            _OVERVIEW: partial(overview, self.runs),
            "What the pre-training is worth": self._probes,
            "Training": self._curves,
            "Segmentation": self._segmentations,
            "Vital signs": partial(self._for_every_run, vital_figures, warning_texts),
            "One image, its tokens, and the model's confidence": partial(self._for_every_run, _prediction),
            "The visual vocabulary": partial(self._for_every_run, codebook_figures),
            "Who sees what": partial(self._for_every_run, mask_figures),
            **tables(self.runs),
        }

    def _show(self, pictures: Iterable[Picture]) -> str:
        shown = list(pictures)
        self.pictures += shown
        return page.figures(shown)

    def _probes(self) -> str:
        if any(run.results for run in self.runs):
            results = [result for run in self.runs for result in run.results]
            sentences = [*copies_words(results), *comparisons(self.runs)]
            return "".join(map(page.text, sentences)) + self._show([probe_bars(self.runs)])
        return page.left_out(_how_to_evaluate(self.runs[0]))

    def _segmentations(self) -> str:
        if not any(result.protocol.get("name") == "segment" for run in self.runs for result in run.results):
            return ""
        return self._for_every_run(segmentation_figures)

    def _curves(self) -> str:
        if any(run.metrics for run in self.runs):
            return self._show(curves(self.runs))
        run = self.runs[0]
        return page.left_out(f"{run.run.metrics} has no entries yet; they come while `mapet pretrain` runs.")

    def _for_every_run(
        self, draw: Callable[[ReportedRun], list[Picture]], words: Callable[[ReportedRun], str] = lambda _: ""
    ) -> str:
        parts = []
        for run in self.runs:
            try:
                shown = self._show(draw(run))
            except (MapetError, OSError) as error:
                shown = page.left_out(error)
            except _DAMAGE as error:
                shown = page.left_out(f"a file of {run.run.path} holds what no run writes ({type(error).__name__}: {error}).")
            parts.append((page.heading(run.title, 3) if len(self.runs) > 1 else "") + words(run) + shown)
        return "".join(parts)


def overview(runs: Sequence[ReportedRun]) -> str:
    """The first section: what the runs are worth, what of them cannot be read, and their facts side by side."""
    summaries = [_summary(run, len(runs) > 1) for run in runs]
    facts = [_facts(run) for run in runs]
    columns = ["", *(run.title for run in runs)]
    damaged = [page.left_out(remark) for run in runs for remark in run.left_out]
    return "".join([*summaries, *damaged]) + page.table(columns, [[name, *(fact[name] for fact in facts)] for name in facts[0]])


def tables(runs: Sequence[ReportedRun]) -> dict[str, Callable[[], str]]:
    """The last sections, by their headings."""
    return {
        "Settings": lambda: "".join(_settings_tables(runs)),
        "Environment": lambda: "".join(map(_environment_table, runs)),
    }


def _prediction(run: ReportedRun) -> list[Picture]:
    return [prediction_figure(run)]


def _title(runs: Sequence[ReportedRun]) -> str:
    objectives = " and ".join(dict.fromkeys(run.objective_title for run in runs))
    data = " and ".join(dict.fromkeys(Path(run.data).name or run.data for run in runs))
    return f"{objectives} pre-training on {data}" + (f": {len(runs)} runs" if len(runs) > 1 else "")


def _summary(run: ReportedRun, named: bool) -> str:
    who = f"{run.title}: " if named else ""
    if not run.results:
        return page.text(f"{who}Not judged yet. {_how_to_evaluate(run)}", "verdict")
    return page.text(who + summarise(run.results), "verdict")


def _how_to_evaluate(run: ReportedRun) -> str:
    finished = "" if run.run.backbone.is_dir() else "Let the pre-training finish; then "
    return f"{finished}`mapet evaluate knn,linear {run.run.path}` measures it, and `mapet report` shows it here."


def _facts(run: ReportedRun) -> dict[str, str]:
    latest = run.environments[-1] if run.environments else {}
    gpus = ", ".join(latest.get("gpus", []))
    machine = f"{latest.get('processor', 'unknown')}, {latest.get('cores', '?')} cores" + (f", {gpus}" if gpus else "")
    return {
        "Objective": f"{run.objective_title} {_pairs(run, 'objective.options.')}".strip(),
        "Backbone": f"{run.science.get('backbone.name', 'unknown')} {_pairs(run, 'backbone.options.')}".strip(),
        "Data": run.data,
        "Steps": f"{run.steps:,}" + ("" if run.run.backbone.is_dir() else " (not finished)"),
        "Images seen": f"{run.images_seen:,}",
        "Training time": format_seconds(run.training_seconds),
        "Science hash": str(run.config.get("science_hash", "unknown")),
        "Commit": str(latest.get("commit") or "unknown"),
        "Hardware": machine if latest else "unknown",
        "Command": str(latest.get("command", "unknown")),
    }


def _pairs(run: ReportedRun, prefix: str) -> str:
    pairs = [f"{name.removeprefix(prefix)} {_value(value)}" for name, value in run.science.items() if name.startswith(prefix)]
    return f"({', '.join(pairs)})" if pairs else ""


def _settings_tables(runs: Sequence[ReportedRun]) -> list[str]:
    several = " Rows that differ between the runs are marked." if len(runs) > 1 else ""
    return [
        page.heading("Science: what changes the result", 3),
        page.text(f"Hashed; a run is only continued with the same.{several}"),
        _settings_table(runs, [run.science for run in runs]),
        page.heading("Mechanics: how the work is done", 3),
        _settings_table(runs, [run.mechanics for run in runs]),
    ]


def _settings_table(runs: Sequence[ReportedRun], settings: Sequence[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for values in settings for name in values))
    rows = [[name, *(_value(values[name]) if name in values else "not set" for values in settings)] for name in names]
    return page.table(["", *(run.title for run in runs)], rows, [name for name, *values in rows if len(set(values)) > 1])


def _environment_table(run: ReportedRun) -> str:
    if not run.environments:
        return page.left_out(f"{run.run.environment} is missing; `mapet pretrain` writes it at every start.")
    starts = [f"Start {number}" if len(run.environments) > 1 else run.title for number in range(1, len(run.environments) + 1)]
    described = [flat(environment) for environment in run.environments]
    names = list(dict.fromkeys(name for values in described for name in values))
    rows = [[name, *(_value(values.get(name)) for values in described)] for name in names]
    title = page.heading(run.title, 3) if len(run.environments) > 1 else ""
    return title + page.table(["", *starts], rows, [name for name, *values in rows if len(set(values)) > 1 and name != "time"])


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
