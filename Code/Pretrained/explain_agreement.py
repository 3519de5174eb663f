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
# # Pretrained: does token reduction keep what explanations highlight?
#
# **Question:** TRAM, Top-K and EViT keep patches to save time, explainers rank patches to tell why. Do they mean the
# same ones? Two answers, as means over images: Spearman's correlation between heat and the score by which the first
# reduction chooses, and the Jaccard index (IoU) between the patches left after the last reduction and as many hottest
# patches. Both have a chance level: 0, and the exact expectation of the IoU for a random heatmap.
#
# | | |
# |---|---|
# | Defaults | 40 embedded digits, the small ViT of `Scratch/train_test`, keep rate 50 % |
# | Expected | attention agrees with attention; what the model needs (MUTEX, Chefer) agrees less |
# | Time | half a minute on 2 CPU cores, the first time with the training of the small ViT |
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
from common.results import write_run
from common.setup import Setup
from common.studies.explain_agreement import ExplainAgreement, agreement_rows

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
explainers = ["mutex", "tram", "raw_attention", "rollout", "chefer", "grad_cam", "integrated_gradients", "random"]
reducers = ["tram", "topk:head_fusion=mean", "evit", "ats", "l2"]
keep_rate = 0.5
num_images = 40
img_size = 32
batch_size = 32
seed = 0
device = None
checkpoints = ""
csv = "results/notebook/explain_agreement.csv"
figure = "results/notebook/explain_agreement.png"

# %% [markdown]
# ## Explanations of the unreduced model, and what the reducers keep
# `block` is the one after which the patches left are read, counted from 0 as timm's `blocks.N`.

# %%
same = {"img_size": img_size, "recipe": recipe, "batch_size": batch_size, "seed": seed, "device": device}
setup = Setup(backbone, weights, dataset, folder=checkpoints, **same)
found = Explanations(setup, num_images)
rows = list(agreement_rows(found, explainers, reducers, keep_rate))
pd.DataFrame(rows).style.format(precision=3, na_rep="").hide(axis="index")

# %% [markdown]
# ## Save

# %%
given = {"image_ids": found.dataset.image_ids, "profile": profile, "seed": seed}
write_run(rows, ExplainAgreement, csv, **given, **setup.conditions)
fig = plots.agreement_matrix(pd.DataFrame(rows).assign(**setup.conditions))
plots.save(fig, figure)
fig
