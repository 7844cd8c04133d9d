"""What a classifier finds on test images: scores of every class, in evaluation mode, without chance."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from mapet.data.batch import LoadedBatch
from mapet.data.views import EvaluationView, normalise
from mapet.evaluation.finetuning.settings import FineTuneSettings
from mapet.evaluation.outcomes import Outcomes, classified
from mapet.evaluation.protocol import Findings
from mapet.evaluation.subject import BATCH_SIZE, Subject
from mapet.models.spec import BackboneRecipe
from mapet.runtime.device import autocast


@torch.inference_mode()
def judge_models(models: dict[str, nn.Module], recipe: BackboneRecipe, subject: Subject, settings: FineTuneSettings) -> Findings:
    """Accuracies of models on the subject's test images, which are loaded once for all of them.

    Args:
        models: Prefix of the figures' names to a classifier; its mode is put back.
        recipe: How they are fed.
        subject: For its test images.
        settings: Of the fine-tuning.

    Returns:
        For every prefix: prefix + "top1", "top5", "mean_per_class".
    """
    training = {prefix: model.training for prefix, model in models.items()}
    for model in models.values():
        model.eval()

    def judge(loaded: LoadedBatch) -> list[Tensor]:
        inputs = normalise(loaded.images.to(subject.device, non_blocking=True), recipe.mean, recipe.std)
        with autocast(subject.device, settings.precision):
            found = [model(inputs).float() for model in models.values()]
        return [*found, cast(Tensor, loaded.labels).to(subject.device)]

    view = EvaluationView(recipe.image_size, settings.crop_fraction)
    *scores, labels = subject.compute(subject.read(subject.test, view, settings.micro_batch or BATCH_SIZE), judge)
    for prefix, model in models.items():
        model.train(training[prefix])
    found = {prefix: classified(some, labels) for prefix, some in zip(models, scores, strict=True)}
    figures = {prefix + name: value for prefix, some in found.items() for name, value in some.figures().items()}
    values = {prefix + name: value for prefix, some in found.items() for name, value in some.values.items()}
    return Findings(figures, outcomes=Outcomes(values, labels.cpu()))
