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
# # Pretrained: what does the significance score know?
#
# **Question:** one block alone computes fewer patches, without any tuning: how much accuracy is lost, and does the
# significance score (all paths of attention heads to the output, summed exactly) choose better than the norm of the
# attention map or chance? Is it better to leave out patches that carry what others carry, too ("coverage")? Does it
# matter how the heads are summed? And what does the search find when it is given a tolerance?
#
# | | |
# |---|---|
# | Defaults | embedded digits, the small ViT of `Scratch/train_test` |
# | Expected | early blocks are fragile, late ones nearly free, the last one exactly; where patches are dropped for |
# | | good, coverage beats chance in all but the last of the blocks, the significance not in block 2 |
# | Time | a minute on 2 CPU cores, the first time with the training of the small ViT |
# | Real images | `./run_all.sh imagenette`: ViT-Ti, an hour and a quarter on one core |
#
# What came out on real images (ViT-Ti, 1,500 validation images of Imagenette, 90 % of the patches of one block dropped
# for good), as points over five random masks: the published significance beats chance by 7.5 ± 1.0 in block 2, loses to
# it by 4.1 ± 1.1 in block 6 and gains 1.1 ± 0.6 in block 10 (blocks count from 0). It ranks each patch for itself, and
# its bound is loose there: patches that all carry the same are either all dear or all cheap. Coverage, which adds one
# patch at a time and counts what no other stands for, wins in all three, by 6.9 ± 0.9, 5.1 ± 1.0 and 1.3 ± 0.6. Where
# patches only idle, the significance wins in block 2 (3.6 ± 0.6) and 6 (1.0 ± 0.5), while in block 10 no choice
# matters: random masks lose two points there, and of nine scores none won any back.

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
from common.results import read_published, resolve, write_run
from common.setup import Setup
from common.slimming.rows import correlation_rows, one_block_rows, tolerance_rows
from common.studies.slimming import Slimming

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
blocks = [0, 1, 2, 3, 4]
kept_shares = [0.1, 0.3]
pruning = ["idle", "dropped"]
scores = ["significance", "coverage", "attention", "single_block"]
random_masks = 5
sensitivity_kept_shares = [0.8, 0.5, 0.2]
tolerances = [0.0025, 0.005, 0.01, 0.02, 0.04, 0.08]
tolerance_epochs = 0
finetune_epochs = 0
finetune_lr = 1e-4
mixed_precision = "no"
step = 4
num_calibration = 128
img_size = 32
batch_size = 32
limit_train = None
limit_val = None
limit_sensitivity = None
limit_tolerances = None
workers = 0
seed = 0
device = None
checkpoints = ""
csv = "results/notebook/patch_slimming_study.csv"
figure = "results/notebook/patch_slimming_study.png"

# %%
sizes = {"img_size": img_size, "recipe": recipe, "batch_size": batch_size, "seed": seed, "device": device}
limits = {"limit_calibration": num_calibration, "limit_train": limit_train, "limit_val": limit_val}
setup = Setup(backbone, weights, dataset, **limits, **sizes, workers=workers, folder=checkpoints)
print(f"scores from {len(setup.calibration)} images of {dataset}, accuracy on {len(setup.val_set)}; {backbone}")

# %% [markdown]
# ## How fragile is each block?
# As in the paper's figure 6: one block computes a share of its patches, the most significant; the others pass it
# unchanged and the next block computes them again. The last block computes the CLS token alone, which costs nothing.
# (The paper does not say what becomes of the others. Its figure has a first block far more fragile than the second and
# late blocks that are nearly free. Patches that are dropped for good cost the same in the first two blocks, and late
# blocks that see zeros in their place fail; only idle patches give both.)

# %%
every = range(len(setup.vit.blocks))
choice = {"blocks": every, "kept_shares": sensitivity_kept_shares, "scores": ["significance"]}
rows = list(one_block_rows(setup, **choice, limit_val=limit_sensitivity))
sensitivity = pd.DataFrame(rows)
sensitivity.pivot(index="kept_share", columns="block", values="accuracy_full").round(1)

# %%
fig = plots.block_sensitivity(sensitivity)
plots.save(fig, resolve(figure).with_suffix("") / "sensitivity.png")
fig

# %% [markdown]
# ## Which patches?
# As in the paper's figure 7. `gain` is the difference to random masks (the mean over several) on the same images, with
# its standard error. `idle` patches come back after the block, those `dropped` do not.

# %%
choice = {"blocks": blocks, "kept_shares": kept_shares, "scores": scores, "pruning": pruning}
table = list(one_block_rows(setup, **choice, random_masks=random_masks))
rows += table
shown = ["pruning", "score", "block", "kept_share", "accuracy_full", "accuracy_full_sem", "gain", "gain_sem", "mac_cut"]
pd.DataFrame(table)[shown].style.format("{:.3g}", subset=shown[3:]).hide(axis="index")

# %%
fig = plots.one_block_gain(pd.DataFrame(table))
plots.save(fig, figure)
fig

# %% [markdown]
# ## Heads and features
# Spearman's rank correlation with the significance as published (the exact sum over all paths of heads, features as
# they are), by block.

# %%
heads = list(correlation_rows(setup, blocks))
rows += heads
pd.DataFrame(heads).pivot(index="score", columns="block", values="rank_correlation").style.format("{:.3f}")

# %% [markdown]
# ## Tolerances
# The search itself, as in the paper's figure 4: each block keeps the fewest patches with which the output of the next
# one errs by no more than the tolerance. `gain` is the difference to the unreduced network on the same images. The
# published points, read by eye, are of another network, their tolerances of an error whose norm the paper does not
# give, and there the whole network learns again on the labels of ImageNet; here it does not learn at all, and the
# blocks only where `tolerance_epochs` says so, the network on labels where `finetune_epochs` does. Untuned,
# a lenient tolerance need not save more: blocks below keep many patches to make up for the few of the blocks above.

# %%
how = {"epochs": tolerance_epochs, "error_norm": "token", "step": step, "limit_val": limit_tolerances}
how["finetuning"] = {"epochs": finetune_epochs, "lr": finetune_lr, "mixed_precision": mixed_precision}
table = list(tolerance_rows(setup, tolerances, **how))
rows += table
swept = pd.DataFrame(table)
shown = ["tolerance", "accuracy_full", "accuracy_full_sem", "gain", "gain_sem", "mac_cut", "mac_cut_paper", "tokens"]
swept[shown].style.format("{:.3g}", subset=shown[:-1]).hide(axis="index")

# %%
published = read_published("patch_slimming_figures").query("part == 'tolerances'")
fig = plots.slimming_tolerances(swept, published)
plots.save(fig, resolve(figure).with_suffix("") / "tolerances.png")
fig

# %% [markdown]
# ## Save

# %%
constant = {"method": "patch_slimming", "keep_rate": 1.0, "seed": seed, "epochs": 0, **setup.conditions}
rows = [{**row, "n_calibration": len(setup.calibration)} for row in rows]
written = write_run(rows, Slimming, csv, profile=profile, **constant)
print(f"{len(rows)} rows in {written.name}")
