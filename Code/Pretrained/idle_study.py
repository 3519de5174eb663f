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
# # Pretrained: what makes idling work?
#
# **Question:** given the number of patches that each block computes, how far is the predictor, a small MLP, from an
# oracle that knows what the block will change, and from chance? Does it help to know how much a change matters? What do
# training the backbone, context for the predictor and re-entry contribute, and is IdleViT, which asks the CLS token in
# place of a predictor, better?
#
# | | |
# |---|---|
# | Defaults | embedded digits, the small ViT of `Scratch/train_test`, an epoch of distillation |
# | Expected | all lose little here; the order of the bounds, and what influence is worth, take real images to show |
# | Time | about a minute on 2 CPU cores, the first time with the training of the small ViT |
# | Real images | `./run_all.sh imagenette`: ViT-Ti, an hour on one core |
#
# What came out on real images (ViT-Ti, Imagenette, top-1 among all 1000 classes, 20 % of the MAC saved, one seed). On
# all 3,925 validation images 74.2 % without idling; by what would be lost 70.8 % with the backbone frozen and 73.8 %
# after an epoch of distillation on 2,000 images; by change 19.9 % and 72.5 %. At equal numbers in every block, on 500
# images, the oracle has 73.8 %, the predictor 68.6 %, chance 48.9 %; by change 32.0, 17.0 and 34.1 %: how little a
# block changes a patch does not tell which patches may skip it. Context raises the AUROC from 0.928 to 0.935, not the
# accuracy. Re-entry hurts a backbone that was not trained for it: at a keep rate of 70 % 56.2 % with it and 67.4 %
# without, IdleViT 26.0 and 70.0 %. After an epoch on 500 images IdleViT has 49.2 % with its cut loss and 48.8 %
# without.

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
from operator import itemgetter

import pandas as pd

from common import plots
from common.idling.candidates import LABEL_STAGE, Candidate, bounds, fit_predictors, tune, variant, within_budget
from common.idling.rows import idle_shares_by_block, measure, prediction, speeds, try_rates
from common.results import resolve, write_run
from common.setup import Setup
from common.studies.idling import Idling
from common.training.distillation import DISTILLATION

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
hidden = 16
labels = ["similarity=blend,attention=modified", "similarity=rel_norm,influence=rollout,attention=standard"]
idle_share = 0.204
cut = 0.2
epochs = 2
lr = 1e-3
tune_epochs = 1
tune_rates = [3e-5, 1e-4, 3e-4]
contexts = ["cls", "conv"]
keep_rate = 0.7
random_seeds = [0, 1, 2]
cut_weights = [20.0, 0.0]
img_size = 32
batch_size = 32
seed = 0
limit_train = 400
limit_labels = None
limit_variants = None
limit_val = None
limit_calibration = 128
limit_study = 200
device = None
checkpoints = ""
csv = "results/notebook/idle_study.csv"
figure = "results/notebook/idle_study.png"

# %%
limits = {"limit_train": limit_train, "limit_val": limit_val, "limit_calibration": limit_calibration}
shared = {"img_size": img_size, "recipe": recipe, "batch_size": batch_size, "seed": seed, "device": device}
setup = Setup(backbone, weights, dataset, **shared, **limits, folder=checkpoints)
dense, few = Candidate("none", setup.reduced("none"), seed=seed), setup.some(limit_study)
stage_1 = replace(LABEL_STAGE, epochs=epochs, lr=lr, batch_size=batch_size)
stage_2 = replace(DISTILLATION, epochs=tune_epochs, batch_size=batch_size)
shown = ["method", "options", "stage", "patches_idle", "reactivated", "mac_cut", "accuracy", "accuracy_full"]


def table_of(rows, *more):
    return pd.DataFrame(rows).reindex(columns=[*shown, *more]).style.format(precision=3, na_rep="").hide(axis="index")


print(f"{len(setup.val_set)} validation images of {dataset}, {len(few)} for the variants")

# %% [markdown]
# ## Frozen and tuned
# Predictors learn two kinds of labels. The published one: a patch may idle where the block changes it little, by
# cosine and distance; idle patches are still seen. The other: where little would be lost. What is lost is the change of
# the patch and, as idle patches are not seen, its share in what the block tells the others, each as far as it can be
# traced to what the head reads through the attention of all later blocks.
#
# The second stage distils the unreduced model into the one with idle patches; no classes are used. Its learning rate is
# the one that comes closest to the unreduced model on training images that nothing is trained on.

# %%
texts = [f"idle_mlp:hidden={hidden},{label}" for label in labels]
fitted = [fit_predictors(setup, text, stage_1, limit_labels, idle_share=idle_share) for text in texts]
frozen = [within_budget(setup, each, cut) for each in fitted]
rates = try_rates(setup, frozen[-1], cut, stage_2, tune_rates, limit_variants)
best = replace(stage_2, lr=min(rates, key=itemgetter("divergence"))["lr"])
pd.DataFrame(rates)[["lr", "divergence", "mac_cut", "accuracy"]].style.format(precision=5).hide(axis="index")

# %%
models = [dense, *frozen, *(tune(setup, each, cut, best) for each in frozen)]
tuning, found = measure(setup, "tuning", models)
for row, speed in zip(tuning, speeds(setup, models), strict=True):
    row["speedup"] = speed
table_of(tuning, "accuracy_change", "speedup")

# %%
profile_figure = plots.idle_profile(idle_shares_by_block(tuning, found))
plots.save(profile_figure, resolve(figure).with_suffix("") / "profile.png")
profile_figure

# %% [markdown]
# ## Oracle, predictor, random
# Every block computes the same number of patches under all of them: the predictor's mean. The oracle is what the
# predictor learns.

# %%
bounded = []
for each, seen in zip(frozen, found[1:], strict=False):
    bounded += bounds(setup, each, seen.counts, random_seeds)
bounded, _ = measure(setup, "bounds", bounded, few)
table_of(bounded)

# %% [markdown]
# ## Context for the predictor
# The CLS token, the neighbours of the patch; all at the same budget, which pays for them, by the last labels.

# %%
around = [
    fit_predictors(setup, f"{texts[-1]},context={context}", stage_1, limit_labels, idle_share=idle_share)
    for context in contexts
]
variants = [frozen[-1], *(within_budget(setup, each, cut) for each in around)]
context, _ = measure(setup, "context", variants, few)
for row, each in zip(context, variants, strict=True):
    row.update(prediction(setup, each, few))
table_of(context, "predictor_accuracy", "balanced_accuracy", "auroc")

# %% [markdown]
# ## Re-entry, and IdleViT
# The schedule of IdleViT; without re-entry a patch that idled once is never computed again.

# %%
starts = [fitted[-1], Candidate("idle_topk:cut_weight=20.0", setup.reduced("idle_topk"), seed=seed)]
variants = []
for each in starts:
    variants += [variant(setup, each, {"re_entry": back}, keep_rate=keep_rate) for back in (True, False)]
re_entry, _ = measure(setup, "re_entry", variants, few)
table_of(re_entry)

# %% [markdown]
# ## IdleViT, distilled with and without its token cut loss

# %%
texts = [f"idle_topk:cut_weight={weight}" for weight in cut_weights]
starts = [Candidate(text, setup.reduced(text, keep_rate=keep_rate), seed=seed) for text in texts]
idlevit, _ = measure(setup, "idlevit", [tune(setup, each, None, best, limit_variants) for each in starts], few)
table_of(idlevit)

# %% [markdown]
# ## Save

# %%
rows = [*rates, *tuning, *bounded, *context, *re_entry, *idlevit]
write_run(rows, Idling, csv, profile=profile, **setup.conditions)
trade = plots.idle_tradeoff(pd.DataFrame([*tuning, *bounded]))
plots.save(trade, figure)
trade
