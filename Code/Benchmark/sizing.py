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
# # Sizing: where the multiplications go
#
# **Reproduces** every deterministic "GFlops" and parameter cell of the TRAM tables from first principles: the schedule
# gives the tokens of every block, the tokens give the operations. Two conventions, never mixed:
#
# * **thop-compatible** is what the tables print: linear layers, convolutions, LayerNorm, softmax, *no* attention
#   products, and the output projection paid for every token that enters the attention. Three ways give it: the formula,
#   this package's counter, and the library thop itself.
# * **GMAC** is what this package executes, attention products and TRAM's scores included.
#
# | | |
# |---|---|
# | Expected | all 35 rows equal to the printed 4 decimals; closed form, counter and thop equal to the unit |
# | Time | about 30 s on 2 CPU cores, no data, no weights |

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

from common import count_macs, plots
from common.cost.closed_form import Shape
from common.cost.methods import block_lengths, scheduled_macs, scheduled_parts
from common.cost.published import published_model, reproduce, run_thop, thop_macs
from common.reducers import Schedule, default_reduction_loc
from common.results import read_published, write_run
from common.studies.sizing import Sizing

# %% tags=["parameters"]
profile = "notebook"
backbone = "vit_small_patch16_224"
img_size = 224
keep_rate = 0.5
csv = "results/notebook/sizing.csv"
figure = "results/notebook/sizing.png"

# %% [markdown]
# ## 1. From the schedule to the tokens
# One ratio r compounds: stage s keeps floor(P r^s) of the P patches. Blocks 3, 6 and 9 of 12 reduce, between their
# attention and their MLP: attention still sees all tokens, the MLP only the kept ones.

# %% tags=["NBVAL_CHECK_OUTPUT"]
schedule = Schedule(keep_rate, default_reduction_loc(12))
model = published_model(backbone, "tram", keep_rate, img_size)
shape = Shape.of(model)
pd.DataFrame(block_lengths(shape, "tram", schedule)).drop(columns="merged_from").T

# %% [markdown]
# ## 2. From the tokens to the operations
# Per block with n tokens in the attention and m in the MLP: qkv 3 n D², attention 2 n² D, projection m D²,
# MLP 8 m D², TRAM's centrality 2 n² (two products of a vector with the adjacency).

# %% tags=["NBVAL_CHECK_OUTPUT"]
macs, by_hand = count_macs(model, img_size), scheduled_macs(shape, "tram", schedule)
by_hand_thop, (by_thop, _) = thop_macs(shape, "tram", schedule), run_thop(model, schedule, img_size)
assert by_hand == macs.total and by_hand_thop == macs.thop_compat == by_thop
print(f"by hand {by_hand:,} MAC; counted {macs.total:,}")
print(f"in thop's convention by hand {by_hand_thop:,}; counted {macs.thop_compat:,}; thop itself {by_thop:,}")

# %%
rows = []
for method, its in (("none", Schedule(1.0, schedule.reduction_loc)), ("tram", schedule)):
    blocks = zip(block_lengths(shape, method, its), scheduled_parts(shape, method, its), strict=True)
    for block, parts in blocks:
        place = {"method": method, "layer": block.layer, "tokens": block.attention + shape.num_prefix_tokens}
        rows += [{**place, "part": part, "macs": value} for part, value in parts.items()]
per_layer = pd.DataFrame(rows)
plots.macs_per_layer(per_layer)

# %% [markdown]
# ## 3. Every published row
# The published networks have no qkv bias, and all but TRAM's embed patches between two LayerNorms (1.2 MMAC and 3072
# parameters for ViT-B, in TRAM's favour). ATS is random and has no closed form.
#
# thop adds up what the modules of a network report. It runs here on the published networks as their authors run them:
# softmax is a module, and every token that attends is projected. On this package's models it would report less, since
# a fused softmax is no module and tokens that a block drops are not projected. `gmac_thop_compat` is counted on these
# models all the same, by hooks that know the convention, and equals thop's number in every row.

# %%
tables = {"7.1": "tram_accuracy", "7.2": "tram_throughput_vit", "7.3": "tram_throughput_simple_vit"}
columns = ["model", "backbone", "method", "keep_rate", "img_size", "gflops", "params"]
printed = pd.concat(
    read_published(name).query("method != 'ats'").reindex(columns=columns).drop_duplicates().assign(source=source)
    for source, name in tables.items()
)
printed = printed.rename(columns={"gflops": "published_gflops", "params": "published_params"}).reset_index(drop=True)
key = ["backbone", "method", "keep_rate", "img_size"]
counted = pd.DataFrame([reproduce(*row) for row in tqdm(printed[key].itertuples(index=False), total=len(printed))])
table = printed.join(counted)
with_params = table.dropna(subset="published_params")
assert (table.gmac_thop_compat.round(4) == table.published_gflops).all()
assert (table.gmac_thop == table.gmac_thop_compat).all()
assert (table.gmac_closed_form == table.gmac).all()
assert (with_params.params == with_params.published_params).all()

# %% tags=["NBVAL_CHECK_OUTPUT"]
print(
    f"{len(table)} published rows equal to 4 decimals; parameters equal in all {len(with_params)} rows that print them"
)

# %%
shown = ["source", "model", "backbone", "keep_rate", "published_gflops", "gmac_thop", "gmac_thop_compat", "gmac"]
table[[*shown, "gmac_attention"]].style.format(precision=4).hide(axis="index")

# %% [markdown]
# ## Save

# %%
write_run(table.to_dict("records"), Sizing, csv, profile=profile)
fig = plots.published_vs_counted(table)
plots.save(fig, figure)
fig
