"""What a classifier finds on test images: scores of every class, in evaluation mode, without chance."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from mapet.data.loader import ViewRenderer, make_loader
from mapet.data.order import sequential_batches
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
    scores: dict[str, list[Tensor]] = {prefix: [] for prefix in models}
    labels = []
    view = EvaluationView(recipe.image_size, settings.crop_fraction)
    batches = sequential_batches(len(subject.test), settings.micro_batch or BATCH_SIZE)
    for model in models.values():
        model.eval()
    for loaded in make_loader(subject.test, ViewRenderer(view), batches, subject.workers, subject.device):
        subject.unreadable.record(loaded.unreadable)
        subject.record_keys(subject.test, loaded)
        inputs = normalise(loaded.images.to(subject.device, non_blocking=True), recipe.mean, recipe.std)
        labels.append(cast(Tensor, loaded.labels).to(subject.device))
        for prefix, model in models.items():
            with autocast(subject.device, settings.precision):
                scores[prefix].append(model(inputs).float())
    for prefix, model in models.items():
        model.train(training[prefix])
    found = {prefix: classified(torch.cat(some), torch.cat(labels)) for prefix, some in scores.items()}
    figures = {prefix + name: value for prefix, some in found.items() for name, value in some.figures().items()}
    values = {prefix + name: value for prefix, some in found.items() for name, value in some.values.items()}
    return Findings(figures, outcomes=Outcomes(values, torch.cat(labels).cpu()))
