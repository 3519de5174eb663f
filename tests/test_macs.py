"""The published cost columns, the closed forms and the counters must tell the same story."""

import pandas as pd
import pytest
import thop
import timm
import torch
from torch import nn

from common.macs import count_macs
from common.models.reduced import reduce_tokens
from common.reducers import Schedule, default_reduction_loc
from common.results import PUBLISHED, resolve
from common.sizing import Shape, executed, executed_total, published, published_model, thop_params

COLUMNS = ["backbone", "method", "keep_rate", "img_size", "gflops", "params"]


def published_rows():
    files = ["tram_accuracy.csv", "tram_throughput_vit.csv", "tram_throughput_simple_vit.csv"]
    rows = pd.concat([pd.read_csv(resolve(PUBLISHED / name)) for name in files])
    rows = rows[rows.method != "ats"][COLUMNS].drop_duplicates()
    return [pytest.param(*row, id=f"{row[0]}-{row[1]}-{row[2]}-{row[3]}") for row in rows.itertuples(index=False)]


ROWS = published_rows()


def test_every_deterministic_row_is_there():
    # 7.1: (1 vanilla + 2 x 3) x 2 sizes; 7.2: 4 methods x 3 sizes; 7.3: 3 x 3
    assert len(ROWS) == 14 + 12 + 9


@pytest.mark.usefixtures("no_init")
@pytest.mark.parametrize(("backbone", "method", "keep_rate", "img_size", "gflops", "params"), ROWS)
def test_published_gflops_and_params(backbone, method, keep_rate, img_size, gflops, params):
    model = published_model(backbone, method, keep_rate, img_size)
    counted = count_macs(model, img_size)
    schedule = Schedule(keep_rate, default_reduction_loc(12))
    prefix = 0 if method == "patchmerger" else None
    assert round(counted.thop_compat / 1e9, 4) == gflops
    assert counted.thop_compat == published(Shape.of(model), method, schedule, prefix=prefix)
    assert counted.total == executed_total(executed(Shape.of(model), method, schedule, prefix=prefix))
    if params == params:  # the README prints none
        assert thop_params(model) == params


@pytest.mark.parametrize("method", ["none", "tram", "topk", "patchmerger"])
def test_closed_form_at_another_depth_and_schedule(method):
    vit = timm.create_model("vit_tiny_patch16_224", depth=7, img_size=96, num_classes=5)
    schedule = Schedule(1.0 if method == "none" else (30, 30, 9), (1, 2, 5))
    model = reduce_tokens(vit, method, keep_rate=schedule.keep_rate, reduction_loc=schedule.reduction_loc)
    counted = count_macs(model, 96)
    assert counted.total == executed_total(executed(Shape.of(model), method, schedule))
    assert counted.total == counted.linear + counted.attention
    assert counted.thop_compat == published(Shape.of(model), method, schedule)


def test_thop_agrees_where_both_count():
    """thop sees no softmax in timm (attention is fused) and only torch's own LayerNorm; the rest must be equal."""
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, norm_layer=nn.LayerNorm).eval()
    expected, _ = thop.profile(vit, (torch.randn(1, 3, 64, 64),), verbose=False)
    n = 17
    assert count_macs(vit, 64).thop_compat - 12 * 3 * n * (3 * n - 1) == expected


def test_counting_leaves_the_model_as_it_was():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64).train()
    model = reduce_tokens(vit, "tram", keep_rate=0.5)
    before = torch.get_rng_state()
    first = count_macs(model, 64)
    assert model.training and not any(m._forward_hooks for m in model.modules() if isinstance(m, nn.Linear))
    assert torch.equal(before, torch.get_rng_state())
    assert count_macs(model, 64) == first
