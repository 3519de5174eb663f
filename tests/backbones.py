"""One small member of every supported backbone family, with random weights."""

import copy
from functools import cache

import timm
import torch

import common.models.registered  # noqa: F401  adds simple_vit to timm's registry
from common.models.support import obstacle
from common.reducers import list_reducers
from common.reducers.slimming_plan import SlimmingPlan

NARROW = {"depth": 4, "embed_dim": 96, "num_heads": 3}  # what a family adds is in its layers, not in their width
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 64}),
    "vit-rectangle-depth7": ("vit_tiny_patch16_224", {"img_size": (64, 96), "depth": 7}),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", {"img_size": 64}),
    "deit3-layerscale": ("deit3_small_patch16_224", {"img_size": 64, **NARROW}),
    "dinov2-registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "num_classes": 10, **NARROW}),
    "qk-norm-gap": ("vit_medium_patch16_gap_240", {"img_size": 64, "qk_norm": True, "num_classes": 10, **NARROW}),
    "siglip-map": ("vit_base_patch16_siglip_224", {"img_size": 64, "num_classes": 10, **NARROW}),
    "cls-avg": ("vit_tiny_patch16_224", {"img_size": 64, "global_pool": "avg", "depth": 4}),
    "simple-vit": ("simple_vit_tiny_patch16_160", {"img_size": 64, "depth": 4}),
}

# variants beyond the defaults that must honour the same contract
VARIANTS = [
    "topk:head_fusion=mean",
    "ats:parity=true",
    "ats:padding=budget",
    "patchmerger:parity=true",
    "tome:parity=true",
    "kmedoids:parity=true",
    "kmedoids:equal_weight=true",
    "dpcknn:equal_weight=true",
]
IDLING = [
    "idle_mlp:attention=standard",
    "idle_mlp:attention=cls_sees_all",
    "idle_mlp:context=both",
    "idle_mlp:re_entry=false",
    "idle_topk:re_entry=false",
]
ADAPTIVE = ["ats:sampler=random", "idle_mlp:score_threshold=0.5", "idle_oracle:tau=0.5"]  # images differ in number


def make(family: str) -> torch.nn.Module:
    """The family's model in eval mode, its layer scales raised so that every branch counts.

    Each call gives a copy of its own, and leaves torch's random state where building the model left it.
    """
    vit, state = _built(family)
    torch.set_rng_state(state)
    return copy.deepcopy(vit)


@cache
def _built(family: str) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    name, options = FAMILIES[family]
    vit = timm.create_model(name, **options).eval()
    for block in vit.blocks:
        if hasattr(block.ls1, "gamma"):
            torch.nn.init.constant_(block.ls1.gamma, 0.5)
            torch.nn.init.constant_(block.ls2.gamma, 0.5)
    torch.nn.init.normal_(vit.head.weight, std=0.02)
    return vit, torch.get_rng_state()


def applicable_reducers(vit: torch.nn.Module) -> list[str]:
    """The methods that this backbone can run: those that read the CLS token need one."""
    return [reducer for reducer in list_reducers() if obstacle(vit, reducer) is None]


def plan_for(vit: torch.nn.Module, keep_rate: float) -> SlimmingPlan:
    """Fewer patches block by block, down to about ``keep_rate`` in the last but one; all of them at 1."""
    patches, depth = vit.patch_embed.num_patches, len(vit.blocks)
    counts = [round(patches * keep_rate ** (layer / (depth - 2))) for layer in range(depth - 1)]
    order = torch.randperm(patches, generator=torch.Generator().manual_seed(0)).tolist()
    kept = [order[:count] for count in counts]
    return SlimmingPlan.of_patches([*kept, ()], patches, vit.num_prefix_tokens)


def reducing(vit: torch.nn.Module, reducer: str, keep_rate: float | tuple = 1.0) -> dict:
    """The arguments by which ``reducer`` keeps about ``keep_rate``: by a plan where that is what it goes by."""
    if reducer == "none":
        return {"keep_rate": 1.0}
    return {"plan": plan_for(vit, keep_rate)} if reducer == "patch_slimming" else {"keep_rate": keep_rate}


def images(vit: torch.nn.Module, batch: int = 3, seed: int = 0) -> torch.Tensor:
    """Random images (batch, 3, H, W) of the model's size."""
    return torch.randn(batch, 3, *vit.patch_embed.img_size, generator=torch.Generator().manual_seed(seed))
