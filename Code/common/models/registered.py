"""The backbones that this package adds to timm's registry; importing this module registers them.

``simple_vit_{tiny,small,base}_patch16_{160,224}`` have the published sizes of SimpleViT: depth 12, heads 64 wide.
``vit_digits``, ``vit_digits_narrow`` (half as wide) and ``simple_vit_digits`` are small enough to be trained from
scratch on the embedded digits in seconds; the first two learn their positions, starting from sine-cosine.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from common.models.simple_vit import simple_vit, sincos_position

DIGITS = {"embed_dim": 64, "num_heads": 2, "depth": 6, "mlp_ratio": 2.0, "patch_size": 4}
NARROW = {**DIGITS, "embed_dim": 32, "num_heads": 1}  # heads are as wide as those of the other, as of ViT-Ti, -S and -B
DIGITS_TEMPERATURE = 10.0  # a grid of 8 x 8 needs no slower waves


default_cfgs = {}  # name -> what the model expects; timm looks for it here


def _vit_digits(**kwargs) -> VisionTransformer:
    model = VisionTransformer(**kwargs)
    start = sincos_position(model.patch_embed.grid_size, model.embed_dim, DIGITS_TEMPERATURE)
    with torch.no_grad():
        model.pos_embed[:, model.num_prefix_tokens :] = start
    return model


def _register(
    name: str, make: Callable[..., VisionTransformer], sizes: dict, *, img_size: int, num_classes: int, **build
) -> None:
    """Add the model ``name`` to timm's registry; ``sizes`` are those of ``make``, ``build`` says how files are read."""
    expected = {
        "input_size": (3, img_size, img_size),
        "fixed_input_size": True,
        "num_classes": num_classes,
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "first_conv": None,
        "classifier": "head",
    }
    default_cfgs.update(generate_default_cfgs({name: expected}))

    def entrypoint(pretrained: bool = False, **kwargs) -> VisionTransformer:
        return build_model_with_cfg(make, name, pretrained, **build, **{**sizes, **kwargs})

    entrypoint.__name__ = entrypoint.__qualname__ = name
    register_model(entrypoint)


for _size, _heads in {"tiny": 3, "small": 6, "base": 12}.items():
    _sizes = {"embed_dim": 64 * _heads, "num_heads": _heads, "depth": 12, "patch_size": 16}
    for _side in (160, 224):
        _register(f"simple_vit_{_size}_patch16_{_side}", simple_vit, _sizes, img_size=_side, num_classes=1000)
for _name, _sizes in {"vit_digits": DIGITS, "vit_digits_narrow": NARROW}.items():
    _register(_name, _vit_digits, _sizes, img_size=32, num_classes=10, pretrained_filter_fn=checkpoint_filter_fn)
_register("simple_vit_digits", simple_vit, {**DIGITS, "temperature": DIGITS_TEMPERATURE}, img_size=32, num_classes=10)
