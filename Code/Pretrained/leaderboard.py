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
# # Which method for which budget?
#
# Every method that needs no training, made to save the same share of the multiply-accumulates of one trained ViT, on
# the same images. The same keep rate would not be the same cost: methods reduce before a block, in it or after its
# attention, and scoring costs too. `common.keep_rate_for` solves for the keep rate that meets a budget.
#
# Two rows are not methods. `random` keeps patches for no reason, and `downsample` runs the whole network on a smaller
# image. What does not beat them is not worth its code. Differences are paired: the same images, with the interval of
# their mean.
#
# | | |
# |---|---|
# | Defaults | embedded digits, the small ViT that `Scratch/train_test` trains |
# | Expected | at small savings nearly all methods beat random patches, at large ones they part |
# | Time | under a minute on 2 CPU cores, the first time with the training of the small ViT |
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
import pandas as pd

from common import plots
from common.results import write_run
from common.setup import Setup
from common.studies.leaderboard import Leaderboard, judged, measure

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
reducers = [
    "none",
    "tram",
    "topk:head_fusion=mean",
    "evit",
    "ats",
    "tome",
    "kmedoids",
    "dpcknn:equal_weight=true",
    "diffrate",
    "ppt",
    "atc",
    "pitome",
    "random",
    "downsample",
]
mac_cuts = [0.2, 0.4, 0.6]
seeds = [0, 1, 2]
img_size = 32
batch_size = 64
limit_val = None
seed = 0
workers = 0
device = None
csv = "results/notebook/leaderboard.csv"
figure = "results/notebook/leaderboard.png"

# %% [markdown]
# ## Solve for the budgets, then one pass for each method
# ATS keeps more of some images than of others; its cost is solved on 32 images. What a method cannot save is printed.

# %%
loading = {"batch_size": batch_size, "workers": workers, "seed": seed, "device": device, "limit_val": limit_val}
setup = Setup(backbone, weights, dataset, img_size, recipe, **loading)
rows = list(measure(setup, reducers, mac_cuts, seeds))
table = pd.DataFrame(rows).assign(**setup.conditions)
value = judged(table)
accuracy = table.pivot_table(index=["method", "options"], columns="mac_cut", values=value, aggfunc="mean")
accuracy.style.format("{:.1f}", na_rep="")

# %% [markdown]
# ## What it costs, and what it is called in code
# The call of each row is `common.reduce_tokens(vit, method, keep_rate=...)`, or `mac_cut=...` in its place.

# %%
columns = ["method", "options", "seed", "mac_cut", "saved", "keep_rate", "counts", "gmac", "agreement", "divergence"]
table[columns].style.format(precision=3, na_rep="").hide(axis="index")

# %% [markdown]
# ## Save

# %%
write_run(rows, Leaderboard, csv, image_ids=setup.val_set.image_ids, profile=profile, **setup.conditions)
fig = plots.accuracy_at_budget(table, value=value)
plots.save(fig, figure)
fig
