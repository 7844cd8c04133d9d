"""What a classifier finds on test images: scores of every class, in evaluation mode, without chance."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from mapet.data.batch import LoadedBatch
from mapet.data.views import EvaluationView, normalise
from mapet.evaluation.finetuning.settings import FineTuneSettings
from mapet.evaluation.frozen_backbone import BATCH_SIZE, FrozenBackbone
from mapet.evaluation.outcomes import Outcomes, classified
from mapet.evaluation.protocol import Metrics
from mapet.models.spec import BackboneSpec
from mapet.runtime.device import autocast


@torch.inference_mode()
def evaluate_models(
    models: dict[str, nn.Module], spec: BackboneSpec, frozen: FrozenBackbone, settings: FineTuneSettings
) -> Metrics:
    """Accuracies of models on the subject's test images, which are loaded once for all of them.

    Args:
        models: Prefix of the figures' names to a classifier; its mode is put back.
        spec: How they are fed.
        frozen: For its test images.
        settings: Of the fine-tuning.

    Returns:
        For every prefix: prefix + "top1", "top5", "mean_per_class".
    """
    training = {prefix: model.training for prefix, model in models.items()}
    for model in models.values():
        model.eval()

    def evaluate(loaded: LoadedBatch) -> list[Tensor]:
        inputs = normalise(loaded.images.to(frozen.device, non_blocking=True), spec.mean, spec.std)
        with autocast(frozen.device, settings.precision):
            logits = [model(inputs).float() for model in models.values()]
        return [*logits, cast(Tensor, loaded.labels).to(frozen.device)]

    view = EvaluationView(spec.image_size, settings.crop_fraction)
    *scores, labels = frozen.compute(frozen.read(frozen.test, view, settings.micro_batch or BATCH_SIZE), evaluate)
    for prefix, model in models.items():
        model.train(training[prefix])
    outcomes = {prefix: classified(model_scores, labels) for prefix, model_scores in zip(models, scores, strict=True)}
    metrics = {prefix + name: value for prefix, outcome in outcomes.items() for name, value in outcome.metrics().items()}
    values = {prefix + name: value for prefix, outcome in outcomes.items() for name, value in outcome.values.items()}
    return Metrics(metrics, outcomes=Outcomes(values, labels.cpu()))
