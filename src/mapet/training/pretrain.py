"""The main job: from a place with images to a pre-trained backbone in a run directory.

Whatever is missing on the way is made first (tokenizer, stored tokens); whatever a previous start has finished is used as it is.
"""

from __future__ import annotations

from pathlib import Path

from mapet.compat import VisionTransformer
from mapet.config.settings import PretrainSettings
from mapet.data.loader import UnreadableImages, step_batches
from mapet.data.sources import ImageSource, open_source, subset
from mapet.data.views import FixedView
from mapet.models.backbone import grid_size, patch_size
from mapet.models.saved import BackboneRecipe, save_backbone
from mapet.objectives import create_objective
from mapet.objectives.base import Objective
from mapet.runtime.device import choose_device
from mapet.runtime.files import recover
from mapet.runtime.progress import say
from mapet.runtime.run_directory import RunDirectory
from mapet.runtime.seeding import seeded_globally
from mapet.token_store.build import build_store
from mapet.token_store.keys import image_keys
from mapet.token_store.read import TokenStore
from mapet.tokenizers.base import Tokenizer, load_tokenizer
from mapet.tokenizers.fit import fit_tokenizer
from mapet.training.record import RunRecord
from mapet.training.trainer import Trainer


def pretrain(
    data: str,
    settings: PretrainSettings,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    tokens: str | Path | None = None,
) -> RunDirectory:
    """Pre-trains as `settings` say on the training images of `data`, or continues the run in `out`.

    Args:
        data: A location that `open_source` understands.
        settings: Of the run; their science must be that of a run that is continued.
        out: The run directory.
        tokenizer: A saved tokenizer; without one, the run fits its own.
        tokens: A token store that fits the images; without one, the run makes its own.

    Raises:
        MapetError: Before the optimizer moves, where anything does not fit; see `errors.py`.
    """
    run = RunDirectory(out)
    device = choose_device(settings.mechanics.device)
    recipe = backbone_recipe(settings)
    backbone = recipe.build(drop_path_rate=settings.training.drop_path)
    build_objective(settings, backbone, settings.tokenizer.vocab_size)
    source = open_source(data, "train")
    step_batches(len(source), settings.training.batch_size, settings.seed, 0, 0)  # refuses too few images before any work
    record = RunRecord(run, data, settings, tokenizer, tokens)
    keys = image_keys(source)
    store = _tokens(run, source, keys, settings, backbone, record)
    usable = store.match(source, keys)
    record.fix_inputs(store.tokenizer_fingerprint, [keys[index] for index in usable])
    objective = build_objective(settings, backbone, store.vocab_size)
    Trainer(objective, subset(source, usable), store, settings, run, device).run()
    save_backbone(run.backbone, recipe, objective.backbone)
    return run


def backbone_recipe(settings: PretrainSettings) -> BackboneRecipe:
    """What it takes to build the backbone of a run again, before or after training."""
    options = {"img_size": settings.image_size, **settings.backbone.options}
    training = settings.training
    return BackboneRecipe(settings.backbone.name, options, settings.image_size, training.mean, training.std, settings.seed)


def build_objective(settings: PretrainSettings, backbone: VisionTransformer, vocab_size: int) -> Objective:
    """The objective of a run on `backbone`, its own parameters drawn from the seed."""
    with seeded_globally(settings.seed, "objective"):
        objective = create_objective(
            settings.objective.name, backbone=backbone, vocab_size=vocab_size, **settings.objective.options
        )
    backbone.set_grad_checkpointing(settings.mechanics.activation_checkpointing)
    return objective


def _tokens(
    run: RunDirectory,
    source: ImageSource,
    keys: list[str],
    settings: PretrainSettings,
    backbone: VisionTransformer,
    record: RunRecord,
) -> TokenStore:
    """The store given, or one in the run directory, made if it is not complete yet; checked against the backbone."""
    if record.tokens is not None:
        store = TokenStore.open(record.tokens)
        store.check(load_tokenizer(record.tokenizer).fingerprint if record.tokenizer else None)
    else:
        unreadable = UnreadableImages(settings.mechanics.max_unreadable)
        store = build_store(
            source,
            _tokenizer(run, source, settings, backbone, record.tokenizer, unreadable),
            run.tokens,
            workers=settings.mechanics.workers,
            device=choose_device(settings.mechanics.device),
            unreadable=unreadable,
            keys=keys,
        )
        if unreadable.summary():
            say(unreadable.summary())
    view = FixedView(settings.image_size).describe()
    store.check(view=view, grid_size=grid_size(backbone), vocab_size=settings.tokenizer.vocab_size)
    return store


def _tokenizer(
    run: RunDirectory,
    source: ImageSource,
    settings: PretrainSettings,
    backbone: VisionTransformer,
    given: str | Path | None,
    unreadable: UnreadableImages,
) -> Tokenizer:
    if given is not None:
        return load_tokenizer(given)
    if not recover(run.tokenizer).is_dir():
        wanted = settings.tokenizer
        image_size = wanted.image_size or settings.image_size
        fitted = fit_tokenizer(
            source,
            features=wanted.features,
            feature_options=wanted.options,
            image_size=image_size,
            patch_size=image_size * patch_size(backbone) // settings.image_size,
            vocab_size=wanted.vocab_size,
            num_points=wanted.num_points,
            max_images=wanted.max_images,
            iterations=wanted.iterations,
            restarts=wanted.restarts,
            seed=settings.seed,
            device=choose_device(settings.mechanics.device),
            workers=settings.mechanics.workers,
            unreadable=unreadable,
        )
        fitted.save(run.tokenizer)
    return load_tokenizer(run.tokenizer)
