"""The main job: from a place with images to a pre-trained backbone in a run directory.

Whatever is missing on the way is made first (tokenizer, stored tokens); whatever a previous start has finished is used as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mapet.checkpoints.backbone_folder import save_backbone
from mapet.compat import VisionTransformer
from mapet.config.settings import PretrainSettings
from mapet.data.order import step_batches
from mapet.data.regions import regions_of
from mapet.data.skipped import UnreadableImages
from mapet.data.source import ImageSource, subset, with_keys
from mapet.data.sources import open_source
from mapet.engine.callbacks import Monitor
from mapet.engine.parallel import whole_state
from mapet.errors import SettingsError, TokenizerError
from mapet.health.signs import VitalSigns
from mapet.models.backbone import grid_size, patch_size
from mapet.models.spec import BackboneSpec
from mapet.objectives import OBJECTIVES, create_objective
from mapet.objectives.base import Objective
from mapet.pretraining.record import RunRecord
from mapet.pretraining.training import PreTraining
from mapet.runtime.device import choose_device
from mapet.runtime.files import recover
from mapet.runtime.processes import barrier, only_writers, process_group, require_agreement
from mapet.runtime.progress import say
from mapet.runtime.rank import Processes, this_process
from mapet.runtime.run_directory import RunDirectory
from mapet.runtime.seeding import seeded_globally
from mapet.token_store.build import build_store
from mapet.token_store.keys import image_keys
from mapet.token_store.read import TokenStore
from mapet.token_store.token_source import NoTokens, OnlineTokens, StoredTokens, TokenSource
from mapet.tokenizers.base import Tokenizer
from mapet.tokenizers.fit import fit_tokenizer
from mapet.tokenizers.fit_settings import FitSettings
from mapet.tokenizers.load import load_tokenizer


def pretrain(
    data: str,
    settings: PretrainSettings,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    tokens: str | Path | None = None,
    monitors: Sequence[Monitor] = (),
) -> RunDirectory:
    """Pre-trains with `settings` on the training images of `data`, or continues the run in `out`.

    Args:
        data: A location that `open_source` understands.
        settings: Of the run; their science must be that of a run that is continued.
        out: The run directory.
        tokenizer: A saved tokenizer; without one, the run fits its own.
        tokens: A token store that fits the images and the view; without one, the run makes its own. The online view has none.
        monitors: Who watches besides the vital signs, such as `mapet.evaluation.online.OnlineProbe(settings)`.

    Raises:
        MapetError: Before the optimizer moves, where anything does not fit; see `errors.py`.
    """
    if settings.mechanics.probe_every is not None and not monitors:
        raise SettingsError(
            f"mechanics.probe_every is {settings.mechanics.probe_every:g}, but no monitor is there that probes. Give pretrain() "
            "monitors=[mapet.evaluation.online.OnlineProbe(settings)], as `mapet pretrain` does, or leave it out."
        )
    run = RunDirectory(out)
    device = choose_device(settings.mechanics.device)
    with process_group(device, settings.mechanics.longest_wait) as processes, only_writers(run.path, processes):
        _pretrain(data, settings, run, tokenizer, tokens, monitors, processes, processes.device(device))
    return run


def _pretrain(
    data: str,
    settings: PretrainSettings,
    run: RunDirectory,
    tokenizer: str | Path | None,
    tokens: str | Path | None,
    monitors: Sequence[Monitor],
    processes: Processes,
    device: torch.device,
) -> None:
    """The work of `pretrain` in one of its processes, in a run directory that nobody else writes."""
    spec = backbone_spec(settings)
    backbone = spec.build(drop_path_rate=settings.training.drop_path)
    objective = build_objective(settings, backbone)
    needs_tokens = "tokens" in objective.needs
    record = RunRecord(run, data, settings, tokenizer, tokens)
    loaded_tokenizer, loaded_store = _load_inputs(record, settings, backbone, needs_tokens)
    source = open_source(data, "train")
    for monitor in monitors:
        monitor.check(source)
    # Too few images are refused before any work.
    step_batches(len(source), settings.training.batch_size, settings.seed, 0, 0, processes.rank, processes.world)
    source = with_keys(source)
    require_agreement({"settings": settings.science_hash, "images": "\n".join(image_keys(source))})
    if processes.rank == 0:
        record.begin()
    unreadable = UnreadableImages(settings.mechanics.max_unreadable)
    token_source: TokenSource = NoTokens()
    if needs_tokens and settings.view.name == "online":
        token_source = OnlineTokens(loaded_tokenizer or _run_tokenizer(run, source, settings, backbone, unreadable), device)
    elif needs_tokens:
        token_source = StoredTokens(loaded_store or _run_store(run, source, settings, backbone, loaded_tokenizer, unreadable))
    usable, keys = token_source.known_images(source, unreadable), image_keys(source)
    if unreadable.summary():
        say(unreadable.summary())
    record.fix_inputs(token_source.fingerprint, [keys[index] for index in usable], writes=processes.rank == 0)
    watching = [VitalSigns(), *monitors]
    skipped_before, images = len(unreadable), subset(source, usable)
    try:
        PreTraining(
            objective, images, token_source, settings, run, device, monitors=watching, unreadable=unreadable, processes=processes
        ).run()
    finally:
        if processes.rank == 0:
            record.count_unreadable(unreadable.among(images))
    if len(unreadable) > skipped_before:
        say(unreadable.summary())
    weights = whole_state(objective.backbone)
    if processes.rank == 0:
        save_backbone(run.backbone, spec, weights)
    barrier()


def backbone_spec(settings: PretrainSettings) -> BackboneSpec:
    """What it takes to build the backbone of a run again, before or after training."""
    options = {"img_size": settings.image_size, **settings.backbone.options}
    training = settings.training
    return BackboneSpec(settings.backbone.name, options, settings.image_size, training.mean, training.std, settings.seed)


def build_objective(settings: PretrainSettings, backbone: VisionTransformer) -> Objective:
    """The objective of a run on `backbone`, its own parameters drawn from the seed; one on pixels gets their scale."""
    name, training = settings.objective.name, settings.training
    kind = OBJECTIVES.get(name)  # refuses code that a file names
    scale = {"mean": training.mean, "std": training.std} if "pixels" in kind.needs else {}
    with seeded_globally(settings.seed, "objective"):
        options = scale | settings.objective.options
        objective = create_objective(name, backbone=backbone, vocab_size=settings.tokenizer.vocab_size, **options)
    return objective


def _load_inputs(
    record: RunRecord, settings: PretrainSettings, backbone: VisionTransformer, needs_tokens: bool
) -> tuple[Tokenizer | None, TokenStore | None]:
    """What the run was given now or when it was begun; what does not fit the recipe or the backbone is refused before any work."""
    if not needs_tokens:
        if unused := record.tokenizer or record.tokens:
            raise SettingsError(
                f"The objective '{settings.objective.name}' predicts no visual tokens, so that {unused} is of no use to it. Leave "
                "out --tokenizer and --tokens."
            )
        return None, None
    tokenizer = load_tokenizer(record.tokenizer) if record.tokenizer else None
    store = TokenStore.open(record.tokens) if record.tokens else None
    vocab_size, grid = settings.tokenizer.vocab_size, grid_size(backbone)
    if store is not None and settings.view.name == "online":
        raise SettingsError(
            f"The online view shows crops that no store holds, so that the tokens in {record.tokens} cannot be used. Give "
            "--tokenizer in place of --tokens, or set view.name to fixed or stored."
        )
    if store is None and tokenizer is None:
        fit_settings(settings, backbone)
    elif store is not None:
        view = regions_of(settings.view, settings.seed).describe()
        store.check(tokenizer.fingerprint if tokenizer else None, view, grid, vocab_size)
    elif tokenizer is not None and tokenizer.vocab_size != vocab_size:
        raise TokenizerError(
            f"The tokenizer {record.tokenizer} has a vocabulary of {tokenizer.vocab_size} codes, but {vocab_size} are set. Set "
            f"tokenizer.vocab_size to {tokenizer.vocab_size}, or give a tokenizer of {vocab_size} codes."
        )
    elif tokenizer is not None and tokenizer.grid_size != grid:
        (rows, columns), (patch_rows, patch_columns) = tokenizer.grid_size, grid
        raise TokenizerError(
            f"The tokenizer {record.tokenizer} makes {rows} x {columns} tokens an image, but the backbone {patch_rows} x "
            f"{patch_columns} patches. Choose image and patch size so that image size / patch size is {rows} x {columns}, or give "
            f"a tokenizer for {patch_rows} x {patch_columns}."
        )
    return tokenizer, store


def _tokenizer_patch_size(settings: PretrainSettings, backbone: VisionTransformer) -> int:
    """Of a tokenizer that the run fits itself: as many patches as the backbone makes, at the tokenizer's own image size."""
    image_size, patch = settings.tokenizer.image_size or settings.image_size, patch_size(backbone)
    size, rest = divmod(image_size * patch, settings.image_size)
    if rest:
        side = settings.image_size // patch
        raise SettingsError(
            f"tokenizer.image_size = {image_size}: the backbone makes {side} patches a side, and the tokenizer must make as many. "
            f"Give a multiple of {side}, such as {max(1, image_size // side) * side}."
        )
    return size


def fit_settings(settings: PretrainSettings, backbone: VisionTransformer) -> FitSettings:
    """Of a tokenizer that the run fits itself."""
    tokenizer_settings = settings.tokenizer
    return FitSettings(
        features=tokenizer_settings.features,
        feature_options=tokenizer_settings.options,
        image_size=tokenizer_settings.image_size or settings.image_size,
        patch_size=_tokenizer_patch_size(settings, backbone),
        vocab_size=tokenizer_settings.vocab_size,
        num_points=tokenizer_settings.num_points,
        max_images=tokenizer_settings.max_images,
        iterations=tokenizer_settings.iterations,
        restarts=tokenizer_settings.restarts,
        seed=settings.seed,
    )


def _run_store(
    run: RunDirectory,
    source: ImageSource,
    settings: PretrainSettings,
    backbone: VisionTransformer,
    tokenizer: Tokenizer | None,
    unreadable: UnreadableImages,
) -> TokenStore:
    """The store in the run directory, made with the tokenizer given or one of its own; completed if need be."""
    return build_store(
        source,
        tokenizer or _run_tokenizer(run, source, settings, backbone, unreadable),
        run.tokens,
        regions=regions_of(settings.view, settings.seed),
        workers=settings.mechanics.workers,
        device=choose_device(settings.mechanics.device),
        unreadable=unreadable,
        rank=this_process().rank,
        world=this_process().world,
    )


def _run_tokenizer(
    run: RunDirectory,
    source: ImageSource,
    settings: PretrainSettings,
    backbone: VisionTransformer,
    unreadable: UnreadableImages,
) -> Tokenizer:
    if not recover(run.tokenizer).is_dir():
        fit_tokenizer(
            source,
            fit_settings(settings, backbone),
            out=run.tokenizer,
            memory=int(settings.mechanics.memory * 2**30),
            device=choose_device(settings.mechanics.device),
            workers=settings.mechanics.workers,
            unreadable=unreadable,
        )
    return load_tokenizer(run.tokenizer)
