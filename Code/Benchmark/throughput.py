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
# # Throughput: how much faster is a ViT with fewer tokens?
#
# **Reproduces** the FPS, GFlops and parameter columns of the TRAM tables (ViT and SimpleViT, 75 / 50 / 25 %) and adds
# those that "Which Tokens to Use?" leaves out, with an honest baseline: the *same* backbone with fused attention, same
# dtype, same batch, measured in turn (A B C A B C ...).
#
# | | |
# |---|---|
# | Expected | speed-up a little below the MAC ratio in float32 (ViT-S, keep 50 %: MAC ratio 2.04) |
# | Time | under a minute with the defaults on 2 CPU cores |
# | All sizes | `./run_all.sh quick` (CPU) or `./run_all.sh paper` (GPU) |
# | From a shell | `python -m common.benchmark --backbone vit_small_patch16_224 --reducer tram --keep-rate 0.5` |
#
# All methods by default. TRAM's authors compare against "topk" (maximum over heads), "ats:sampler=random" and
# "patchmerger:parity=true" (no CLS token). GMAC counts attention, `gmac_thop_compat` does not: it is the "GFlops" of
# TRAM's tables. The ceiling is the speed-up of the same network on as many tokens, always the first ones: no method
# with these numbers of tokens can be faster. `runtimes`: what runs all models, the unreduced one too: "eager",
# "compiled" (by torch.compile) or "onnxruntime" (exported, on a CPU; with `dtypes = ["int8"]` the linear layers of
# the blocks multiply integers of 8 bits). The images are random; with a `dataset` and trained `weights` they are its
# photographs, of which ATS keeps more of some than of others, also at a budget: `keep_rates = ["mac_cut=0.4"]`.

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
from tqdm import tqdm

from common import plots
from common.benchmark import compare_all
from common.results import write_run
from common.studies.throughput import Throughput, shown_images

# %% tags=["parameters"]
profile = "notebook"
backbones = ["vit_tiny_patch16_224"]
reducers = [
    "tram",
    "topk",
    "evit",
    "dynamicvit",
    "ats",
    "tome",
    "kmedoids",
    "dpcknn",
    "patchmerger",
    "sinkhorn",
    "sit",
    "l1",
    "l2",
    "linf",
]
keep_rates = [0.75, 0.5, 0.25]
dtypes = ["float32"]
batch_sizes = [4]
img_size = None
dataset = ""
weights = ""
recipe = "pretrained"
rounds = 5
runtimes = ["eager"]
ceilings = True
seed = 0
device = None
csv = "results/notebook/throughput.csv"
figure = "results/notebook/throughput.png"

# %% [markdown]
# ## Measure
# Before anything is timed, the reduced model that keeps everything must give the backbone's logits to 1e-5.

# %%
how = {"dtypes": dtypes, "batch_sizes": batch_sizes, "img_size": img_size, "device": device, "runtimes": runtimes}
how |= {"rounds": rounds, "seed": seed, "ceilings": ceilings}
rows = []
for backbone in tqdm(backbones):
    shown, said = shown_images(backbone, weights, dataset, img_size, recipe, seed=seed)
    measured = compare_all(backbone, reducers, keep_rates, **how, **shown)
    rows += [{"backbone": backbone, **said, **row} for row in measured]

# %%
table = pd.DataFrame(rows)
table["MAC ratio"] = table.groupby(["backbone", "runtime", "dtype", "batch"]).gmac.transform("first") / table.gmac
columns = [
    "backbone",
    "method",
    "options",
    "keep_rate",
    "runtime",
    "dtype",
    "batch",
    "fps",
    "speedup",
    "MAC ratio",
    "ceiling",
    "peak_memory_mb",
    "gmac",
    "gmac_thop_compat",
]
table[columns].dropna(axis="columns", how="all").style.format(precision=3, na_rep="-").hide(axis="index")

# %% [markdown]
# ## Save
# The dotted line is the MAC ratio: what a machine would reach if only multiplications cost time.

# %%
write_run(rows, Throughput, csv, profile=profile, seed=seed, device=device)
fig = plots.speedup_vs_keep_rate(table)
plots.save(fig, figure)
fig
