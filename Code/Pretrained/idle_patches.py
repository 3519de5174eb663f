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
# # Pretrained: which patches may skip a block?
#
# **Question:** how much does a block change a patch, can a predictor, a small MLP per block, foresee it, and
# what does it cost to let the patches idle that hardly change, or whose change hardly matters? A patch that idles
# passes the block as it is and may come back in the next one.
#
# | | |
# |---|---|
# | Defaults | embedded digits, the small ViT of `Scratch/train_test`, two epochs for the predictors, backbone frozen |
# | Expected | some blocks change patches little, and most idling happens there; accuracy falls with the MAC saved |
# | Time | a minute on 2 CPU cores, the first time with the training of the small ViT |
# | Real images | `./run_all.sh imagenette`: ViT-Ti, an hour on one core |
#
# What came out on real images (ViT-Ti, all 3,925 validation images of Imagenette, top-1 among all 1000 classes, the
# backbone frozen, 74.2 % without idling). The published labels, by change, cost this small network nearly everything:
# 24.8 % are left where 20 % of the MAC is saved and 8.1 % at 35 %; where idle patches are still seen, 34.7 % at 16 %.
# By what would be lost 70.8 % are left at 20 % and 46.8 % at 35 %. There patches idle around the object; 7 % of them
# come back in the next block, by change two thirds do. Coming back is what costs: IdleViT's rule without training
# leaves 56.7 % at 20 %, and 73.4 % where a patch that idled stays out (the leaderboard has both).

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
from IPython.display import display

from common import plots
from common.idling.candidates import LABEL_STAGE, THRESHOLD, Candidate, fit_predictors, oracle, variant, within_budget
from common.idling.rows import computed_patches, idle_shares_by_block, measure, similarity_rows
from common.idling.similarity import patch_similarities
from common.results import read_published, resolve, write_run
from common.setup import Setup
from common.studies.idling import Idling

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
hidden = 16
labels = [
    "similarity=blend",
    "similarity=rel_norm,influence=rollout,attention=standard",
    "influence=fisher,attention=standard,re_entry=false,last_block=cls",
]
idle_shares = [0.204, 0.347]
taus = []
cuts = [0.2, 0.35]
epochs = 2
lr = 1e-3
images = [0, 1]
img_size = 32
batch_size = 32
seed = 0
limit_train = 400
limit_labels = None
limit_val = None
limit_calibration = 128
limit_states = 200
device = None
checkpoints = ""
csv = "results/notebook/idle_patches.csv"
figure = "results/notebook/idle_patches.png"

# %%
limits = {"limit_train": limit_train, "limit_val": limit_val, "limit_calibration": limit_calibration}
shared = {"img_size": img_size, "recipe": recipe, "batch_size": batch_size, "seed": seed, "device": device}
setup = Setup(backbone, weights, dataset, **shared, **limits, folder=checkpoints)
dense, few = setup.reduced("none"), setup.some(limit_states)
print(f"{len(setup.val_set)} validation images of {dataset}, {backbone}; states of {len(few)}")

# %% [markdown]
# ## How similar are patches?
# Above, the cosine of the same patch before and after each block; below, the mean cosine of different patches. Blocks
# count from 0, as timm's `blocks.N`.

# %%
states = patch_similarities(setup.reduced("idle_oracle:similarity=raw_cos"), setup.loader(few))
rows = similarity_rows(states, seed)
similarity = plots.patch_similarity(states.across.double().mean(0), states.within.double().mean(0))
plots.save(similarity, resolve(figure).with_suffix("") / "similarity.png")
similarity

# %% [markdown]
# ## The threshold tau
# A patch may idle where its similarity before and after the block lies above tau. Published, for ViT-B: tau 0.95 lets
# 40 of 196 patches idle in a block, 0.90 lets 68. A small model changes its patches more, so tau is the quantile that
# lets the same shares idle.

# %%
blends = patch_similarities(setup.reduced("idle_oracle:similarity=blend"), setup.loader())
shown = [0.95, 0.9, *map(blends.tau, idle_shares)]
idle = {tau: 100 * (blends.across > tau).double().mean().item() for tau in shown}
pd.Series(idle, name="patches that may idle (%)").rename_axis("tau").round(3).to_frame()

# %% [markdown]
# ## The predictors, and what they cost
# For each tau predictors learn its labels on the frozen backbone. Then thresholds on their output are solved, block by
# block, for the share of multiply-accumulates to save. With modified attention idle patches are still seen: first with
# the same thresholds, then with thresholds for the same cost.
#
# These are the published labels, the first of `labels` ("" leaves them out). Beside them stand others: a patch may idle
# where little would be lost. Lost are its change and, as idle patches are not seen here, its share in what the block
# tells the others. By influence both count as far as they can be traced to what the head reads, through the attention
# of all later blocks. By Fisher information they count as far as they move the probabilities of the classes, by the
# gradients of the model that computes everything; there a patch that idles does not come back, and the last block
# computes only what the head reads.
#
# With `taus`, the published ones for instance, predictors also learn the published labels of each as it is, and idle at
# 0.5 of their output, with either attention; beside them what the labels themselves would let idle.

# %%
config = replace(LABEL_STAGE, epochs=epochs, lr=lr, batch_size=batch_size)


def fitted(label):
    text = f"idle_mlp:hidden={hidden},{label}"
    return [fit_predictors(setup, text, config, limit_labels, idle_share=share) for share in idle_shares]


def budgeted(candidates):
    return [within_budget(setup, each, cut) for each, cut in zip(candidates, cuts[: len(candidates)], strict=True)]


def attending(candidates, attention):
    return [variant(setup, each, {"attention": attention}, score_threshold=THRESHOLD) for each in candidates]


published, *others = labels
by_change = fitted(published) if published else []
standard, same_cost = budgeted(attending(by_change, "standard")), budgeted(by_change)
by_loss = [each for label in others for each in budgeted(fitted(label))]
same_thresholds = attending(standard, "modified")
given = [fit_predictors(setup, f"idle_mlp:hidden={hidden},{published}", config, limit_labels, tau=tau) for tau in taus]
given = [*attending(given, "standard"), *attending(given, "modified"), *(oracle(setup, each) for each in given)]
models = [Candidate("none", dense, seed=seed), *standard, *same_thresholds, *same_cost, *by_loss, *given]
table, found = measure(setup, "thresholds", models)

# %% [markdown]
# ### Measured

# %%
shown = ["options", "tau", "patches_idle", "reactivated", "idle_outside", "outside", "mac_cut", "accuracy"]
shown += ["accuracy_full", "accuracy_change"]
pd.DataFrame(table).reindex(columns=shown).style.format(precision=3, na_rep="").hide(axis="index")

# %% [markdown]
# ### Published (ViT-B/16, CIFAR-100)

# %%
read_published("patch_idling").query("table == 'thresholds'").drop(columns=["source", "table"]).style.hide(axis="index")

# %% [markdown]
# ## Which patches idle in which block?
# First by the last labels. The report of the Idling MLP calls what is left an exact bounding of the object. Digits have
# exact boxes, so it can be measured: `idle_outside` is the share of the idle patches that lie outside the box,
# `outside` what chance gives. At a fifth of the multiplications saved 90.6 ± 0.4 % of the patches that idle by
# influence lie outside, of all patches 76.3 %; of those that idle by change, with standard attention, 75.9 ± 0.7 %: no
# more than by chance (360 images, one seed, the error over images).

# %%
pictures, computed, names = computed_patches(setup, by_loss[-1].model, images)
masks = plots.idle_patches(pictures, computed, names, patch_grid=dense.patch_embed.grid_size)
plots.save(masks, figure)
masks

# %% [markdown]
# The same images by change alone, for the same cost.

# %%
for each in standard[-1:]:
    pictures, computed, names = computed_patches(setup, each.model, images)
    masks = plots.idle_patches(pictures, computed, names, patch_grid=dense.patch_embed.grid_size)
    plots.save(masks, resolve(figure).with_suffix("") / "change.png")
    display(masks)

# %%
profile_figure = plots.idle_profile(idle_shares_by_block(table, found))
plots.save(profile_figure, resolve(figure).with_suffix("") / "profile.png")
profile_figure

# %% [markdown]
# ## Save

# %%
rows += table
write_run(rows, Idling, csv, profile=profile, **setup.conditions)
print(f"{len(rows)} rows")
