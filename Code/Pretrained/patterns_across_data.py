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
# # Pretrained: are the patterns the same on other data?
#
# **Question:** where a method keeps patches, is that a habit of the method or an answer to the images? Two data sets
# share no image, so the maps of how deep each place comes are compared, and two random halves of one data set show what
# the same looks like. Two backbones of different width do see the same images: there, image by image, agreement beyond
# chance (0 = as by chance, 1 = all that the numbers of patches allow).
#
# | | |
# |---|---|
# | Defaults | digits and squares of two photographs, none a digit; two small ViTs, one half as wide |
# | Expected | less alike than halves of one data set; fixed patterns are the same by design and show what 1 means |
# | Time | under a minute on 2 CPU cores, the first time with the training of the two small ViTs |
# | Real images | `./run_all.sh imagenette`: ViT-Ti on Imagenette and on FashionMNIST, whose classes it does not know |
# | Source | Haurum et al., *Which Tokens to Use?*, ICCVW 2023: patterns over data sets and over model capacity |

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
from common.results import resolve, write_run
from common.setup import Setup
from common.studies.patterns_across_data import (
    ONE_BACKBONE,
    PatternsAcrossData,
    across_rows,
    capacity_table,
    depth_maps,
    runs_across,
    similarity_table,
)

# %% tags=["parameters"]
profile = "notebook"
datasets = ["digits", "photo-tiles"]
limits = [180, 130]
recipe = "pretrained"
backbones = ["vit_digits", "vit_digits_narrow"]
weights = ["digits", "digits"]
reducers = ["tram", "topk", "ats", "tome", "kmedoids", "dpcknn:equal_weight=true", "l2"]
keep_rates = [0.9, 0.5, 0.25]
resamples = 40
img_size = 32
batch_size = 64
seed = 0
workers = 0
device = None
output_dir = "results/notebook/decisions_elsewhere"
trained = ""
csv = "results/notebook/patterns_across_data.csv"
figure = "results/notebook/patterns_across_data.png"

# %% [markdown]
# ## What every method decides
# One record for each data set, backbone, method and keep rate; what is there already is not evaluated again. No label
# is needed: where the head has other classes than the data set, there is no accuracy. Of trained models, those that
# `Pretrained/method_grid` left in a folder (`records`) are read: `trained` names it.

# %%
loading = {"batch_size": batch_size, "workers": workers, "seed": seed, "device": device}
setups = []
for dataset, limit in zip(datasets, limits, strict=True):
    for backbone, given in zip(backbones, weights, strict=True):
        setups.append(Setup(backbone, given, dataset, img_size, recipe, limit_val=limit, **loading))
runs = runs_across(resolve(output_dir), setups, reducers, keep_rates, trained=trained)

# %% [markdown]
# ## How deep each place comes, on each data set
# In how many blocks a patch of this place is a token, mean over the images; the data sets stand side by side at each
# keep rate.

# %%
rows = list(across_rows(runs, resamples))
table = pd.DataFrame(rows).assign(recipe=recipe, img_size=img_size)
for setup in reversed(setups[: len(backbones)]):
    fig = plots.depth_maps(depth_maps(rows, setup.backbone, setup.vit.patch_embed.grid_size), len(setup.vit.blocks))
    plots.save(fig, resolve(figure).with_suffix("") / f"{setup.backbone}.png")
fig

# %% [markdown]
# ## How alike the maps are
# Dark is alike. Where a map is nearly flat, as at 90 %, divergences are small whatever the pattern: the correlations
# say how far the pattern is the same.

# %%
fig = plots.map_similarity(similarity_table(table))
plots.save(fig, figure)
fig

# %% [markdown]
# ## Two backbones on the same images
# Agreement beyond chance after each reduction: of the patches that are kept, and of those that are merged.

# %%
kept = capacity_table(table, "iou_excess")
plots.agreement_by_block(kept, "iou_excess") if len(kept) else ONE_BACKBONE

# %%
merged = capacity_table(table, "ami")
plots.agreement_by_block(merged, "ami") if len(merged) else ONE_BACKBONE

# %% [markdown]
# ## Save

# %%
write_run(rows, PatternsAcrossData, csv, profile=profile, **setups[0].conditions)
over = table[table["part"] == "datasets"]
over[["backbone", "method", "options", "keep_rate", "PCC", "PCC_low", "PCC_high", "JSD", "EMD"]]
