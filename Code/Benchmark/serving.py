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
# # Serving: does the gain of token reduction survive?
#
# **Measures** what a speed-up is worth where single images are asked for by several clients at once: each client sends
# its next image when it has the answer to its last one. The model is called image by image, or on batches of what
# waits (micro-batching: up to `max_batch` images, or what came within `max_wait_ms`).
#
# | | |
# |---|---|
# | Expected | a share of the MAC ratio close to that of the throughput at batch 1, and larger in batches |
# | Time | under a minute with the defaults on 2 CPU cores |
# | All sizes | `./run_all.sh imagenette` |
# | From a shell | `python -m common.serving --reducer tram tome --keep-rate 0.5` |
#
# The ratio is to the unreduced model under the same load in the same round; models take turns. Promise: the ratio of
# the multiply-accumulates. The networks have random weights, which their speed does not depend on.

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
from tqdm import tqdm

from common import plots
from common.results import read_run, write_run
from common.serving import compare_load
from common.studies import find_study

# %% tags=["parameters"]
profile = "notebook"
backbones = ["vit_tiny_patch16_224"]
reducers = ["topk", "tome", "tram"]
keep_rates = [0.5]
img_size = None
clients = [1, 4, 8]
requests = 16
max_batch = 8
max_wait_ms = 2.0
rounds = 3
runtime = "eager"
seed = 0
device = None
csv = "results/notebook/serving.csv"
figure = "results/notebook/serving.png"

# %% [markdown]
# ## Measure
# One round of a model under a load lasts until all requests are answered; before it each client sends one image that
# is not timed.

# %%
how = {"clients": clients, "requests": requests, "max_batch": max_batch, "max_wait_ms": max_wait_ms, "rounds": rounds}
how |= {"img_size": img_size, "runtime": runtime, "device": device, "seed": seed}
rows = []
for backbone in tqdm(backbones):
    measured = compare_load(backbone, reducers, keep_rates, **how)
    rows += [{"backbone": backbone, **row} for row in measured]

# %%
study = find_study("serving")
run = read_run(write_run(rows, study, csv, profile=profile, seed=seed, device=device, dtype="float32"), study)
table = study.summarise(run)
shown = ["backbone", "max_batch", "clients", "method", "options", "keep_rate", "fps", "speedup", "promise"]
shown += ["p50_ms", "p95_ms", "p99_ms", "p95_ratio", "mean_batch"]
table[shown].style.format(precision=2).hide(axis="index")

# %% [markdown]
# ## What reaches the clients

# %%
for answer in study.answers(table):
    print(answer.text, *answer.points, sep="\n- ")

# %%
fig = plots.serving_load(run)
plots.save(fig, figure)
fig
