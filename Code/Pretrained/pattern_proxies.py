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
# # Pretrained: which similarity predicts accuracy?
#
# **Question:** models that reduce tokens differ in what they keep, in their features and in their accuracy. Is there a
# similarity, cheap to measure and without labels, that tells by how much accuracies differ? Few models make many pairs,
# and the pairs are not independent: p counts the ways to deal the accuracies to the models.
#
# | | |
# |---|---|
# | Defaults | embedded digits, the small ViT that `Scratch/train_test` trains, keep rates 90, 50 and 25 % |
# | Expected | distances of the CLS features from the unreduced model's rise as accuracy falls; overlaps say less |
# | Time | about a minute on 2 CPU cores, the first time with the training of the small ViT |
# | Real images | `./run_all.sh imagenette`: ViT-Ti on all 3,925 Imagenette validation images |
# | Source | Haurum et al., *Which Tokens to Use?*, ICCVW 2023, sections on proxies for model performance |

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
from common.studies.pattern_proxies import PatternProxies, correlation_figure, proxy_rows

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
reducers = ["none", "tram", "topk", "evit", "ats", "tome", "kmedoids", "l2"]
keep_rates = [0.9, 0.5, 0.25]
cls_at = [3, 5]
img_size = 32
batch_size = 64
limit_val = None
seed = 0
workers = 0
device = None
output_dir = "results/notebook/decisions_and_features"
trained = ""
csv = "results/notebook/pattern_proxies.csv"
figure = "results/notebook/pattern_proxies.png"

# %% [markdown]
# ## What every method decides, and its features
# The CLS token after the blocks `cls_at`, of the unreduced model and of every method at every keep rate. Of trained
# models, those that `Pretrained/method_grid` left in a folder (`records`) are read: `trained` names it.

# %%
loading = {"batch_size": batch_size, "workers": workers, "seed": seed, "device": device, "limit_val": limit_val}
setup = Setup(backbone, weights, dataset, img_size, recipe, **loading)
asked = {"setup": setup, "methods": reducers, "keep_rates": keep_rates, "seeds": [seed]}
shelf = {"folder": resolve(output_dir), "cls_at": tuple(cls_at)}
runs = trained_runs(resolve(trained), **asked) if trained else shelf_runs(**shelf, **asked)

# %% [markdown]
# ## Similarity and accuracy
# A row for every measure: its rank correlation with the size of the difference in accuracy, over pairs of models. Where
# all models have the same accuracy there is none, and the figure says so.

# %%
rows = list(proxy_rows(runs))
table = pd.DataFrame(rows, columns=["method", "options", "keep_rate", *PatternProxies.columns])
fig = correlation_figure(table)
plots.save(fig, figure)
fig

# %% [markdown]
# ## Features beside those of the unreduced model
# After the last of the blocks.

# %%
similar = table[(table["part"] == "similarity") & (table["block"] == max(cls_at))]
similar[["method", "options", "keep_rate", "accuracy", "accuracy_change", "cka", "procrustes", "pwcca", "mean_cca"]]

# %% [markdown]
# ## Save

# %%
write_run(rows, PatternProxies, csv, profile=profile, **setup.conditions, seed=seed)
correlations = table[table["part"] == "correlation"]
correlations[["pairs", "measure", "block", "correlation", "correlation_low", "correlation_high", "p", "partial"]]
