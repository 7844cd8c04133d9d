"""The visual vocabulary of a run: patches that share a token, and how often every token is used."""

from __future__ import annotations

from mapet.report.drawing import Picture
from mapet.report.gallery import Vocabulary, vocabulary_figures
from mapet.report.reading import ReportedRun


def codebook_figures(run: ReportedRun) -> list[Picture]:
    """The most used tokens; random others; the usage of all codes."""
    sample = run.sample
    return vocabulary_figures(
        Vocabulary(
            title=run.title,
            ids=sample.ids,
            image=sample.images.__getitem__,
            usage=run.usage,
            seed=run.settings.seed,
            images="training images drawn by the seed" if run.sample_is_of_training else "images of its data drawn by the seed",
            counted=run.counted,
        )
    )
