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
# # Pretrained: which tokens do methods keep?
#
# **Question:** do methods keep the same patches: as each other, at other keep rates, with another seed, or simply as a
# fixed pattern does? Two masks of half of the patches share a third of their union by chance, so every agreement stands
# beside its chance, and is read as what exceeds it: 0 = as by chance, 1 = as far as the numbers of patches allow.
#
# | | |
# |---|---|
# | Defaults | embedded digits, the small ViT that `Scratch/train_test` trains, keep rates 90, 50 and 25 % |
# | Expected | methods that score by the CLS token agree; over rates all but the random one are consistent |
# | Time | under a minute on 2 CPU cores, the first time with the training of the small ViT |
# | Real images | `./run_all.sh imagenette`: ViT-Ti on all 3,925 Imagenette validation images |
# | Source | the analysis of Haurum et al., *Which Tokens to Use?*, ICCVW 2023, sections on reduction patterns |

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
from common.analysis.runs import shelf_runs, trained_runs
from common.results import resolve, write_run
from common.setup import Setup
from common.studies.reduction_patterns import (
    ReductionPatterns,
    agreement_figure,
    depth_maps,
    kept_by_two,
    pattern_rows,
)

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
reducers = [
    "tram",
    "topk",
    "evit",
    "ats",
    "ats:sampler=random",
    "tome",
    "kmedoids",
    "dpcknn:equal_weight=true",
    "l1",
    "l2",
    "linf",
]
keep_rates = [0.9, 0.5, 0.25]
seeds = [0, 1]
pair = ["topk", "l2"]
image = 0
img_size = 32
batch_size = 64
limit_val = None
seed = 0
workers = 0
device = None
output_dir = "results/notebook/decisions"
trained = ""
csv = "results/notebook/reduction_patterns.csv"
figure = "results/notebook/reduction_patterns.png"

# %% [markdown]
# ## What every method decides
# One record for each method, keep rate and seed: which patches are left after each reduction, and which were merged.
# What is there already is not evaluated again. Methods that draw nothing at random are the same for all seeds. Of
# trained models, those that `Pretrained/method_grid` left in a folder (`records`) are read: `trained` names it.

# %%
loading = {"batch_size": batch_size, "workers": workers, "seed": seed, "device": device, "limit_val": limit_val}
setup = Setup(backbone, weights, dataset, img_size, recipe, **loading)
asked = {"setup": setup, "methods": reducers, "keep_rates": keep_rates, "seeds": seeds}
runs = trained_runs(resolve(trained), **asked) if trained else shelf_runs(resolve(output_dir), **asked)

# %% [markdown]
# ## How deep each place comes
# In how many blocks a patch of this place is a token, mean over the images. A method that looks at the image has a
# different map for each data set; a fixed pattern is its own map.

# %%
rows = list(pattern_rows(runs))
fig = plots.depth_maps(depth_maps(rows, keep_rates[-1]), depth=len(setup.vit.blocks))
plots.save(fig, figure)
fig

# %% [markdown]
# ## Which methods agree
# Beyond chance, after the last reduction: a panel for each keep rate, similar methods beside each other. Where nearly
# all patches are kept there is nothing to exceed, and no panel.

# %%
table = pd.DataFrame(rows, columns=["method", "options", "keep_rate", "seed", *ReductionPatterns.columns])
agreement_figure(table, "iou_excess")

# %% [markdown]
# ## One image, two methods
# Kept by both, by one of them, by neither.

# %%
fig = plots.kept_by_two(**kept_by_two(setup, runs, pair, keep_rates[1], image))
plots.save(fig, figure.replace(".png", "/pair.png"))
fig

# %% [markdown]
# ## Save

# %%
write_run(rows, ReductionPatterns, csv, profile=profile, **setup.conditions)
rates = table[table["part"] == "rates"]
rates[["method", "options", "keep_rate", "other_keep_rate", "block", "iou", "iou_chance", "iou_excess", "nmi", "ami"]]
