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
# # Pretrained: patch slimming
#
# **Question:** how many tokens can each block of a trained ViT do without, and which, if the network is told only what
# it computed before? Tang et al. (CVPR 2022) go from the last block back, keep the patches of the highest significance,
# and tune one block at a time until the next block gives its old output again: images only, no labels. In the end the
# whole network learns: in the paper on labels (`finetune_epochs`), by default here from its old logits, still without.
#
# A budget of multiplications is shared out so that the least error reaches the output ("learned"), by lengths that fall
# evenly, from 20 % above their mean to 20 % below ("falling"), or by the best of a few such tapers ("tapered"), against
# the same number of tokens in every block ("uniform") at equal cost.
#
# | | |
# |---|---|
# | Defaults | embedded digits, the small ViT of `Scratch/train_test`, 256 images to tune on and measure errors |
# | Expected | learned lengths lose least; on digits about a point, too little for training to show |
# | Time | about a minute on 2 CPU cores, the first time with the training of the small ViT |
# | Real images | `./run_all.sh imagenette`: ViT-Ti, cuts of 33 % and 45 %, all 3,925 validation images; |
# | | `./run_all.sh patch_slimming`: the paper's networks, fine-tuned on labels |
#
# What came out on real images (ViT-Ti, Imagenette, among all 1000 classes, 74.2 % unreduced, a cut of 45 %): learned
# lengths are **not** better than uniform ones, as they are in the paper (DeiT-S, after training on all of ImageNet).
# They give 68.2 % before and 70.7 % after the tuning of blocks, uniform ones 68.6 % and 71.2 %, each ± 0.7. Lengths
# that make the same error in every block alone fell far steeper and gave 66.3 % and 70.0 %. Distillation on 800 images
# lifts both above the unreduced network (75.5 % and 76.3 %), for a simple reason: these images are of ten classes only,
# and the network learns to take them for fewer others. Lengths that fall evenly are the ones that beat uniform lengths,
# by 0.58 points after the tuning of blocks (95 % interval over three draws of 1,024 images 0.28 to 0.88).
#
# Where the limit is, at equal cost and over draws of calibration images: `patch_slimming_limits`.

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
from itertools import product

import pandas as pd

from common import plots
from common.cost.closed_form import Shape
from common.results import read_published, resolve, write_run
from common.setup import Setup
from common.slimming.rows import budget_rows, dynamic_rows, stage_rows
from common.slimming.stages import distilled, finetuned, searched
from common.studies.slimming import Slimming
from common.weights import save_state

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
mac_budget = 0.55
counter = "compact"
lengths = ["learned", "uniform"]
scores = ["significance"]
num_calibration = 256
error_images = 64
epochs = 2
lr = 1e-4
error_norm = "token"
distill_epochs = 1
distill_lr = 1e-4
finetune_epochs = 0
finetune_lr = 1e-4
mixed_precision = "no"
limit_train = 400
budgets = [0.8, 0.67, 0.55, 0.45]
limit_budgets = None
gate_epochs = 5
gate_images = 256
limit_dynamic = None
rounds = 0
img_size = 32
batch_size = 32
limit_val = None
workers = 0
seed = 0
device = None
checkpoints = ""
csv = "results/notebook/patch_slimming.csv"
figure = "results/notebook/patch_slimming.png"

# %%
sizes = {"img_size": img_size, "recipe": recipe, "batch_size": batch_size, "seed": seed, "device": device}
limits = {"limit_calibration": num_calibration, "limit_train": limit_train, "limit_val": limit_val}
setup = Setup(backbone, weights, dataset, **limits, **sizes, workers=workers, folder=checkpoints)
shape, folder = Shape.of(setup.vit), resolve(figure).with_suffix("")
print(f"{len(setup.calibration)} images of {dataset} to tune on, {len(setup.val_set)} to validate; {backbone}")

# %% [markdown]
# ## The search
# For every way to share out the budget, with patches by every one of the scores. With a folder for `checkpoints` a
# stopped search goes on from its last finished block. The budget is of what is executed (`counter="compact"`), or of
# what the authors count (`"paper"`).

# %%
goal = {"mac_budget": mac_budget, "counter": counter, "error_images": error_images}
how = {"epochs": epochs, "lr": lr, "error_norm": error_norm}
names = list(product(lengths, scores))
places = {(name, score): setup.place(f"{mac_budget}-{name}-{score}") for name, score in names}
found = {}
for name, score in names:
    found[name, score] = searched(setup, places[name, score], score=score, sharing=name, **goal, **how)

# %%
plans = {", ".join(name): stages[0].plan for name, stages in found.items()}
fig = plots.slimming_lengths({name: plan.lengths for name, plan in plans.items()}, shape.num_tokens)
plots.save(fig, figure)
fig

# %% [markdown]
# The patches that each block of the first of these plans computes, the same in every image; blocks count from 0:

# %%
plan = found[lengths[0], scores[0]][0].plan
masks = plots.slimming_masks(plan.kept, setup.vit.patch_embed.grid_size)
plots.save(masks, folder / "masks.png")
masks

# %% [markdown]
# ## The whole network
# Its logits under the plan are to be those of the unreduced network (`distill_epochs = 0` leaves this out). The paper
# trains it on labels (`finetune_epochs`), by DeiT's recipe. Both start from the tuned blocks; a stopped training
# goes on from its last epoch.

# %%
tuned = {name: stages[-1] for name, stages in found.items()}
if distill_epochs:
    for name, stage in tuned.items():
        place = places[name] and places[name] / "network"
        found[name].append(distilled(setup, stage, distill_epochs, distill_lr, folder=place))

# %%
if finetune_epochs:
    for name, stage in tuned.items():
        how = {"mixed_precision": mixed_precision, "folder": places[name] and places[name] / "labels"}
        found[name].append(finetuned(setup, stage, finetune_epochs, finetune_lr, **how))

# %% [markdown]
# ## Accuracy before and after
# `gmac` is what the slim model executes, `gmac_paper` what the authors' way of counting gives, in which keys and values
# are paid for all tokens; `mac_cut` is the share saved. `accuracy` is among the classes of the dataset, `accuracy_full`
# among all classes of the head, `top5` the right one among the five most probable of these; `gain`, of
# `accuracy_full`, is the difference to uniform lengths after the same training and on the same images. Each has its
# standard error behind it. `rounds` of passes in turn with the unreduced network measure images per second (`fps`) and
# the `speedup`; 0, as here, measures none.

# %%
rows = list(stage_rows(setup, found, mac_budget, rounds=rounds))
shown = ["lengths", "score", "training", "accuracy", "accuracy_sem", "accuracy_full", "accuracy_full_sem", "top5"]
shown += ["gain", "gain_sem", "gmac", "mac_cut", "gmac_paper", "mac_cut_paper", *(["fps", "speedup"] if rounds else [])]
pd.DataFrame(rows).reindex(columns=shown).style.format("{:.3g}", subset=shown[3:], na_rep="").hide(axis="index")

# %% [markdown]
# What the authors print, ImageNet-1k, GFLOPs by their counter, after fine-tuning of the whole network on labels:

# %%
published = read_published("patch_slimming")
published.query("method != 'other'")[["model", "method", "accuracy", "top5", "gflops", "cut"]].style.hide(axis="index")

# %% [markdown]
# ## Patches for each image
# Gates choose before a block computes anything. They start as the plan above and learn together, on images alone, where
# to leave it: until the network agrees with the unreduced one (`divergence`, in nats over all classes of the head); of
# all epochs the best on held-out images is kept, so that they end no worse than the plan there. Both variants compute
# as many patches as the plan: `fixed` in every image, `threshold` on average. Nothing but the gates is trained; `gain`
# and `divergence_change` are the differences to the plan, which is the same for all images.
#
# (The paper has gates predict each image's own significance. Chosen top-down, as the plan is, the true scores of an
# image do worse than their mean over images.)

# %%
place = places[names[0]] and places[names[0]] / "gates"
gating = {"epochs": gate_epochs, "num_images": gate_images, "limit_val": limit_dynamic, "folder": place}
dynamic = list(dynamic_rows(setup, plan, **gating)) if gate_epochs else []
rows += dynamic
shown = ["gates", "accuracy_full", "gain", "gain_sem", "divergence", "divergence_change", "tokens"]
pd.DataFrame(dynamic).reindex(columns=shown)

# %% [markdown]
# ## Budgets, scores and keys
# Without any tuning; all patches by the scores of the unreduced network. `gain` is the difference to uniform lengths
# with patches by significance. `selected` keys: patches that a block does not compute are not seen in it either, so
# that more tokens cost the same.

# %%
sweep = list(budget_rows(setup, budgets, error_images, limit_budgets))
rows += sweep
shown = ["lengths", "score", "keys", "mac_budget", "accuracy_full", "gain", "gain_sem", "divergence", "mac_cut"]
pd.DataFrame(sweep).reindex(columns=shown).style.format("{:.3g}", subset=shown[3:]).hide(axis="index")

# %%
measured = pd.DataFrame(rows).reindex(columns=["method", *Slimming.columns])
tradeoff = plots.slimming_tradeoff(measured[measured["part"].isin(["stages", "budgets"])])
plots.save(tradeoff, folder / "budgets.png")
tradeoff

# %% [markdown]
# ## Save
# `create_model(backbone, reducer="patch_slimming", plan=..., weights=...)` opens the two files.

# %%
plan.save(resolve(csv).with_suffix(".plan.json"))
last = found[lengths[0], scores[0]][-1]
if checkpoints:
    name = f"{mac_budget}-{lengths[0]}-{scores[0]}-{last.training}"
    save_state(last.vit, resolve(checkpoints) / f"{name}.safetensors")
constant = {"method": "patch_slimming", "keep_rate": 1.0, "seed": seed, "epochs": 0, **setup.conditions}
rows = [{**row, "n_calibration": len(setup.calibration)} for row in rows]
written = write_run(rows, Slimming, csv, profile=profile, **constant)
print(f"{len(rows)} rows in {written.name}")
