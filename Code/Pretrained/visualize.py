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
# # Pretrained: which patches survive?
#
# **Reproduces** TRAM's pictures: what is left of an image after the blocks that reduce, at 75 and 50 %. Blocks count
# from 0, as timm's `blocks.N`; the published titles say "Layer 3" for block 3. Below each row: the class
# that the full and the reduced model predict, with probabilities. The heat map shows how many blocks each place
# of the grid survives on average.
#
# `weights` are those of one network for all `keep_rates`, or a list with one for each of them, which was trained at it:
# so TRAM's authors made theirs, after one epoch at 75 and at 50 % (`./run_all.sh tram`).
#
# | | |
# |---|---|
# | Defaults | embedded digits (a digit covers a quarter of the canvas), the small ViT of `Scratch/train_test` |
# | Expected | patches with ink and their surroundings survive longest |
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
from dataclasses import replace

import pandas as pd

from common import plots
from common.report.sections import percent
from common.results import resolve, write_run
from common.setup import Setup
from common.studies.visualize import Visualize, examples, measure, rates_of_networks, trace_networks

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
reducer = "tram"
keep_rates = [0.75, 0.5]
img_size = 32
num_images = 100
num_shown = 6
dropped = "dim"
batch_size = 50
seed = 42
csv = "results/notebook/visualize.csv"
figure = "results/notebook/visualize.png"

# %%
rates = rates_of_networks(weights, keep_rates)
data = {"dataset": dataset, "img_size": img_size, "recipe": recipe, "batch_size": batch_size, "seed": seed}
setups = [Setup(backbone, name, **data) for name in rates]
traced = trace_networks(setups, list(rates.values()), reducer, num_images)
images = setups[0].some(num_images)
blocks = setups[0].reduced(reducer).reducer.schedule.reduction_loc
print(f"{len(images)} images, normalised with mean {images.mean}; patches kept after blocks {blocks}")

# %% [markdown]
# ## Six images at all keep rates

# %%
shown = examples(images, traced, blocks, num_shown)
page = {"patch_grid": setups[0].vit.patch_embed.grid_size, "blocks": blocks, "dropped": dropped}
fig = plots.united_grid(shown[:6], **page)
plots.save(fig, figure)
fig

# %% [markdown]
# ## Each image: all keep rates together, and each alone

# %%
folder = resolve(figure).with_suffix("")
for number, example in enumerate(shown):
    name = example.class_name.replace(" ", "_")
    plots.save(plots.united_grid([example], **page), folder / f"united/{number}_{name}.png")
    for row in example.rows:
        single = plots.united_grid([replace(example, rows=(row,))], **page)
        rate = row.label.removesuffix(" %").replace(", ", "-")
        plots.save(single, folder / f"single/{number}_{rate}_{name}.png")
single

# %% [markdown]
# ## How long each patch survives

# %%
kept = {f"keep rate {percent(each.keep_rate)}": each.kept for each in traced}
survival = plots.survival_map(kept, patch_grid=page["patch_grid"])
plots.save(survival, folder.with_name(f"{folder.name}-survival.png"))
survival

# %% [markdown]
# ## Save

# %%
rows = measure(images, traced, reducer, blocks)
write_run(rows, Visualize, csv, profile=profile, seed=seed, **setups[0].conditions)
table = pd.DataFrame(rows)
table.groupby(["keep_rate", "block"])[["num_tokens", "probability", "probability_full_model"]].mean()
