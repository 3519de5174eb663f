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
# # Pretrained: what makes MUTEX work?
#
# **Question:** how much hangs on MUTEX's three parameters, and on which of its 54 masks? Each parameter is varied
# alone; each kind of mask (one way to aggregate heads, one degree, one statistic over the layers) gives the heatmap
# that remains when only the masks of that kind are used. Measured by insertion (large is good) and deletion (small is
# good).
#
# | | |
# |---|---|
# | Defaults | 30 embedded digits, the small ViT of `Scratch/train_test`, black for what is not shown |
# | Expected | `token_ratio` matters most; no single kind of mask is as good as all of them together |
# | Time | about a minute on 2 CPU cores, the first time with the training of the small ViT |
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
from common.explain.explanations import Explanations
from common.results import resolve, write_run
from common.setup import Setup
from common.studies.explain_benchmark import ExplainBenchmark, mask_rows, parameter_rows

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
min_cuts = [0.0, 0.01, 0.1]
token_ratios = [0.25, 0.5, 0.75]
starting_layers = [0, 2, 4]
num_images = 30
img_size = 32
baseline = "black"
batch_size = 32
seed = 0
device = None
checkpoints = ""
csv = "results/notebook/mutex_study.csv"
figure = "results/notebook/mutex_study.png"

# %%
same = {"img_size": img_size, "recipe": recipe, "batch_size": batch_size, "seed": seed, "device": device}
setup = Setup(backbone, weights, dataset, folder=checkpoints, **same)
found = Explanations(setup, num_images, baseline)
print(f"{num_images} images of {dataset}, {backbone}: mean confidence {found.probabilities.mean():.3f}")

# %% [markdown]
# ## Parameters, one at a time
# The others stay at `min_cut` 0.01, `token_ratio` 0.5, `starting_layer` 0.

# %%
values = {"min_cut": min_cuts, "token_ratio": token_ratios, "starting_layer": starting_layers}
rows = list(parameter_rows(found, values))
parameters = plots.parameter_study(pd.DataFrame(rows).assign(**setup.conditions))
plots.save(parameters, figure)
parameters

# %% [markdown]
# ## Masks, one kind at a time

# %%
rows += mask_rows(found)
masks = plots.mask_ablation(pd.DataFrame(rows).assign(**setup.conditions))
plots.save(masks, resolve(figure).with_suffix("") / "masks.png")
masks

# %% [markdown]
# ## Save

# %%
written = write_run(
    rows, ExplainBenchmark, csv, profile=profile, seed=seed, image_ids=found.dataset.image_ids, **setup.conditions
)
print(f"{len(rows)} rows in {written.name}")
