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
# # Scratch: train a ViT or SimpleViT that reduces tokens from the first step on
#
# **Reproduces** TRAM's scratch protocol for one model: 160 px, patch 16, batch 64, Adam 1e-4 halved every 10 epochs,
# rotation, colour jitter, flips and random crops. Every run starts from its own fresh model; the published notebook
# continued the 75 % TRAM model at 50 % and its TopK and ATS cells could not run, so its numbers are not comparable.
# ViT here is timm's (qkv bias, convolution as patch embedding, small initial values); `start="published"` is
# vit-pytorch's, as TRAM's authors have it (no qkv bias, patches normalised before and after their embedding, positions
# and CLS token of deviation 1, linear layers as torch draws them). Published accuracies stand beside that start only.
#
# | | |
# |---|---|
# | Defaults | the embedded digits, a small ViT, Muon with a cosine schedule (Adam needs three times the epochs here) |
# | Expected | without reduction above 90 % of the validation digits; TRAM at 50 % some points below |
# | Time | about 40 s on 2 CPU cores |
# | The paper's setting | `./run_all.sh paper` (Imagenette, CIFAR-10, FashionMNIST; ViT-B/S; a GPU) |

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
from pathlib import Path

import pandas as pd

from common import plots
from common.results import resolve, write_run
from common.studies.finetune import measure
from common.studies.scratch import Scratch
from common.training import TrainConfig, torch_device
from common.training.experiment import Experiment
from common.weights import save_state

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
backbone = "vit_digits"
start = "timm"
reducer = "tram"
keep_rate = 0.5
img_size = 32
epochs = 14
lr = 1e-3
optimizer = "muon"
schedule = "cosine"
batch_size = 32
seed = 42
limit_train = None
limit_val = None
mixed_precision = "no"
workers = 0
device = None
checkpoint = ""
checkpoints = ""
csv = "results/notebook/train_test.csv"
figure = "results/notebook/train_test.png"

# %% [markdown]
# ## Data and model

# %%
config = TrainConfig(
    epochs=epochs,
    lr=lr,
    optimizer=optimizer,
    schedule=schedule,
    warmup_epochs=0.1 * epochs if schedule == "cosine" else 0.0,
    batch_size=batch_size,
    seed=seed,
    mixed_precision=mixed_precision,
    workers=workers,
    device=device,
)
limits = {"limit_train": limit_train, "limit_val": limit_val}
network = {"start": start, "reducer": reducer, "keep_rate": keep_rate, "img_size": img_size, "recipe": "scratch"}
folder = f"{checkpoints}/{Path(csv).stem}" if checkpoints else ""
experiment = Experiment(backbone, dataset, config, **network, **limits, output_dir=folder)
train_set, val_set = experiment.datasets()
model = experiment.model(val_set)
print(f"{len(train_set)} training and {len(val_set)} validation images of {dataset}; {model.reducer}")

# %% [markdown]
# ## Train
# Epoch 0 is the model before training. The validation set is only ever evaluated: no model is selected on it.
# With a folder for `checkpoints` a stopped run goes on from its last epoch.

# %%
rows = measure(experiment, model, (train_set, val_set))
history = pd.DataFrame(rows)
history[["epoch", "train_loss", "val_loss", "val_accuracy", "epoch_lr", "epoch_seconds", "loading_seconds"]]

# %% [markdown]
# ## Save

# %%
if checkpoint:
    save_state(model, resolve(checkpoint))
write_run(rows, Scratch, csv, profile=profile, device=str(torch_device(device)))
experiment.clear()
fig = plots.learning_curves(history)
plots.save(fig, figure)
fig
