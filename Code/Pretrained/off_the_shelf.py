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
# # Pretrained: token reduction off the shelf
#
# **Question:** how much accuracy does a trained ViT lose when tokens are dropped without any further training?
# Every method and keep rate sees the same images in one pass. With ImageNet weights accuracy is given twice: with the
# head restricted to the dataset's classes, and in full (all 1000 classes), which is the column that discriminates.
#
# | | |
# |---|---|
# | Defaults | embedded digits, the small ViT that `Scratch/train_test` trains |
# | Expected | at 50 % TRAM and TopK lose little; PatchMerger, whose queries are random here, loses most |
# | Time | under a minute on 2 CPU cores, the first time with the training of the small ViT |
# | Real images | `./run_all.sh imagenette`: ViT-Ti on all 3,925 Imagenette validation images |

# %%
import pandas as pd
import torch

from common import count_macs, load_dataset, plots, reduce_tokens
from common.data import head_classes, make_loader
from common.models.factory import create_backbone
from common.reducers import Method
from common.results import write_run
from common.studies.off_the_shelf import OffTheShelf
from common.training import accuracies, cross_entropy, predict, torch_device
from common.training.digits_backbone import resolve_weights
from common.training.metrics import hits_by_image

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
reducers = [
    "none",
    "tram",
    "topk",
    "topk:head_fusion=mean",
    "evit",
    "ats",
    "ats:sampler=random",
    "tome",
    "kmedoids",
    "dpcknn:equal_weight=true",
    "l1",
    "l2",
    "linf",
    "patchmerger",
]
keep_rates = [1.0, 0.9, 0.75, 0.5, 0.25]
img_size = 32
batch_size = 32
limit_val = None
seed = 0
workers = 0
device = None
csv = "results/notebook/off_the_shelf.csv"
figure = "results/notebook/off_the_shelf.png"

# %% [markdown]
# ## Data and models
# All models share the weights of one backbone; at keep rate 100 % every method is that backbone.

# %%
torch.manual_seed(seed)
val_set = load_dataset(dataset, "val", img_size=img_size, recipe=recipe, limit=limit_val, seed=seed)
vit = create_backbone(backbone, weights=resolve_weights(weights, backbone), img_size=img_size)
methods = [Method.parse(text) for text in reducers]
variants = [(m, rate) for m in methods for rate in ([1.0] if m.name == "none" else keep_rates)]
models = {(m, rate): reduce_tokens(vit, m.name, keep_rate=rate, **dict(m.options)) for m, rate in variants}
models = {key: model.to(torch_device(device)) for key, model in models.items()}
print(f"{len(val_set)} validation images of {dataset}, {len(models)} models of {backbone}")

# %%
predictions, labels = predict(models, make_loader(val_set, batch_size, shuffle=False, seed=seed, workers=workers))

# %% [markdown]
# ## Accuracy
# `accuracy` restricts the head to the dataset's classes, `accuracy_full` does not.

# %%
inside = head_classes(vit.num_classes, val_set)
rows = [
    {
        "method": method.name,
        "options": method.options_text,
        "keep_rate": rate,
        **accuracies(found.logits, labels, val_set),
        **hits_by_image(found.logits, labels, val_set),
        "loss": cross_entropy(found.logits, labels, inside),
        "gmac": count_macs(models[method, rate], img_size).total / 1e9,
        "images_per_second": found.images_per_second,
    }
    for (method, rate), found in predictions.items()
]
table = pd.DataFrame(rows).drop(columns=["accuracy_by_image", "accuracy_full_by_image"], errors="ignore")
table.style.format(precision=2).format("{:.4f}", subset="gmac").hide(axis="index")

# %% [markdown]
# ## Save

# %%
constant = {"backbone": backbone, "dataset": dataset, "img_size": img_size, "seed": seed, "epochs": 0}
constant |= {"dtype": "float32", "batch": batch_size, "n_val": len(val_set)}
constant |= {"profile": profile, "device": str(torch_device(device))}
write_run([{**row, **constant} for row in rows], OffTheShelf, csv, image_ids=val_set.image_ids)
table = table.assign(**constant)
fig = plots.accuracy_vs_keep_rate(table, value="accuracy" if inside is None else ("accuracy", "accuracy_full"))
plots.save(fig, figure)
fig
