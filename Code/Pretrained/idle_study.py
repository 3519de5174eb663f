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
# **Question:** given the number of patches that each block computes, how far is the perceptron from an oracle that
# knows what the block will change, and from chance? What do training the backbone, context for the perceptron and the
# way back contribute, and is IdleViT, which asks the CLS token in place of a perceptron, better?
#
# | | |
# |---|---|
# | Defaults | embedded digits, the small ViT of `Scratch/train_test`, modified attention, an epoch of distillation |
# | Expected | distillation wins back some of what idling costs; the order of the bounds takes real images to show |
# | Time | about a minute on 2 CPU cores, the first time with the training of the small ViT |
# | Real images | `./run_all.sh imagenette` |

# %%
from dataclasses import replace

import pandas as pd

from common import plots
from common.idling.states import alikeness
from common.idling.study import Candidate, bounds, open_bench, prediction, speeds
from common.idling.training import LABEL_STAGE, TASK_STAGE
from common.results import resolve, write_run
from common.training import torch_device

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
hidden = 16
idle_share = 0.204
cuts = [0.2]
epochs = 2
lr = 1e-3
tune_epochs = 1
tune_lr = 1e-4
contexts = ["cls", "conv"]
keep_rates = [0.7]
random_seeds = [0, 1, 2]
cut_weights = [20.0, 0.0]
img_size = 32
batch_size = 32
seed = 0
limit_train = 400
limit_val = None
limit_calibration = 128
limit_study = 200
device = None
checkpoints = ""
csv = "results/notebook/idle_study.csv"
figure = "results/notebook/idle_study.png"

# %%
sizes = {"img_size": img_size, "recipe": recipe, "batch_size": batch_size, "seed": seed, "device": device}
limits = {"limit_train": limit_train, "limit_val": limit_val, "limit_calibration": limit_calibration}
folder = resolve(checkpoints) if checkpoints else None
bench = open_bench(backbone, weights, dataset, **sizes, **limits, folder=folder)
dense, few, rows = Candidate("none", bench.build("none"), seed=seed), bench.some(limit_study), []
tau = alikeness(dense.model, bench.loader(), "blend").tau(idle_share)
settings = {"batch_size": batch_size}
labels, task = (replace(LABEL_STAGE, epochs=epochs, lr=lr, **settings), replace(TASK_STAGE, **settings))
task = replace(task, epochs=tune_epochs, lr=tune_lr)
shown = [
    "method",
    "options",
    "stage",
    "keep_rate",
    "patches_idle",
    "came_back",
    "macs_cut",
    "accuracy",
    "accuracy_full",
]
print(f"{len(bench.val_set)} validation images of {dataset}, {len(few)} for the variants; tau {tau:.3f}")

# %% [markdown]
# ## Frozen and tuned
# The second stage distils the unreduced model into the one with idle patches: no labels are used.

# %%
fitted = bench.fit(f"idle_mlp:hidden={hidden}", tau, labels)
frozen = [bench.within(fitted, cut) for cut in cuts]
tuned = [bench.tuned(model, cut, task) for model, cut in zip(frozen, cuts, strict=True)]
table, found = bench.rows([dense, *frozen, *tuned])
table = [{**row, "speedup": speed} for row, speed in zip(table, speeds(bench, [dense, *frozen, *tuned]), strict=True)]
rows += [{"study": "tuning", **row} for row in table]
pd.DataFrame(table)[[*shown, "speedup"]].style.format(precision=3, na_rep="").hide(axis="index")

# %%
names = [f"{row['stage']}, {row['macs_cut']:.0f} % saved" for row in table[1:]]
profiles = {name: each.idle_per_layer for name, each in zip(names, found[1:], strict=True)}
profile_figure = plots.idle_profile(profiles, dense.model.patch_embed.num_patches)
plots.save(profile_figure, resolve(figure).with_suffix("") / "profile.png")
profile_figure

# %% [markdown]
# ## Oracle, predictor, random
# Every block computes the same number of patches under all of them: the predictor's mean at the first budget.

# %%
counts = bench.counts(found[1])
table, _ = bench.rows(bounds(bench, fitted, counts, random_seeds), few)
rows += [{"study": "bounds", **row} for row in table]
pd.DataFrame(table)[shown].style.format(precision=3, na_rep="").hide(axis="index")

# %% [markdown]
# ## Context for the perceptron
# The CLS token, the neighbours of the patch; all at the first budget, which pays for them.

# %%
around = [bench.fit(f"idle_mlp:hidden={hidden},context={context}", tau, labels) for context in contexts]
variants = [bench.within(each, cuts[0]) for each in (fitted, *around)]
table, _ = bench.rows(variants, few)
table = [{**row, **prediction(bench, each, few)} for row, each in zip(table, variants, strict=True)]
rows += [{"study": "context", **row} for row in table]
quality = ["pruner_accuracy", "balanced_accuracy", "auroc"]
pd.DataFrame(table)[[*shown, *quality]].style.format(precision=3, na_rep="").hide(axis="index")

# %% [markdown]
# ## The way back, and IdleViT
# The schedule of IdleViT; without re-entry a patch that idled once is never computed again.

# %%
starts = (f"idle_mlp:hidden={hidden},", "idle_topk:")
texts = [f"{start}re_entry={way}" for start in starts for way in ("true", "false")]
pruners = {"idle_mlp": fitted.model.reducer}
variants = [
    Candidate(text, bench.build(text, pruners.get(text.partition(":")[0]), keep_rate=rate), seed=seed)
    for rate in keep_rates
    for text in texts
]
table, _ = bench.rows(variants, few)
rows += [{"study": "re_entry", **row} for row in table]
pd.DataFrame(table)[shown].style.format(precision=3, na_rep="").hide(axis="index")

# %% [markdown]
# ## IdleViT, distilled with and without its token cut loss

# %%
texts = [f"idle_topk:cut_weight={weight}" for weight in cut_weights]
starts = [Candidate(text, bench.build(text, keep_rate=keep_rates[0]), seed=seed) for text in texts]
table, _ = bench.rows([bench.tuned(each, None, task) for each in starts], few)
rows += [{"study": "idlevit", **row} for row in table]
pd.DataFrame(table)[shown].style.format(precision=3, na_rep="").hide(axis="index")

# %% [markdown]
# ## Save

# %%
constant = {"backbone": backbone, "dataset": dataset, "img_size": img_size, "dtype": "float32", "batch": batch_size}
write_run(rows, csv, table="idling", profile=profile, device=str(torch_device(device)), **constant)
trade = plots.idle_tradeoff(pd.DataFrame(rows).query("study in ('tuning', 'bounds')"))
plots.save(trade, figure)
trade
