"""The options of timm's ViTs that settings and files may give: numbers, switches and names that timm looks up in its own tables.

`timm.create_model` also takes what fetches weights from any address, unpickles a file, or is code (pretrained_cfg, checkpoint_path,
block_fn). None of these is here: whatever is not in this list is refused, wherever it was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mapet.errors import MapetError, SettingsError, allowed_values, nearest

LARGEST_IMAGE = 2**14
LARGEST_VOCABULARY = 2**20

_Pixels = Annotated[int, Field(ge=1, le=LARGEST_IMAGE)]
_Patch = Annotated[int, Field(ge=1, le=1024)]
Width = Annotated[int, Field(ge=1, le=2**14)]
_Few = Annotated[int, Field(ge=1, le=512)]
Heads = _Few
Depth = Annotated[int, Field(ge=0, le=512)]
_Rate = Annotated[float, Field(ge=0, lt=1)]
_Pair = Field(min_length=2, max_length=2)
_Name = Annotated[str, Field(pattern=r"^\w*$", max_length=40)]


class _Options(BaseModel):
    """Arguments of timm's VisionTransformer and Beit, in their order; the defaults are timm's and not used."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    img_size: _Pixels | Annotated[list[_Pixels], _Pair] | tuple[_Pixels, _Pixels] = 224
    patch_size: _Patch | Annotated[list[_Patch], _Pair] | tuple[_Patch, _Patch] = 16
    in_chans: _Few = 3
    num_classes: Annotated[int, Field(ge=0, le=LARGEST_VOCABULARY)] = 0
    global_pool: Literal["", "avg", "avgmax", "max", "token", "map", "prr"] = "token"
    embed_dim: Width = 768
    depth: _Few = 12
    num_heads: Heads = 12
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4
    qkv_bias: bool = True
    qk_norm: bool = False
    scale_attn_norm: bool = False
    scale_mlp_norm: bool = False
    proj_bias: bool = True
    init_values: float | None = None
    class_token: bool = True
    pos_embed: Literal["", "none", "learn"] = "learn"
    no_embed_class: bool = False
    reg_tokens: Annotated[int, Field(ge=0, le=1024)] = 0
    pre_norm: bool = False
    final_norm: bool = True
    fc_norm: bool | None = None
    pool_include_prefix: bool = False
    dynamic_img_size: bool = False
    dynamic_img_pad: bool = False
    drop_rate: _Rate = 0
    pos_drop_rate: _Rate = 0
    patch_drop_rate: _Rate = 0
    proj_drop_rate: _Rate = 0
    attn_drop_rate: _Rate = 0
    drop_path_rate: _Rate = 0
    weight_init: Literal["skip", "reset", "jax", "jax_nlhb", "moco", ""] = ""
    fix_init: bool = False
    embed_norm_layer: _Name | None = None
    norm_layer: _Name | None = None
    act_layer: _Name | None = None
    swiglu_mlp: bool = False
    scale_mlp: bool = False
    use_abs_pos_emb: bool = True
    use_rel_pos_bias: bool = False
    use_shared_rel_pos_bias: bool = False
    head_init_scale: float = 0.001
    use_fc_norm: bool | None = None


def check_architecture(options: Any, error: type[MapetError] = SettingsError, where: str = "The options") -> None:
    """Refuses options of a ViT that are not in the list, or whose value is of another type.

    Args:
        options: Keyword arguments of `timm.create_model`.
        error: The class of what is raised.
        where: What messages call the options.

    Raises:
        MapetError: An `error` that names the first option that is not allowed.
    """
    if not isinstance(options, Mapping):
        raise error(f"{where} are {options!r:.80}; they must be names with values.")
    check_names(options, error, where)
    try:
        _Options.model_validate(dict(options))
    except ValidationError as problems:
        problem = problems.errors()[0]
        name = str(problem["loc"][0])
        allowed = allowed_values([other for other in problems.errors() if other["loc"][0] == name])
        if problem["type"] == "extra_forbidden":
            raise error(f"{where}: a ViT has no option '{name}' that may be set. {nearest(name, _Options.model_fields)}") from None
        raise error(f"{where}: {name} = {options[name]!r:.80} is not allowed. Allowed: {allowed}.") from None


def check_names(options: Mapping[Any, Any], error: type[MapetError] = SettingsError, where: str = "The options") -> None:
    """Refuses names of options that are no identifiers, such as `patch_size:8` (YAML needs a blank after the colon).

    Raises:
        MapetError: An `error` that names the first one.
    """
    for name in options:
        if not (isinstance(name, str) and name.isidentifier()):
            blank = " YAML needs a blank behind the colon: {name: value}." if ":" in str(name) else ""
            raise error(f"{where}: {str(name)!r:.80} is no name of an option.{blank}")
