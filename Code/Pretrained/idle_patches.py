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
# **Question:** how much does a block change a patch, can a small perceptron foresee it, and what does it cost to let
# the patches idle that hardly change? A patch that idles passes the block as it is and may come back in the next one.
#
# | | |
# |---|---|
# | Defaults | embedded digits, the small ViT of `Scratch/train_test`, two epochs for the perceptrons, backbone frozen |
# | Expected | some blocks change patches little, and most idling happens there; accuracy falls with the MAC saved |
# | Time | under a minute on 2 CPU cores, the first time with the training of the small ViT |
# | Real images | `./run_all.sh imagenette` |

# %%
from dataclasses import replace

import pandas as pd

from common import plots
from common.idling.states import alikeness
from common.idling.study import Candidate, open_bench
from common.idling.training import LABEL_STAGE
from common.results import read_published, resolve, write_run
from common.training import torch_device

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
hidden = 16
idle_shares = [0.204, 0.347]
cuts = [0.2, 0.35]
epochs = 2
lr = 1e-3
images = [0, 1]
img_size = 32
batch_size = 32
seed = 0
limit_train = 400
limit_val = None
limit_calibration = 128
limit_states = 200
device = None
checkpoints = ""
csv = "results/notebook/idle_patches.csv"
figure = "results/notebook/idle_patches.png"

# %%
sizes = {"img_size": img_size, "recipe": recipe, "batch_size": batch_size, "seed": seed, "device": device}
limits = {"limit_train": limit_train, "limit_val": limit_val, "limit_calibration": limit_calibration}
folder = resolve(checkpoints) if checkpoints else None
bench = open_bench(backbone, weights, dataset, **sizes, **limits, folder=folder)
dense = bench.build("none")
few = bench.some(limit_states)
print(f"{len(bench.val_set)} validation images of {dataset}, {backbone}; states of {len(few)}")

# %% [markdown]
# ## How alike are patches?
# Above, the cosine of the same patch before and after each block; below, the mean cosine of different patches.

# %%
states = alikeness(dense, bench.loader(few))
across, within = states.across.double().mean(0), states.within
similarity = plots.patch_similarity(across, within)
plots.save(similarity, resolve(figure).with_suffix("") / "similarity.png")
similarity

# %%
rows = [{"layer": 0, "within_similarity": within[0].item()}]
rows += [
    {"layer": layer + 1, "similarity": across[layer].mean().item(), "within_similarity": within[layer + 1].item()}
    for layer in range(len(across))
]
rows = [{"study": "similarity", "method": "none", "keep_rate": 1.0, **row} for row in rows]
rows = [{**row, "attention": "standard", "stage": "frozen", "n_train": 0, "epochs": 0} for row in rows]
rows = [{**row, "n_val": len(few), "seed": seed} for row in rows]

# %% [markdown]
# ## The threshold tau
# Published, for ViT-B: tau 0.95 lets 40 of 196 patches idle in a block, 0.90 lets 68. A small model changes its patches
# more, so tau is the quantile that lets the same shares idle.

# %%
blends = alikeness(dense, bench.loader(), "blend")
taus = [blends.tau(share) for share in idle_shares]
idle = {tau: 100 * (blends.across > tau).double().mean().item() for tau in (0.95, 0.9, *taus)}
pd.Series(idle, name="patches that may idle (%)").rename_axis("tau").round(3).to_frame()

# %% [markdown]
# ## The perceptrons, and what they cost
# For each tau perceptrons learn its labels on the frozen backbone. Then thresholds on their output are solved, block by
# block, for the share of multiply-accumulates to save. With modified attention idle patches are still seen: first with
# the same thresholds, then with thresholds for the same cost.

# %%
config = replace(LABEL_STAGE, epochs=epochs, lr=lr, batch_size=batch_size)
fitted = [bench.fit(f"idle_mlp:hidden={hidden}", tau, config) for tau in taus]
pairs = list(zip(fitted, cuts, strict=True))
standard = [bench.within(each, cut, "standard") for each, cut in pairs]
same_thresholds = [bench.attending(each, "modified") for each in standard]
same_cost = [bench.within(each, cut, "modified") for each, cut in pairs]
models = [*standard, *same_thresholds, *same_cost]
table, found = bench.rows([Candidate("none", dense, seed=seed), *models])
rows += [{**row, "study": "thresholds"} for row in table]

# %% [markdown]
# ### Measured

# %%
shown = ["method", "attention", "tau", "patches_idle", "came_back", "macs_cut", "accuracy", "accuracy_full"]
pd.DataFrame(table)[shown].style.format(precision=3, na_rep="").hide(axis="index")

# %% [markdown]
# ### Published (ViT-B/16, CIFAR-100)

# %%
read_published("patch_idling").query("table == 'thresholds'").drop(columns=["source", "table"]).style.hide(axis="index")

# %% [markdown]
# ## Who idles where?

# %%
pictures, computed, names = bench.masks(models[len(cuts)].model, images)
masks = plots.idle_patches(pictures, computed, names, patch_grid=dense.patch_embed.grid_size)
plots.save(masks, figure)
masks

# %%
labels = [f"{row['attention']}, {row['macs_cut']:.0f} % saved" for row in table]
profiles = {label: each.idle_per_layer for label, each in zip(labels[1:], found[1:], strict=True)}
profile_figure = plots.idle_profile(profiles, dense.patch_embed.num_patches)
plots.save(profile_figure, resolve(figure).with_suffix("") / "profile.png")
profile_figure

# %% [markdown]
# ## Save

# %%
constant = {"backbone": backbone, "dataset": dataset, "img_size": img_size, "dtype": "float32", "batch": batch_size}
write_run(rows, csv, table="idling", profile=profile, device=str(torch_device(device)), **constant)
print(f"{len(rows)} rows")
