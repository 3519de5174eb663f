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
# # Pretrained: one mask for all images: where is the limit?
#
# **Question:** patch slimming computes the same patches in every image. At the same cost, what would other lengths,
# other scores, more images to score on, or patches chosen in another order gain over the simplest plan: as many tokens
# in every block, the patches of the highest score?
#
# | | |
# |---|---|
# | Defaults | embedded digits, the small ViT of `Scratch/train_test`, nothing is trained |
# | Expected | random patches lose most; the rest differs by less than its errors |
# | Time | half a minute on 2 CPU cores, the first time with the training of the small ViT |
# | Real images | `./run_all.sh imagenette`: ViT-Ti, draws of calibration images, 35 minutes each on one core |
#
# What came out on real images (ViT-Ti, Imagenette, a cut of 45 %): the patches of this network are not alike, and
# less so in deep blocks than after the first, so the premise does not hold. By divergence from the unreduced network,
# which is less noisy than accuracy, plans of equal cost differ little. Lengths that fall evenly, from 20 % above
# their mean to 20 % below, gain a twelfth of it in each of three draws; neither fewer patches in the last block nor a
# choice from the first block up gains anything, and patches that were scored on 64 images in place of 1,024 lose a
# quarter. What else was tried, on 400 validation images and one draw of calibration images, differences to uniform
# lengths at .269 nats: a gradient of that very divergence by how long every patch lives, -.008 ± .016 for lengths and
# patches together and +.045 ± .023 for patches alone; a second-order bound at the unreduced network, greedy over
# patches and blocks, +.68 ± .05; lengths learned with patches after an epoch of distillation, +.041 ± .014 to uniform
# ones so distilled. All numbers, with intervals: `results/README.md`.

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
from common.slimming.equal_cost import Variant, equal_cost_rows, similarity_rows, variants
from common.studies.slimming import Slimming

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
mac_budget = 0.55
score = "significance"
tapers = [0.0, 0.2, 0.35]
floors = [1.0, 0.6]
other_scores = ["coverage", "random"]
scored_on = [64]
num_calibration = 256
similarity_images = 64
img_size = 32
batch_size = 32
limit_val = None
workers = 0
seed = 0
device = None
csv = "results/notebook/patch_slimming_limits.csv"
figure = "results/notebook/patch_slimming_limits.png"

# %%
sizes = {"img_size": img_size, "recipe": recipe, "batch_size": batch_size, "seed": seed, "device": device}
limits = {"limit_calibration": num_calibration, "limit_val": limit_val}
setup = Setup(backbone, weights, dataset, **limits, **sizes, workers=workers)
print(f"{len(setup.calibration)} images of {dataset} to score patches on, {len(setup.val_set)} to validate; {backbone}")

# %% [markdown]
# ## How alike are the patches of one layer?
# The premise of patch slimming (Tang et al., CVPR 2022, figure 3): where patches are alike, some can stand for others.
# Mean cosine of two patches of an image that leave the same block of the unreduced network; in the paper's ViT-B it
# climbs from about 0.4 to above 0.8.

# %%
alike = list(similarity_rows(setup, similarity_images))
pd.DataFrame(alike)[["block", "similarity", "similarity_sem"]].round(3).T

# %% [markdown]
# ## Plans of equal cost
# Each differs in one thing from as many tokens in every block with the patches of the highest score: lengths that fall
# from block to block (`taper`), fewer tokens in the last block that has patches (`floor`), another score, fewer images
# to score on, patches chosen from the first block up, by what the slim network leaves (`bottom-up`). Nothing is tuned.
# `gain`, of `accuracy_full` (top-1 among all classes of the head), and `divergence_change`, of the divergence from the
# unreduced network in nats, are differences to the first of these plans on the same images.

# %%
tried = variants(Variant(score=score), tapers, floors, other_scores, scored_on)
found = list(equal_cost_rows(setup, mac_budget, tried))
shown = ["taper", "floor", "score", "order", "scored_on", "accuracy_full", "gain", "gain_sem", "divergence"]
shown += ["divergence_change", "divergence_change_sem"]
pd.DataFrame(found)[shown].style.format("{:.3g}", subset=shown[5:]).hide(axis="index")

# %%
fig = plots.slimming_limits(pd.DataFrame(found))
plots.save(fig, figure)
fig

# %% [markdown]
# ## Save

# %%
constant = {"method": "patch_slimming", "keep_rate": 1.0, "seed": seed, "epochs": 0, **setup.conditions}
rows = [{**row, "n_calibration": len(setup.calibration)} for row in alike + found]
written = write_run(rows, Slimming, csv, profile=profile, **constant)
print(f"{len(rows)} rows in {written.name}")
