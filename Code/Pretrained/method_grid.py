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
# # Pretrained: ten reduction methods, one training protocol
#
# **Reproduces** the accuracy grid of "Which Tokens to Use?" (Haurum et al., ICCVW 2023): every method at keep rates of
# 90 / 70 / 50 / 25 %, all with the same weights to start from, the same images in the same order, the same AdamW and
# schedule. Epoch 0 is the method off the shelf. Ranks per keep rate are the paper's way to compare.
#
# Pruning methods choose patches (Top-K, EViT, DynamicViT, ATS), hard merging groups them (ToMe, K-Medoids, DPC-KNN),
# soft merging mixes them (PatchMerger, Sinkhorn, SiT); the three fixed patterns look at no image at all. DynamicViT
# learns from the unreduced network as its teacher, as its authors have it.
#
# **Not equal at equal keep rate:** methods that act before a block spare its attention, those that act between
# attention and MLP do not. The figure therefore plots accuracy over multiplications.
#
# | | |
# |---|---|
# | Defaults | embedded digits, the small ViT that `Scratch/train_test` trains, 1 epoch, six methods at two rates |
# | Expected | pruning hardly suffers off the shelf; soft merging starts near chance and needs the fine-tuning |
# | Time | under a minute on 2 CPU cores, the first time with the training of the small ViT |
# | All methods | `./run_all.sh quick` (digits), `imagenette` (ViT-Ti, real images), `which_tokens` (the paper) |
# | One long run | `python -m common.training CONFIG.yaml`, also under `torchrun`: checkpoints, resume, trackers |

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
from common.schema import accuracy_name
from common.studies.method_grid import Kept, MethodGrid, measure
from common.training import protocol, torch_device
from common.training.experiment import Experiment

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "which_tokens"
backbone = "vit_digits"
weights = "digits"
head = "dataset"
teacher_weights = ""
reducers = ["none", "topk:head_fusion=mean", "evit", "tome", "kmedoids", "sinkhorn", "l2"]
keep_rates = [0.9, 0.5]
img_size = 32
mean = None
std = None
epochs = 1
lr = 1e-3
backbone_lr_scale = 0.2
warmup_epochs = 0.2
warmup_prefix = True
backbone_freeze_epochs = 0
batch_size = 32
grad_accum_steps = 1
repeats = 1
clip_grad = None
mixup = 0.0
cutmix = 0.0
smoothing = 0.1
drop_path = 0.0
ema_decay = None
seed = 0
limit_train = None
limit_val = None
mixed_precision = "no"
workers = 0
device = None
checkpoints = ""
checkpoint = ""
records = ""
cls_at = []
csv = "results/notebook/method_grid.csv"
figure = "results/notebook/method_grid.png"

# %% [markdown]
# ## The protocol
# AdamW with weight decay 0.05, cosine after a warm-up, label smoothing. `head="dataset"` keeps, of a head of 1000
# ImageNet classes, the rows of the dataset's classes: no method has to learn the classes first. Other data need a new
# head (`fresh`), which says nothing before it is trained. Images with several labels are told apart by the asymmetric
# loss, take no mixing, and are measured by mAP. A method that learns from a teacher has the unreduced backbone, with
# `teacher_weights` where its own do not know the classes.

# %%
steps = {"epochs": epochs, "warmup_epochs": warmup_epochs, "warmup_prefix": warmup_prefix, "clip_grad": clip_grad}
updates = {"batch_size": batch_size, "grad_accum_steps": grad_accum_steps, "repeats": repeats}
rates = {"lr": lr, "backbone_lr_scale": backbone_lr_scale, "lr_batch_normalizer": None}
rates["backbone_freeze_epochs"] = backbone_freeze_epochs
noise = {"mixup": mixup, "cutmix": cutmix, "smoothing": smoothing, "ema_decay": ema_decay, "seed": seed}
machine = {"workers": workers, "device": device, "mixed_precision": mixed_precision}
config = protocol("which_tokens", **steps, **updates, **rates, **noise, **machine)
images = {"img_size": img_size, "recipe": recipe, "mean": mean, "std": std, "drop_path": drop_path}
limits = {"limit_train": limit_train, "limit_val": limit_val}
teacher = {"teacher": backbone if teacher_weights else "", "teacher_weights": teacher_weights}
start = Experiment(backbone, dataset, config, weights=weights, head=head, **images, **limits, **teacher)
config

# %% [markdown]
# ## Every method at every rate
# With a folder for `checkpoints`, a killed run goes on from its last epoch; `checkpoint` keeps the weights of a single
# model. With a folder for `records`, each trained model leaves there what it decides for every image, and its CLS
# tokens after the blocks `cls_at`: the notebooks on patterns and on what predicts accuracy read them (`trained`), and
# so does `python -m common.analysis`.

# %%
rows = measure(start, reducers, keep_rates, Kept(checkpoints, checkpoint, records, tuple(cls_at)))
table = pd.DataFrame(rows)

# %% [markdown]
# ## Accuracy and rank
# Ranks among the reduced models, per keep rate, before (epochs 0) and after training.

# %%
accuracy = table.pivot(index=["epochs", "method", "options"], columns="keep_rate", values="accuracy")
reduced = accuracy[accuracy.index.get_level_values("method") != "none"]
rank = reduced.groupby("epochs").rank(ascending=False, method="min")
pd.concat({f"{accuracy_name(dataset)} (%)": accuracy, "rank": rank}, axis=1).style.format("{:.4g}", na_rep="")

# %% [markdown]
# ## Save

# %%
where = {"profile": profile, "device": str(torch_device(device))}
write_run(rows, MethodGrid, csv, image_ids=start.val_set().image_ids, **where)
fig = plots.accuracy_mac_pareto(table)
plots.save(fig, figure)
fig
