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
# # Pretrained: what does the significance score know?
#
# **Question:** one block alone drops patches for good, without any tuning: how much accuracy is lost, and does the
# significance score (all paths of attention heads to the output, summed exactly) choose better than the norm of the
# attention map or chance? And does it matter how the heads are summed?
#
# | | |
# |---|---|
# | Defaults | embedded digits, the small ViT of `Scratch/train_test` |
# | Expected | early blocks are fragile, the last nearly free; the score beats chance in all but one block (digits) |
# | Time | under a minute on 2 CPU cores, the first time with the training of the small ViT |
# | Real images | `./run_all.sh imagenette`: ViT-Ti |

# %%
import pandas as pd

from common import load_dataset, plots
from common.data import make_loader
from common.digits_backbone import resolve_weights
from common.models.factory import create_backbone
from common.results import write_run
from common.slimming.study import head_rows, images_of, single_block_rows
from common.training import torch_device

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
layers = [0, 1, 2, 3, 4]
shares = [0.1, 0.3]
scores = ["significance", "attention", "single_block"]
random_masks = 3
num_calibration = 128
img_size = 32
batch_size = 32
limit_val = None
seed = 0
device = None
csv = "results/notebook/patch_slimming_study.csv"
figure = "results/notebook/patch_slimming_study.png"

# %%
opened = {"img_size": img_size, "recipe": recipe, "seed": seed}
calibration = images_of(load_dataset(dataset, "train", limit=num_calibration, **opened))
val_set = load_dataset(dataset, "val", limit=limit_val, **opened)
vit = create_backbone(backbone, weights=resolve_weights(weights, backbone), img_size=img_size).eval()
vit.to(torch_device(device))
loader = make_loader(val_set, batch_size, shuffle=False, seed=seed)
print(f"scores from {len(calibration)} images of {dataset}, accuracy on {len(val_set)}; {backbone}")

# %% [markdown]
# ## One block drops patches
# `gain` is the difference to random masks (mean over several) on the same images, with its standard error.

# %%
choice = {"layers": layers, "shares": shares, "scores": scores, "random_masks": random_masks}
rows = list(single_block_rows(vit, calibration, val_set, loader, **choice))
table = pd.DataFrame(rows)
shown = ["layer", "share", "schedule", "accuracy", "accuracy_sem", "gain", "gain_sem", "cut"]
table[shown].style.format("{:.3g}", subset=["accuracy", "accuracy_sem", "gain", "gain_sem", "cut"]).hide(axis="index")

# %%
fig = plots.single_block_accuracy(table)
plots.save(fig, figure)
fig

# %% [markdown]
# ## Heads
# Spearman's rank correlation with the exact significance, by block.

# %%
heads = list(head_rows(vit, calibration, layers))
pd.DataFrame(heads).pivot(index="schedule", columns="layer", values="rank_correlation").style.format("{:.3f}")

# %% [markdown]
# ## Save

# %%
constant = {"backbone": backbone, "dataset": dataset, "img_size": img_size, "keep_rate": 1.0, "seed": seed}
constant |= {"dtype": "float32", "batch": batch_size, "epochs": 0, "profile": profile}
rows = [{**row, "n_calibration": len(calibration)} for row in [*rows, *heads]]
written = write_run(rows, csv, table="slimming", device=str(torch_device(device)), **constant)
print(f"{len(rows)} rows in {written.name}")
