"""Tables and sentences about explanations on runs whose answers are known."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from fake_runs import (
    BASE,
    answered,
    areas_by_image,
    explain_agreement_run,
    explain_benchmark_run,
    explain_run,
    found_in,
    mutex_row,
    quality_row,
    whole_benchmark,
)

from common.errors import UsageError
from common.report import page, tables
from common.report.page import facts
from common.report.published import published_sections
from common.results import write_run
from common.studies import all_studies, find_study


def sections(root: Path, name: str) -> list:
    return list(found_in(root, name).sections)


def titled(root: Path, end: str):
    (section,) = (found for found in sections(root, "explain_benchmark") if found.title.endswith(end))
    return section


COLUMNS = {
    "explain": "reducer baseline areas image class_name predicted probability insertion_auc deletion_auc seconds",
    "explain_benchmark": "part reducer parameter value masks baseline n_images insertion_auc insertion_auc_sem "
    "deletion_auc deletion_auc_sem insertion_gain insertion_gain_sem deletion_gain deletion_gain_sem insertion_p "
    "deletion_p pointing pointing_sem mass mass_sem sparseness sparseness_sem max_sensitivity max_sensitivity_sem "
    "seconds",
    "explain_agreement": "reducer block n_images rank_correlation rank_correlation_sem iou iou_sem iou_chance "
    "iou_chance_sem above_chance above_chance_sem",
}


def shown_by_mutex(root: Path, **changed: object) -> list:
    """The sections of MUTEX on the bicycle of its authors, measured as they measure."""
    row = {"method": "mutex", "options": "parity=true", "reducer": "none", "baseline": "zero", "areas": "published"}
    row |= {"image": "ILSVRC2012_val_00042426.JPEG", "class_name": "mountain bike", "predicted": "mountain bike"}
    row |= {"probability": 0.9, "insertion_auc": 0.84791, "deletion_auc": 0.2021, "seconds": 0.5}
    where = {"backbone": "vit_base_patch16_224.orig_in21k_ft_in1k", "dataset": "imagenet", "img_size": 224, "seed": 0}
    where |= {name: changed.pop(name) for name in ("backbone", "img_size") if name in changed}
    write_run(
        [row | changed], find_study("explain"), root / "runs/explain/a.csv", **where, keep_rate=1.0, batch=32, **BASE
    )
    return sections(root, "explain")


def test_published_areas_stand_beside_ours_where_the_same_was_measured(tmp_path: Path) -> None:
    (section,) = shown_by_mutex(tmp_path)
    row = section.frame.iloc[0]
    assert (row["Insertion AUC (0 to 100)"], row["Published insertion auc"]) == ("84.79", "84.79")
    assert (row["Deletion AUC (0 to 100)"], row["Published deletion auc"]) == ("20.21", "20.18")
    assert "pixels are ranked one by one" in section.notes[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"options": ""},
        {"baseline": "black"},
        {"image": "ILSVRC2012_val_00000001.JPEG"},
        {"backbone": "vit_small_patch16_224"},
        {"method": "tram", "options": ""},
    ],
)
def test_published_areas_stand_beside_nothing_else(tmp_path: Path, changed: dict) -> None:
    (section,) = shown_by_mutex(tmp_path, **changed)
    assert section.frame["Published insertion auc"].tolist() == ["-"]


def test_areas_in_0_to_1_have_no_published_column(tmp_path: Path) -> None:
    (section,) = shown_by_mutex(tmp_path, areas="unit")
    assert section.frame["Insertion AUC"].tolist() == ["0.848"]
    assert not any("Published" in column for column in section.frame)


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_the_tables(name: str) -> None:
    assert " ".join(find_study(name).columns) == COLUMNS[name]


def test_what_may_be_empty(tmp_path: Path) -> None:
    explain_benchmark_run(tmp_path, quality_row("random", 0.4, 0.4, insertion_auc_sem=None))
    with pytest.raises(UsageError, match=r"no value .* 'deletion_auc'"):
        explain_benchmark_run(tmp_path, quality_row("random", 0.4, math.nan), name="b")
    with pytest.raises(UsageError, match="unknown part of explain_benchmark ''"):
        explain_benchmark_run(tmp_path, quality_row("random", 0.4, 0.4, part=""), name="b")
    with pytest.raises(UsageError, match="'parameter', which must have one"):
        explain_benchmark_run(tmp_path, mutex_row("min_cut", 0.1, 0.4, 0.4) | {"parameter": ""}, name="b")
    with pytest.raises(UsageError, match="'masks', which is of masks only"):
        explain_benchmark_run(tmp_path, quality_row("mutex", 0.4, 0.4, masks="all"), name="b")
    with pytest.raises(UsageError, match="'insertion_auc' that is no share; allowed: 0 to 1"):
        explain_benchmark_run(tmp_path, quality_row("mutex", 53.4, 0.4), name="b")


def test_benchmark_markdown_exactly(tmp_path: Path) -> None:
    whole_benchmark(tmp_path)
    first = sections(tmp_path, "explain_benchmark")[0]
    assert first.title == "digits, vit_digits, 32 px, baseline black, 60 images"
    assert tables.markdown_table(first) == (
        "| Explainer | Insertion AUC | Deletion AUC | Insertion gain | Deletion gain | Pointing game | Mass in box | "
        "Sparseness | Max-sensitivity | ms per image |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| MUTEX | 0.600 ± 0.010 | 0.250 ± 0.020 | +0.200 (p < 0.001) | +0.150 (p = 0.020) | 0.750 ± 0.050 | "
        "0.400 ± 0.020 | 0.200 | 0.050 | 50.0 |\n"
        "| rollout | 0.410 ± 0.010 | 0.430 ± 0.020 | +0.010 (p = 0.400) | -0.030 (p = 0.300) | 0.750 ± 0.050 | "
        "0.400 ± 0.020 | 0.300 | 0.100 | 50.0 |\n"
        "| random | 0.400 ± 0.010 | 0.400 ± 0.020 | - | - | - | - | - | - | 50.0 |"
    )
    notes = " ".join(first.notes)
    for said in ("higher is better", "lower is better", "over 60 images", "replaced by black", "whole patches"):
        assert said in first.notes[0]
    said = (
        "paired t test",
        "Pointing game",
        "Gini index",
        "threads: 2, batch 32",
        "Nothing is stressed",
        "digits, not",
    )
    assert all(words in notes for words in said)


def test_columns_without_numbers_and_their_notes_are_left_out(tmp_path: Path) -> None:
    explain_benchmark_run(tmp_path, quality_row("mutex", 0.6, 0.3, seconds=2.5), dataset="imagenette")
    (section,) = sections(tmp_path, "explain_benchmark")
    assert list(section.frame.columns) == ["Explainer", "Insertion AUC", "Deletion AUC", "s per image"]
    assert section.frame.iloc[0, -1] == "2.50"
    assert len(section.notes) == 2 and not any("digits" in note for note in section.notes)


def test_who_leads_is_told_by_differences_on_the_same_images(tmp_path: Path) -> None:
    """Chefer and MUTEX move together from image to image: 0.02 apart with standard errors of 0.02, and yet certain."""
    together, alone = [0.1, -0.1, 0.05, -0.05], [-0.1, 0.1, -0.05, 0.05]
    rows = [
        areas_by_image(quality_row("random", 0.40, 0.30), together, together),
        areas_by_image(quality_row("mutex", 0.62, 0.27), together, alone),
        areas_by_image(quality_row("chefer", 0.60, 0.25), together, together),
    ]
    explain_benchmark_run(tmp_path, *rows, image_ids=list("abcd"))
    (section,) = sections(tmp_path, "explain_benchmark")
    assert section.frame["Explainer"].tolist() == ["MUTEX", "Chefer", "random"]
    assert section.best == {(0, "Insertion AUC")}, "the deletion of MUTEX falls where that of Chefer rises"
    assert any("95 % interval" in note for note in section.notes)
    (answer,) = answered("explain_benchmark", found_in(tmp_path, "explain_benchmark").table)
    first, second = answer.points[:2]
    assert first == (
        "insertion AUC: MUTEX is highest, 0.620 ± 0.010 "
        "(paired difference to Chefer +0.020, 95 % interval +0.020 to +0.020)"
    )
    # 0.02 ± 3.182 sd / 2, where sd = 2 x 0.0913 is that of twice the amounts
    assert second == (
        "deletion AUC: Chefer is lowest, 0.250 ± 0.020 "
        "(paired difference to MUTEX +0.020, 95 % interval -0.271 to +0.311)"
    )


def test_values_by_image_do_not_reach_the_csv_of_the_table(tmp_path: Path) -> None:
    row = areas_by_image(quality_row("mutex", 0.6, 0.3), [0.1, -0.1], [0.0, 0.0])
    explain_benchmark_run(tmp_path, row, image_ids=["a", "b"])
    written = tables.write_tables(tmp_path, [find_study("explain_benchmark")])
    columns = pd.read_csv(written[0]).columns
    assert "insertion_auc" in columns and "images" not in columns and not columns.str.endswith("_by_image").any()


def test_models_are_not_compared_with_each_other(tmp_path: Path) -> None:
    rows = [
        quality_row("mutex", insertion, 0.3, part="reduced", reducer=reducer, keep_rate=0.5)
        for reducer, insertion in (("tram", 0.5), ("tome", 0.9))
    ]
    rows += [quality_row("chefer", 0.4, 0.3, part="reduced", reducer="tome", keep_rate=0.5)]
    rows = [areas_by_image(row, [0.1, -0.1], [0.0, 0.0]) for row in rows]
    explain_benchmark_run(tmp_path, *rows, image_ids=["a", "b"])
    (section,) = sections(tmp_path, "explain_benchmark")
    assert section.frame.iloc[:, :2].to_numpy().tolist() == [
        ["TRAM, 50 %", "MUTEX"],
        ["ToMe, 50 %", "MUTEX"],
        ["ToMe, 50 %", "Chefer"],
    ]
    assert section.best == {(1, "Insertion AUC")}, "ahead of Chefer on the same model"


def test_studies_follow_folded_and_in_order(tmp_path: Path) -> None:
    whole_benchmark(tmp_path)
    found = sections(tmp_path, "explain_benchmark")
    assert [section.title.partition(": ")[2] for section in found] == [
        "",
        "min_cut of MUTEX",
        "token_ratio of MUTEX",
        "starting_layer of MUTEX",
        "MUTEX with some of its masks",
        "models with fewer tokens",
    ]
    assert [section.folded for section in found] == [False, *[True] * 5]
    assert titled(tmp_path, "starting_layer of MUTEX").frame["starting_layer"].tolist() == ["2", "11"]
    assert titled(tmp_path, "min_cut of MUTEX").frame["Explainer"].tolist() == ["MUTEX", "MUTEX"]
    masks = titled(tmp_path, "masks")
    assert masks.frame["Masks used"].tolist() == ["all 54", "centrality: in-degree (27)", "layers: minimum (6)"]
    assert "ms per image" not in masks.frame
    models = titled(tmp_path, "fewer tokens").frame["Explained model"].tolist()
    assert models == ["TRAM, 70 %", "TRAM, 50 %", "Top-K (head_fusion=mean), 50 %"]


def test_studies_of_fewer_images_come_after_the_comparison(tmp_path: Path) -> None:
    explain_benchmark_run(tmp_path, mutex_row("min_cut", 0.1, 0.6, 0.3, n_images=30), quality_row("mutex", 0.6, 0.3))
    titles = [section.title.partition("black, ")[2] for section in sections(tmp_path, "explain_benchmark")]
    assert titles == ["60 images", "30 images: min_cut of MUTEX"]


def test_other_options_and_seeds_are_named(tmp_path: Path) -> None:
    row = mutex_row("min_cut", 0.1, 0.6, 0.3, options="min_cut=0.1,token_ratio=0.25")
    explain_benchmark_run(tmp_path, row)
    explain_benchmark_run(tmp_path, row, name="b", seed=1)
    explain_benchmark_run(tmp_path, row, name="c", weights="timm")
    first, second, third = sections(tmp_path, "explain_benchmark")
    ends = [section.title.partition(": ")[0].partition("images, ")[2] for section in (first, second, third)]
    assert ends == ["weights , seed 0", "weights , seed 1", "weights timm, seed 0"]
    assert first.frame.iloc[0, :2].tolist() == ["MUTEX (token_ratio=0.25)", "0.1"]


def test_repeats_and_unknown_studies_are_refused(tmp_path: Path) -> None:
    explain_benchmark_run(tmp_path, quality_row("mutex", 0.6, 0.3))
    explain_benchmark_run(tmp_path, quality_row("mutex", 0.7, 0.3), name="b")
    with pytest.raises(UsageError, match="more than once: a, b"):
        found_in(tmp_path, "explain_benchmark")
    with pytest.raises(
        UsageError, match="unknown part of explain_benchmark 'weather'; allowed: explainers, masks, parameters, "
    ):
        explain_benchmark_run(tmp_path, quality_row("mutex", 0.7, 0.3, part="weather"), name="b")


def test_single_images(tmp_path: Path) -> None:
    explain_run(tmp_path, ("random", "mutex"))
    found = found_in(tmp_path, "explain")
    (section,) = found.sections
    assert section.title == "digits, vit_digits, 32 px"
    assert section.frame.to_numpy().tolist()[:2] == [
        ["3 (val-3)", "MUTEX", "3", "0.600", "0.700", "0.300", "12.5"],
        ["3 (val-3)", "random", "3", "0.600", "0.800", "0.200", "12.5"],
    ]
    assert section.best == set() and not section.folded
    assert section.notes[0].endswith("What is hidden is replaced by black.")
    first, second = answered("explain", found.table)
    assert first.text == "val-3 (3): vit_digits says 3 (60.0 %)."
    assert second.text == "val-5 (5): vit_digits says 3 (40.0 %)."
    assert second.points[0] == "MUTEX: insertion AUC 0.700, deletion AUC 0.300"


def test_answers_of_the_benchmark(tmp_path: Path) -> None:
    whole_benchmark(tmp_path)
    (answer,) = answered("explain_benchmark", found_in(tmp_path, "explain_benchmark").table)
    assert answer.text == "On 60 images of digits at 32 px with vit_digits, baseline black, 3 explainers:"
    assert answer.points == (
        "insertion AUC: MUTEX is highest, 0.600 ± 0.010 (no paired test)",
        "deletion AUC: MUTEX is lowest, 0.250 ± 0.020 (no paired test)",
        "better than random heat in both, each with p < 0.05: MUTEX",
        "not certainly better than random heat in both: rollout",
    )


def test_agreement_with_reducers(tmp_path: Path) -> None:
    explain_agreement_run(tmp_path)
    found = found_in(tmp_path, "explain_agreement")
    ranks, overlap = found.sections
    assert ranks.title == "digits, vit_digits, 32 px, keep rate 50 %, 60 images: rank correlation"
    assert ranks.frame.to_dict("list") == {
        "Explainer": ["MUTEX", "random"],
        "Top-K (head_fusion=mean), block 4": ["0.50 ± 0.02", "0.00 ± 0.02"],
    }
    assert overlap.frame.to_dict("list") == {
        "Explainer": ["MUTEX", "random"],
        "Top-K (head_fusion=mean), block 4": ["0.38 ± 0.01 (+0.12)", "0.25 ± 0.01 (+0.00)"],
        "l2 pattern, block 3": ["0.38 ± 0.01 (+0.12)", "0.25 ± 0.01 (+0.00)"],
    }
    (answer,) = answered("explain_agreement", found.table)
    assert answer.points[0] == (
        "rank correlation is highest between MUTEX and Top-K (head_fusion=mean): +0.50 (no paired test)"
    )
    assert all("Blocks count from 0, as timm's blocks.N" in " ".join(section.notes) for section in found.sections)
    assert answer.points[1].startswith("IoU exceeds chance most between MUTEX and ")


def test_published_areas_stand_apart_and_as_printed() -> None:
    text = tables.markdown("Published numbers", published_sections())
    assert "| DeiT | ILSVRC2012_val_00042426 | mountain bike | 94.89 | 39.13 |" in text
    assert "0 after normalisation. None of it is comparable" in text
    assert "Source: MUTEX repository, Usage_example notebook output" in text


def test_page_shows_explanations_with_their_figures(tmp_path: Path) -> None:
    whole_benchmark(tmp_path)
    explain_agreement_run(tmp_path)
    figures = {"explain_benchmark/a.png", "explain_benchmark/a/curves.png", "explain_benchmark/a/masks.png"}
    for name in figures:
        path = tmp_path / "figures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x89PNG")
    text = page.render(tmp_path, all_studies())
    chapter = text.partition('<section id="explain_benchmark">')[2].partition("</section>")[0]
    assert chapter.count("<img ") == 4, "three summary figures and the curves of the run"
    assert "Run a/curves." in chapter
    assert "<code>figures/explain_benchmark/a/masks.png</code>" in chapter
    assert chapter.count("<details>") == 5, "the studies are closed"
    assert text.partition('<section id="explain_agreement">')[2].partition("</section>")[0].count("<img ") == 1
    summary = sorted(path.stem for path in (tmp_path / "figures/summary").iterdir())
    ends = ("_agreement", "_benchmark_masks", "_benchmark_parameters", "_benchmark_plane")
    assert summary == [f"explain{end}" for end in ends]


def test_figures_are_drawn_of_the_studies_that_were_run(tmp_path: Path) -> None:
    explain_benchmark_run(tmp_path, quality_row("mutex", 0.6, 0.3, part="masks", masks="all"))
    drawn = page.draw_summaries(tmp_path, [found_in(tmp_path, name) for name in all_studies()])
    assert {name: list(figures) for name, figures in drawn.items() if figures} == {"explain_benchmark": ["masks"]}


def test_explainers_are_no_methods_of_reduction(tmp_path: Path) -> None:
    whole_benchmark(tmp_path)
    explain_run(tmp_path)
    runs = [found_in(tmp_path, name).runs for name in ("explain", "explain_benchmark")]
    found = facts(pd.concat(runs), ["explain", "explain_benchmark"])
    assert found["Explainers"] == "MUTEX, random, rollout"
    assert "Methods" not in found and "Keep rates" not in found
    assert isinstance(found_in(tmp_path, "explain").table, pd.DataFrame)
