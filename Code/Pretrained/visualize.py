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
# # Pretrained: which patches survive?
#
# **Reproduces** TRAM's pictures: what is left of an image after the blocks that reduce, at 75 and 50 %. The published
# titles call the first of them "Layer 3"; reductions happen in layers 4, 7 and 10 (counted from 1), as titled here.
# Below each row: the class that the full and the reduced model predict, with probabilities. The heat map shows for how
# many layers each place of the grid survives on average.
#
# | | |
# |---|---|
# | Defaults | embedded digits (a digit covers a quarter of the canvas), the small ViT of `Scratch/train_test` |
# | Expected | patches with ink and their surroundings survive longest |
# | Time | under a minute on 2 CPU cores, the first time with the training of the small ViT |
# | Real images | `./run_all.sh imagenette` |

# %%
import pandas as pd
import torch

from common import load_dataset, plots, reduce_tokens
from common.data import head_classes, make_loader
from common.models.factory import create_backbone
from common.reducers import Method
from common.results import resolve, write_run
from common.studies.visualize import Visualize
from common.training.digits_backbone import resolve_weights
from common.visualize import examples, trace_all

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
reducer = "tram"
keep_rates = [0.75, 0.5]
img_size = 32
num_images = 100
num_shown = 6
dropped = "dim"
batch_size = 50
seed = 42
csv = "results/notebook/visualize.csv"
figure = "results/notebook/visualize.png"

# %%
torch.manual_seed(seed)
method = Method.parse(reducer)
val_set = load_dataset(dataset, "val", img_size=img_size, recipe=recipe, limit=num_images, seed=seed)
vit = create_backbone(backbone, weights=resolve_weights(weights, backbone), img_size=img_size).eval()
models = {rate: reduce_tokens(vit, method.name, keep_rate=rate, **dict(method.options)) for rate in keep_rates}
loader = make_loader(val_set, batch_size, shuffle=False, seed=seed)
inside = head_classes(vit.num_classes, val_set)
traced = trace_all(vit, models, loader, val_set.classes, inside)
layers = models[keep_rates[0]].reducer.schedule.reduction_loc
print(f"{len(val_set)} images, patches kept after layers {[layer + 1 for layer in layers]}")

# %% [markdown]
# ## The united grid

# %%
grid = vit.patch_embed.grid_size
shown = examples(val_set, traced, layers, num_shown)
fig = plots.united_grid(shown, patch_grid=grid, layers=layers, dropped=dropped)
plots.save(fig, figure)
fig

# %% [markdown]
# ## Single images

# %%
singles = resolve(figure).with_suffix("")
for number, example in enumerate(shown):
    for row in example.rows:
        single = plots.kept_patches(example.image, row.kept, patch_grid=grid, layers=layers, dropped=dropped)
        plots.save(single, singles / f"{number}_{100 * row.keep_rate:g}_{example.class_name.replace(' ', '_')}.png")
single

# %% [markdown]
# ## How long each patch survives

# %%
survival = plots.survival_map({rate: trace.kept for rate, trace in traced.items()}, patch_grid=grid)
plots.save(survival, singles / "survival.png")
survival

# %% [markdown]
# ## Save

# %%
constant = {"method": method.name, "options": method.options_text, "backbone": backbone, "dataset": dataset}
constant |= {"img_size": img_size, "seed": seed, "dtype": "float32", "batch": batch_size}
rows = [row for trace in traced.values() for row in trace.rows(layers)]
write_run(rows, Visualize, csv, profile=profile, **constant)
table = pd.DataFrame(rows)
table.groupby(["keep_rate", "layer"])[["num_kept", "probability", "probability_full_model"]].mean()
