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
# # Pretrained: how good are explanations?
#
# **Question:** MUTEX against eight other explainers, over many images. Insertion shows the hottest patches first,
# deletion takes them away first; a good explanation has a large area under the first curve and a small one under the
# second. Random heatmaps are the floor: every gain is a paired difference to them, image by image, with a t test.
# Last, models with fewer tokens: can they still be explained, on the full grid? MUTEX's own parameters and masks are
# the subject of `Pretrained/mutex_study`.
#
# | | |
# |---|---|
# | Defaults | 40 embedded digits, the small ViT of `Scratch/train_test`, black for what is not shown |
# | Expected | all but the worst beat random; what asks the model (MUTEX, integrated gradients) wins by deletion |
# | Time | about a minute on 2 CPU cores, the first time with the training of the small ViT |
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
from common.explain.explanations import Explanations
from common.results import resolve, write_run
from common.setup import Setup
from common.studies.explain_benchmark import ExplainBenchmark, explainer_rows, reduced_rows

# %% tags=["parameters"]
profile = "notebook"
dataset = "digits"
recipe = "pretrained"
backbone = "vit_digits"
weights = "digits"
explainers = [
    "mutex",
    "random",
    "raw_attention",
    "rollout",
    "gradient_rollout",
    "chefer",
    "grad_cam",
    "integrated_gradients",
    "tram",
]
reducers = ["tram", "tome"]
reduced_explainers = ["mutex", "random", "chefer"]
keep_rate = 0.5
num_images = 40
images = None
num_sensitive = 8
img_size = 32
baseline = "black"
batch_size = 32
seed = 0
device = None
checkpoints = ""
csv = "results/notebook/explain_benchmark.csv"
figure = "results/notebook/explain_benchmark.png"

# %% [markdown]
# ## The images
# Every image is asked about what the model predicts for it, right or wrong. `images` names them in place of their
# number: places among the validation images, or a YAML list of file numbers of ImageNet's.

# %%
same = {"img_size": img_size, "recipe": recipe, "batch_size": batch_size, "seed": seed, "device": device}
setup = Setup(backbone, weights, dataset, folder=checkpoints, **same)
found = Explanations(setup, images or num_images, baseline)
print(f"{len(found.dataset)} images of {dataset}, {backbone}: mean confidence {found.probabilities.mean():.3f}")

# %% [markdown]
# ## All explainers
# `gain` is the mean difference to random heatmaps, positive when better in both columns, `p` that of the paired t test.

# %%
rows = list(explainer_rows(found, explainers, num_sensitive=num_sensitive))
shown = ["method", "insertion_auc", "insertion_auc_sem", "insertion_gain", "insertion_p"]
shown += ["deletion_auc", "deletion_auc_sem", "deletion_gain", "deletion_p", "pointing", "mass", "seconds"]
pd.DataFrame(rows)[shown].style.format("{:.3g}", subset=shown[1:], na_rep="").hide(axis="index")

# %%
plane = plots.insertion_deletion_plane(pd.DataFrame(rows).assign(**setup.conditions))
plots.save(plane, figure)
plane

# %%
curves = plots.mean_curves({text: found.quality(text) for text in explainers})
plots.save(curves, resolve(figure).with_suffix("") / "curves.png")
curves

# %% [markdown]
# ## Models with fewer tokens
# Each reduced model is asked about its own predictions, and insertion and deletion run on it as well.

# %%
rows += reduced_rows(found, reducers, keep_rate, reduced_explainers)
reduced = pd.DataFrame(rows).query("part == 'reduced'")
shown = ["reducer", "keep_rate", *shown[:-3], "seconds"]
reduced[shown].style.format("{:.3g}", subset=shown[3:], na_rep="").hide(axis="index")

# %% [markdown]
# ## Save

# %%
written = write_run(
    rows, ExplainBenchmark, csv, profile=profile, seed=seed, image_ids=found.dataset.image_ids, **setup.conditions
)
print(f"{len(rows)} rows in {written.name}")
