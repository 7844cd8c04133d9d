"""Differences between several runs by the same protocol on the same test images, paired image by image."""

from __future__ import annotations

from collections.abc import Sequence

from mapet.errors import CheckpointError
from mapet.evaluation.intervals import describe, paired_interval
from mapet.evaluation.protocol import METRICS, Result
from mapet.report.probes import protocol_name, protocol_words
from mapet.report.reading import ReportedRun


def comparisons(runs: Sequence[ReportedRun]) -> list[str]:
    """One sentence for every protocol and every run behind the first: by how much it differs from the first, with the interval."""
    sentences = []
    for first in runs[0].results if len(runs) > 1 else []:
        for run in runs[1:]:
            same = [other for other in run.results if (other.protocol_hash, other.data) == (first.protocol_hash, first.data)]
            sentences += [f"{run.title} against {runs[0].title}, {_compared(runs[0], first, run, other)}." for other in same]
    return sentences


def _compared(run: ReportedRun, first: Result, other_run: ReportedRun, other: Result) -> str:
    words = ", ".join(filter(None, (protocol_name(first), protocol_words(first), METRICS.get(first.metric, first.metric))))
    difference = other.value - first.value
    try:
        interval = paired_interval(run.outcomes_of(first), other_run.outcomes_of(other), first.metric)
    except CheckpointError:
        return f"{words}: {describe(difference, None)} (no interval: outcomes of single images are not kept for both)"
    return f"{words}: {describe(difference, interval)}"
