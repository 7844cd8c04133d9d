"""The report: settings, results and example figures of a run, on one page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from mapet.errors import MapetError
from mapet.report import page
from mapet.report.between_runs import comparisons, results_table
from mapet.report.codebook import codebook_figures
from mapet.report.curves import curves
from mapet.report.drawing import Picture, slug
from mapet.report.facts import FEW, environment_tables, facts_table, settings_tables
from mapet.report.masks import mask_figures
from mapet.report.prediction import prediction_figure
from mapet.report.probe_bars import probe_bars
from mapet.report.probes import copies_words, summarise
from mapet.report.reading import ReportedRun, open_runs
from mapet.report.segmentation import segmentation_figures
from mapet.report.vitals import vital_figures, warning_texts
from mapet.runtime.files import atomic_file, write_text
from mapet.runtime.lock import only_writer
from mapet.runtime.progress import progress
from mapet.runtime.run_directory import RunDirectory

_OVERVIEW = "Overview"
_LONGEST_NAME = 100
# What values of another kind than mapet writes end in, where they are used.
_DAMAGE = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError)


def write_report(runs: Sequence[RunDirectory], out: Path | None = None) -> Path:
    """Writes one self-contained page about one or several runs, and its figures as PNG files beside it.

    A missing part is replaced by a sentence with the command that adds it.

    Args:
        runs: At least one; several are shown side by side.
        out: The page, by default report.html in the run, or report-with-OTHERS.html in the first of several; in a folder that is
            there, report.html. Its name ends in .html. Figures go to a folder named after it ("report-figures").

    Returns:
        The path of the page.

    Raises:
        CheckpointError: config.json of a run cannot be read.
        InUseError: Another process writes the page.
        StorageError: The page cannot be written.
    """
    runs = list({run.path.resolve(): run for run in runs}.values())
    out = _default_page(runs) if out is None else _page_at(Path(out))
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


def _page_at(out: Path) -> Path:
    """A browser knows a page by the end of its name."""
    if out.is_dir():
        return out / "report.html"
    return out if out.suffix.lower() in (".html", ".htm") else out.with_name(f"{out.name}.html")


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
                body = content()
                if body and heading != _OVERVIEW:
                    body = page.section(heading, body)
                sections.append(body)
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
            "The visual vocabulary": self._vocabularies,
            "Who sees what": partial(self._for_every_run, mask_figures),
            "Settings": partial(settings_tables, self.runs),
            "Environment": partial(environment_tables, self.runs),
        }

    def _show(self, pictures: Iterable[Picture]) -> str:
        picture_list = list(pictures)
        self.pictures += picture_list
        return page.figures(picture_list)

    def _probes(self) -> str:
        if any(run.results for run in self.runs):
            results = [result for run in self.runs for result in run.results]
            between = comparisons(self.runs) if len(self.runs) <= FEW else []
            sentences = [*copies_words(results), *between]
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

    def _vocabularies(self) -> str:
        """Runs on the same tokens have one vocabulary."""
        runs_on: dict[str, list[ReportedRun]] = {}
        for run in self.runs:
            runs_on.setdefault(run.tokens_folder, []).append(run)
        parts = []
        for first, *others in runs_on.values():
            shared = page.text(f"Also of {', '.join(run.title for run in others)}.") if others else ""
            parts.append(self._for_every_run(codebook_figures, lambda _, shared=shared: shared, [first]))
        return "".join(parts)

    def _for_every_run(
        self,
        draw: Callable[[ReportedRun], list[Picture]],
        words: Callable[[ReportedRun], str] = lambda _: "",
        runs: Sequence[ReportedRun] | None = None,
    ) -> str:
        parts = []
        for run in self.runs if runs is None else runs:
            try:
                body = self._show(draw(run))
            except (MapetError, OSError) as error:
                body = page.left_out(error)
            except _DAMAGE as error:
                body = page.left_out(f"a file of {run.run.path} holds what no run writes ({type(error).__name__}: {error}).")
            parts.append((page.heading(run.title, 3) if len(self.runs) > 1 else "") + words(run) + body)
        return "".join(parts)


def overview(runs: Sequence[ReportedRun]) -> str:
    """The first section: what the runs are worth, what of them cannot be read, and their facts side by side."""
    worth = [_summary(run, len(runs) > 1) for run in runs] if len(runs) <= FEW else [results_table(runs)]
    damaged = [page.left_out(remark) for run in runs for remark in run.left_out]
    return "".join([*worth, *damaged, facts_table(runs)])


def _prediction(run: ReportedRun) -> list[Picture]:
    return [prediction_figure(run)]


def _title(runs: Sequence[ReportedRun]) -> str:
    objectives = _listed(run.objective_title for run in runs)
    data = _listed(Path(run.data).name or run.data for run in runs)
    return f"{objectives} pre-training on {data}" + (f": {len(runs)} runs" if len(runs) > 1 else "")


def _listed(names: Iterable[str]) -> str:
    *others, last = dict.fromkeys(names)
    return f"{', '.join(others)} and {last}" if others else last


def _summary(run: ReportedRun, named: bool) -> str:
    who = f"{run.title}: " if named else ""
    if not run.results:
        return page.text(f"{who}Not evaluated yet. {_how_to_evaluate(run)}", "verdict")
    return page.text(who + summarise(run.results), "verdict")


def _how_to_evaluate(run: ReportedRun) -> str:
    finished = "" if run.run.backbone.is_dir() else "Let the pre-training finish; then "
    return f"{finished}`mapet evaluate knn,linear {run.run.path}` measures it, and `mapet report` shows it here."
