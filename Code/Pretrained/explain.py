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
# # Pretrained: why does the model say so?
#
# **Reproduces** MUTEX's usage example: heatmaps of a few images, and how the model's confidence rises when the hottest
# patches are shown first (insertion) and falls when they are taken away first (deletion). The area under the insertion
# curve should be large, that under the deletion curve small.
#
# MUTEX hides half of the patches in 54 ways, each the verdict of one centrality in the multiplex network of attention
# maps, and asks the model about what is left. A patch is hot if the model stays confident whenever it is seen.
#
# | | |
# |---|---|
# | Defaults | embedded digits, a ViT with CLS token and a SimpleViT without |
# | Expected | hot patches lie on and around the ink; insertion rises within the first fifth of the patches |
# | Time | half a minute on 2 CPU cores, the first time with the training of the two small models |
# | Real images | `./run_all.sh imagenette`; the published ones of ImageNet and their areas: `./run_all.sh mutex` |

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
from common.explain.explanations import Explanations
from common.results import resolve, write_run
from common.setup import Setup
from common.studies.explain import Explain, heatmap_rows, image_rows, pictures

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbones = ["vit_digits", "simple_vit_digits"]
weights = ["digits", "digits"]
explainer = "mutex"
others = ["tram", "rollout", "chefer", "grad_cam", "integrated_gradients"]
images = [0, 12, 25]
img_size = 32
baseline = "black"
areas = "unit"
batch_size = 32
seed = 0
device = None
csv = "results/notebook/explain.csv"
figure = "results/notebook/explain.png"

# %% [markdown]
# ## Models and images
# Every backbone sees the images normalised as its own weights expect, and is asked about what it predicts itself.

# %%
same = {"img_size": img_size, "recipe": recipe, "batch_size": batch_size, "seed": seed, "device": device}
setups = [Setup(name, given, dataset, **same) for name, given in zip(backbones, weights, strict=True)]
explained = [Explanations(setup, images, baseline, areas=areas) for setup in setups]

# %% [markdown]
# ## Heatmaps, insertion and deletion
# From left to right: the image with its class and what the model predicts, the heat smoothed and patch by patch, and
# the probability of the predicted class while patches are inserted and deleted, the hottest first.

# %%
fig = plots.heatmaps([row for found in explained for row in heatmap_rows(found, explainer)])
plots.save(fig, figure)
fig

# %% [markdown]
# ## The same images, other explainers
# Each heatmap has its own colour scale.

# %%
first = explained[0]
heat = {text: first.explain(text).heatmaps for text in [explainer, *others]}
fig = plots.explainer_gallery(pictures(first), heat)
plots.save(fig, resolve(figure).with_suffix("") / "explainers.png")
fig

# %% [markdown]
# ## Save

# %%
rows = [row for found in explained for row in image_rows(found, explainer)]
write_run(rows, Explain, csv, profile=profile, seed=seed, **first.setup.conditions)
pd.DataFrame(rows)
