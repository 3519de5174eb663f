# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags
#     notebook_metadata_filter: jupytext,kernelspec,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Pretrained: patch slimming
#
# **Question:** how many tokens can each block of a trained ViT do without, and which, if the network is told only what
# it computed before? Tang et al. (CVPR 2022) go from the last block back, keep the patches of the highest significance,
# and tune one block at a time until the next block gives its old output again: images only, no labels.
#
# A budget of multiplications is shared out so that every block alone makes the same error at the output ("learned"),
# against the same number of tokens in every block ("uniform") at equal cost.
#
# | | |
# |---|---|
# | Defaults | embedded digits, the small ViT of `Scratch/train_test`, 256 images to tune on and measure errors |
# | Expected | a few points lost; on digits, drawn anywhere, no fixed mask fits all, and uniform is as good as learned |
# | Time | under a minute on 2 CPU cores, the first time with the training of the small ViT |
# | Real images | `./run_all.sh imagenette`: ViT-Ti, a cut of 45 %, all 3,925 validation images |

# %%
import copy

import pandas as pd

from common import load_dataset, plots
from common.data import make_loader
from common.digits_backbone import resolve_weights
from common.models.factory import create_backbone
from common.results import read_published, resolve, write_run
from common.slimming import search
from common.slimming.costs import Costs
from common.slimming.study import images_of, stage_rows
from common.training import torch_device
from common.weights import save_state

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
mac_budget = 0.55
num_calibration = 256
epochs = 2
lr = 1e-4
error_norm = "token"
img_size = 32
batch_size = 32
limit_val = None
seed = 0
device = None
checkpoints = ""
csv = "results/notebook/patch_slimming.csv"
figure = "results/notebook/patch_slimming.png"

# %%
opened = {"img_size": img_size, "recipe": recipe, "seed": seed}
calibration = images_of(load_dataset(dataset, "train", limit=num_calibration, **opened))
val_set = load_dataset(dataset, "val", limit=limit_val, **opened)
vit = create_backbone(backbone, weights=resolve_weights(weights, backbone), img_size=img_size).eval()
vit.to(torch_device(device))
costs = Costs.of(vit)
print(f"{len(calibration)} images of {dataset} to tune on, {len(val_set)} to validate; {backbone}")

# %% [markdown]
# ## The search
# With a folder for `checkpoints` a killed search goes on from its last finished block.

# %%
goals = {"learned": {"mac_budget": mac_budget}, "uniform": {"lengths": costs.uniform(mac_budget)}}
how = {"epochs": epochs, "lr": lr, "error_norm": error_norm, "seed": seed}
found = {}
for schedule, goal in goals.items():
    tuned = copy.deepcopy(vit)
    folder = f"{checkpoints}/{schedule}" if checkpoints else None
    plan = search(tuned, calibration, output_dir=folder, **goal, **how)
    found[schedule] = (plan, tuned)

# %%
schedules = plots.slimming_schedule({name: plan.lengths for name, (plan, _) in found.items()}, costs.num_tokens)
plots.save(schedules, figure)
schedules

# %% [markdown]
# The patches that each block computes, the same in every image:

# %%
plan, tuned = found["learned"]
masks = plots.slimming_masks(plan.kept, vit.patch_embed.grid_size)
plots.save(masks, resolve(figure).with_suffix("") / "masks.png")
masks

# %% [markdown]
# ## Accuracy before and after tuning
# `gmac` is what the slim model executes, `gmac_paper` what the authors' way of counting gives, in which keys and values
# are paid for all tokens. `accuracy_full` is among all classes of the head.

# %%
rows = stage_rows(vit, found, val_set, make_loader(val_set, batch_size, shuffle=False, seed=seed))
table = pd.DataFrame(rows)
shown = ["schedule", "stage", "accuracy", "accuracy_full", "accuracy_sem", "gmac", "cut", "gmac_paper", "cut_paper"]
table[shown].style.format("{:.3g}", subset=shown[2:], na_rep="").hide(axis="index")

# %% [markdown]
# What the authors print, ImageNet-1k, GFLOPs by their counter, after fine-tuning of the whole network on labels:

# %%
published = read_published("patch_slimming")
published.query("method != 'other'")[["model", "method", "accuracy", "drop", "gflops", "cut"]].style.hide(axis="index")

# %% [markdown]
# ## Save
# `create_model(backbone, reducer="patch_slimming", plan=..., weights=...)` opens the two files.

# %%
plan.save(resolve(csv).with_suffix(".plan.json"))
if checkpoints:
    save_state(tuned, resolve(checkpoints) / "learned.safetensors")
constant = {"backbone": backbone, "dataset": dataset, "img_size": img_size, "keep_rate": 1.0, "seed": seed}
constant |= {"dtype": "float32", "batch": batch_size, "epochs": epochs, "profile": profile}
rows = [{**row, "n_calibration": len(calibration)} for row in rows]
written = write_run(rows, csv, table="slimming", device=str(torch_device(device)), **constant)
print(f"{len(rows)} rows in {written.name}")
