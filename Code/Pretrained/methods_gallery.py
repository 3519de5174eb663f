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
# # Pretrained: what every method keeps or merges
#
# **Question:** given the same image and the same keep rate, which patches does each method hold on to, and which ones
# does it pour into one token? Faded patches are gone; patches outlined in one colour share a token; a dot marks the
# patch that a cluster is represented by. A single patch under its own token has a thin grey outline.
#
# Methods with parameters of their own (DynamicViT, DPC-KNN, PatchMerger, Sinkhorn, SiT) are fine-tuned first, with the
# protocol of `Pretrained/method_grid`; all others are shown off the shelf. Soft merging is shown by its largest weight:
# every patch is drawn in the token that takes most of it, although each token is a mixture of all.
#
# | | |
# |---|---|
# | Defaults | one of the embedded digits, the small ViT of `Scratch/train_test`, after the second reduction at 50 % |
# | Expected | CLS-driven methods keep the ink; clusters follow strokes; soft merging uses few of its tokens visibly |
# | Time | about a minute on 2 CPU cores |
# | Real images | `./run_all.sh imagenette` |

# %% tags=["colab"]
import runpy
import subprocess
import sys

if "google.colab" in sys.modules:  # fetches and installs the repository in Google Colab; does nothing elsewhere
    repository, folder = "", "/content/token-reduction"
    assert repository, "set repository to the public address of this repository, here or in pyproject.toml"
    subprocess.run(f"test -d {folder} || git clone --quiet {repository} {folder}", shell=True, check=True)
    runpy.run_path(f"{folder}/Code/workflow/colab.py")["set_up"]()

# %%
from dataclasses import replace

import pandas as pd

from common import plots
from common.results import write_run
from common.studies.gallery import Gallery, measure, trained_if_it_learns
from common.training import protocol, torch_device
from common.training.experiment import Experiment

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
reducers = [
    "tram",
    "topk:head_fusion=mean",
    "evit",
    "ats",
    "dynamicvit",
    "l1",
    "l2",
    "linf",
    "tome",
    "kmedoids",
    "dpcknn",
    "patchmerger",
    "sinkhorn",
    "sit",
]
keep_rate = 0.5
stage = 2
images = [0]
img_size = 32
epochs = 1
lr = 1e-3
backbone_lr_scale = 0.2
batch_size = 32
seed = 0
limit_train = None
limit_val = 20
device = None
csv = "results/notebook/methods_gallery.csv"
figure = "results/notebook/methods_gallery.png"

# %% [markdown]
# ## One model per method

# %%
settings = {"batch_size": batch_size, "grad_accum_steps": 1, "warmup_epochs": 0.2, "seed": seed, "device": device}
settings |= {"lr": lr, "backbone_lr_scale": backbone_lr_scale, "lr_batch_normalizer": None}
settings |= {"mixup": 0.0, "cutmix": 0.0, "ema_decay": None}
config = protocol("which_tokens", epochs=epochs, **settings)
sizes = {"img_size": img_size, "recipe": recipe, "limit_train": limit_train, "limit_val": limit_val}
start = Experiment(backbone, dataset, config, weights=weights, keep_rate=keep_rate, head="dataset", **sizes)
models = {reducer: trained_if_it_learns(replace(start, reducer=reducer)) for reducer in reducers}

# %% [markdown]
# ## Side by side
# The number is that of the tokens left.

# %%
panels, rows = measure(start, models, images, stage)
fig = plots.methods_gallery(panels, patch_grid=models[reducers[0]].patch_embed.grid_size)
plots.save(fig, figure)
fig

# %% [markdown]
# ## Save

# %%
write_run(rows, Gallery, csv, profile=profile, device=str(torch_device(device)))
pd.DataFrame(rows)[["method", "options", "image", "block", "num_tokens", "predicted", "probability", "epochs"]]
