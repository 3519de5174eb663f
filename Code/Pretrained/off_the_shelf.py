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
# # Pretrained: token reduction off the shelf
#
# **Question:** how much accuracy does a trained ViT lose when tokens are dropped without any further training?
# Every method and keep rate sees the same images in one pass. With ImageNet weights accuracy is given twice: with the
# head restricted to the dataset's classes, and in full (all 1000 classes), which is the column that discriminates.
#
# | | |
# |---|---|
# | Defaults | embedded digits, the small ViT that `Scratch/train_test` trains |
# | Expected | at 50 % TRAM and TopK lose little; PatchMerger, whose queries are random here, loses most |
# | Time | under a minute on 2 CPU cores, the first time with the training of the small ViT |
# | Real images | `./run_all.sh imagenette`: ViT-Ti on all 3,925 Imagenette validation images |

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
import pandas as pd

from common import plots
from common.results import write_run
from common.setup import Setup
from common.studies.off_the_shelf import OffTheShelf, measure

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
reducers = [
    "none",
    "tram",
    "topk",
    "topk:head_fusion=mean",
    "evit",
    "ats",
    "ats:sampler=random",
    "tome",
    "kmedoids",
    "dpcknn:equal_weight=true",
    "l1",
    "l2",
    "linf",
    "patchmerger",
]
keep_rates = [1.0, 0.9, 0.75, 0.5, 0.25]
img_size = 32
batch_size = 32
limit_val = None
seed = 0
workers = 0
device = None
csv = "results/notebook/off_the_shelf.csv"
figure = "results/notebook/off_the_shelf.png"

# %% [markdown]
# ## Data and models
# Images are normalised as the weights expect. All models share the weights of one backbone; at keep rate 100 % every
# method is that backbone.

# %%
loading = {"batch_size": batch_size, "workers": workers, "seed": seed, "device": device, "limit_val": limit_val}
setup = Setup(backbone, weights, dataset, img_size, recipe, **loading)
print(f"{len(setup.val_set)} validation images of {dataset}, normalised with mean {setup.val_set.mean}")

# %% [markdown]
# ## Accuracy
# `accuracy` restricts the head to the dataset's classes, `accuracy_full` does not.

# %%
rows = measure(setup, reducers, keep_rates)
table = pd.DataFrame(rows).assign(**setup.conditions)
shown = table[["method", "options", "keep_rate", "accuracy", "accuracy_full", "loss", "gmac"]]
shown.style.format(precision=2, na_rep="").format("{:.4f}", subset="gmac").hide(axis="index")

# %% [markdown]
# ## Save

# %%
write_run(rows, OffTheShelf, csv, image_ids=setup.val_set.image_ids, profile=profile, **setup.conditions)
fig = plots.accuracy_vs_keep_rate(table, value=("accuracy", "accuracy_full"))
plots.save(fig, figure)
fig
