"""The rows of the slimming notebooks, and the sentences and tables made of them."""

import pandas as pd
import pytest
import torch
from test_evaluation import Noise

from common import plots
from common.data import make_loader
from common.models.factory import create_backbone
from common.models.reduced import reduce_tokens
from common.report.published import published_slimming
from common.report.slimming import slimming_answers, slimming_sections
from common.slimming.costs import Costs
from common.slimming.study import head_rows, single_block_rows, stage_rows
from common.slimming.top_down import search

CONSTANT = {"dataset": "noise", "backbone": "vit_digits", "img_size": 32, "seed": 0}


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(2)
    vit = create_backbone("vit_digits").eval()
    data = Noise(torch.arange(12) % 10, 10)
    data.images = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return vit, data, make_loader(data, 5, shuffle=False, seed=0)


def test_stages_are_measured_on_the_models_they_name(parts):
    vit, data, loader = parts
    plan = search(vit, data.images, lengths=(40, 30, 20, 10, 5, 1), epochs=0)
    rows = stage_rows(vit, {"learned": (plan, vit)}, data, loader)
    assert [(row["schedule"], row["stage"], row["method"]) for row in rows] == [
        ("", "unreduced", "none"),
        ("learned", "searched", "patch_slimming"),
        ("learned", "tuned", "patch_slimming"),
    ]
    assert rows[0]["cut"] == 0 and rows[0]["gmac"] == Costs.of(vit).unreduced / 1e9
    assert rows[1]["tokens"] == "40 30 20 10 5 1" and rows[1]["cut"] > rows[1]["cut_paper"] > 0
    slim = reduce_tokens(vit, "patch_slimming", plan=plan)
    with torch.inference_mode():
        right = (slim(data.images).argmax(1) == data.labels).double().mean().item()
    assert rows[1]["accuracy"] == rows[2]["accuracy"] == pytest.approx(100 * right)
    assert rows[1]["accuracy_full"] is None and rows[1]["n_val"] == 12


def test_gain_is_the_difference_to_random_masks_and_tables_show_it(parts):
    vit, data, loader = parts
    choice = {"layers": [1, 4], "shares": [0.25], "scores": ["significance"], "random_masks": 2}
    rows = list(single_block_rows(vit, data.images, data, loader, **choice))
    assert [(row["layer"], row["schedule"]) for row in rows] == [
        (layer, name) for layer in (1, 4) for name in ("significance", "random")
    ]
    for scored, chance in zip(rows[::2], rows[1::2], strict=True):
        assert scored["gain"] == pytest.approx(scored["accuracy"] - chance["accuracy"]) and chance["gain"] == 0
        assert scored["tokens"] == chance["tokens"]
    rows += head_rows(vit, data.images, [1, 4])
    frame = pd.DataFrame(rows).assign(**CONSTANT)
    correlations = frame["rank_correlation"].dropna()
    assert len(correlations) == 10 and correlations.between(-1, 1).all()
    single, heads = slimming_sections(frame)
    assert single.frame["Block"].tolist() == ["2", "2", "5", "5"]
    assert heads.frame["Score"].tolist() == ["attention", "rollout", "same_head", "sampled", "single_block"]
    assert plots.single_block_accuracy(frame[frame["study"] == "single_block"]).axes[0].get_title().startswith("25 %")


def test_answers_say_what_is_lost_before_and_after():
    stages = [("", "unreduced", 74.0, 0.0), ("learned", "searched", 60.0, 0.45), ("learned", "tuned", 72.5, 0.45)]
    frame = pd.DataFrame(stages, columns=["schedule", "stage", "accuracy_full", "cut"])
    ((text, (point,)),) = slimming_answers(frame.assign(study="stages", accuracy=90.0, **CONSTANT))
    assert text.endswith("74.00 % without reduction, among all classes of the head.")
    assert point.startswith(
        "learned tokens, 45 % of the multiplications saved: 14.00 points lost before and 1.50 after"
    )


def test_published_numbers_stand_as_printed():
    section = published_slimming()
    assert len(section.frame) == 32 and section.folded
    assert section.frame.query("Model == 'DeiT-S' and Method == 'PS'")["Top-1"].tolist() == ["79.4", "79.4"]
