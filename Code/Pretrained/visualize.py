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
# **Reproduces** TRAM's pictures: what is left of an image after the blocks that reduce, at 75 and 50 %. Blocks count
# from 0, as timm's `blocks.N`; the published titles say "Layer 3" for block 3. Below each row: the class
# that the full and the reduced model predict, with probabilities. The heat map shows how many blocks each place
# of the grid survives on average.
#
# | | |
# |---|---|
# | Defaults | embedded digits (a digit covers a quarter of the canvas), the small ViT of `Scratch/train_test` |
# | Expected | patches with ink and their surroundings survive longest |
# | Time | under a minute on 2 CPU cores, the first time with the training of the small ViT |
# | Real images | `./run_all.sh imagenette` |

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
from common.report.sections import percent
from common.results import resolve, write_run
from common.setup import Setup
from common.studies.visualize import Visualize, examples, measure, trace_images

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
setup = Setup(backbone, weights, dataset, img_size, recipe, batch_size=batch_size, seed=seed)
images = setup.some(num_images)
models = [setup.reduced(reducer, keep_rate=rate) for rate in keep_rates]
traced = trace_images(setup, models, images)
blocks = models[0].reducer.schedule.reduction_loc
print(f"{len(images)} images, normalised with mean {images.mean}; patches kept after blocks {blocks}")

# %% [markdown]
# ## The united grid

# %%
grid = setup.vit.patch_embed.grid_size
shown = examples(images, traced, blocks, num_shown)
fig = plots.united_grid(shown, patch_grid=grid, blocks=blocks, dropped=dropped)
plots.save(fig, figure)
fig

# %% [markdown]
# ## Single images

# %%
singles = resolve(figure).with_suffix("")
for number, example in enumerate(shown):
    single = plots.united_grid([example], patch_grid=grid, blocks=blocks, dropped=dropped)
    plots.save(single, singles / f"{number}_{example.class_name.replace(' ', '_')}.png")
single

# %% [markdown]
# ## How long each patch survives

# %%
kept = {f"keep rate {percent(each.keep_rate)}": each.kept for each in traced}
survival = plots.survival_map(kept, patch_grid=grid)
plots.save(survival, singles / "survival.png")
survival

# %% [markdown]
# ## Save

# %%
rows = measure(images, traced, reducer, blocks)
write_run(rows, Visualize, csv, profile=profile, seed=seed, **setup.conditions)
table = pd.DataFrame(rows)
table.groupby(["keep_rate", "block"])[["num_tokens", "probability", "probability_full_model"]].mean()
