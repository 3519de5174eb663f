"""Explanations of single images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from common.data.transforms import denormalise
from common.explain.base import explainer_columns
from common.explain.explanations import Explanations
from common.explain.images import class_names, output_names
from common.plots import HeatmapRow
from common.plots.frames import backbone_name
from common.report.rows import architecture
from common.report.sections import Answer, Section, numbers
from common.results import read_published
from common.schema import REQUIRED, number, text
from common.studies import _explained as explained
from common.studies.base import Study, register_study

_TABLE = [*explained.SETTING, "reducer", "keep_rate", "baseline", "areas", "seed"]
_AREAS = ["insertion_auc", "deletion_auc"]
# The printed areas are of MUTEX with the parameters of its usage example, our defaults, and of its own rankings.
_AS_PUBLISHED = {"method": "mutex", "options": "parity=true", "baseline": "zero", "areas": "published"}
_HUNDRED = 100  # published areas are over percent
_OPEN_ROWS = 30  # a table of more rows starts closed
_SHOWN = ("class_name", "predicted", "probability", "insertion_auc", "deletion_auc")


def pictures(found: Explanations) -> list[np.ndarray]:
    """The images (H, W, 3) that are explained, in [0, 1]."""
    dataset = found.dataset
    images = denormalise(dataset.stack(), dataset.mean, dataset.std)  # (n, 3, H, W)
    return list(images.permute(0, 2, 3, 1).numpy())


def image_rows(found: Explanations, explainer: str) -> list[dict[str, object]]:
    """Rows of the table "explain", one per image."""
    quality, outputs = found.quality(explainer), found.model.num_classes
    names, true = output_names(outputs, found.dataset), class_names(outputs, found.dataset)
    conditions = found.setup.conditions
    same = {name: conditions[name] for name in ("backbone", "weights")}
    same |= {**explainer_columns(explainer), "reducer": found.reducer, "keep_rate": found.keep_rate}
    same |= {"baseline": found.baseline, "areas": found.areas, "seconds": found.seconds(explainer)}
    scale = _HUNDRED if found.areas == "published" else 1
    return [
        {
            **same,
            "image": image,
            "class_name": true[place],
            "predicted": names[found.labels[place]],
            "probability": found.probabilities[place].item(),
            "insertion_auc": quality.insertion_auc[place].item() / scale,
            "deletion_auc": quality.deletion_auc[place].item() / scale,
        }
        for place, image in enumerate(found.dataset.image_ids)
    ]


def heatmap_rows(found: Explanations, explainer: str) -> list[HeatmapRow]:
    """What :func:`common.plots.heatmaps` draws, a row per image."""
    quality, heat, images = found.quality(explainer), found.explain(explainer).heatmaps, pictures(found)
    return [
        HeatmapRow(
            image=images[place],
            heatmap=heat[place],
            shares=quality.shares,
            insertion=quality.insertion[place],
            deletion=quality.deletion[place],
            label=backbone_name(found.setup.backbone),
            **{name: row[name] for name in _SHOWN},
        )
        for place, row in enumerate(image_rows(found, explainer))
    ]


def _stem(image: str) -> str:
    """An image's name without its suffix, as the source prints it."""
    return image.removesuffix(".JPEG")


def _area_columns(rows: pd.DataFrame) -> dict[str, list[str]]:
    """Our areas; those measured as published over percent, and beside them the printed ones where there are some."""
    if rows["areas"].iloc[0] != "published":
        return {"Insertion AUC": numbers(rows["insertion_auc"]), "Deletion AUC": numbers(rows["deletion_auc"])}
    columns = {}
    for name, heading in zip(_AREAS, ("Insertion AUC", "Deletion AUC"), strict=True):
        columns[f"{heading} (0 to 100)"] = numbers(_HUNDRED * rows[name], 2)
        columns[f"Published {heading.lower()}"] = numbers(rows[f"published_{name}"], 2)
    return columns


@register_study
class Explain(Study):
    """Which patches of a picture speak for what the model says of it."""

    name, title = "explain", "Explanations of single images"
    question = "Which patches of a picture speak for what the model says of it?"
    place = 100
    columns = {
        "reducer": explained.REDUCER,
        "baseline": explained.BASELINE,
        "areas": text("unit, or published: pixels are ranked, without the unmodified image; then a hundredth of it"),
        "image": text("of the dataset, by its id"),
        "class_name": text("the true class"),
        "predicted": text("the most probable class, which is explained"),
        "probability": number("of that class", "share"),
        "insertion_auc": number("area under its probability while patches are shown, the hottest first", "share"),
        "deletion_auc": number("area under its probability while patches are removed, the hottest first", "share"),
        "seconds": number("that explaining took per image, mean over all of the run", "s"),
    }
    required = (*REQUIRED, "dataset")
    setting = _TABLE
    captions = {
        "": "The image, its heat, and the probability of the explained class while patches are shown or removed, the "
        "hottest first.",
    }
    run_figures = "**/*.png"
    run_captions = {"explainers.png": "The heat of several explainers for the same images."}
    explains = True

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """One row per image and explainer: what the model says, areas under insertion and deletion, seconds.

        ``published_insertion_auc`` and ``published_deletion_auc`` where the same was measured, over percent as printed.
        """
        first = [*_TABLE, "image"]
        found = explained.in_table(runs, first, [*first, "method", "options"], [*_SHOWN, "seconds"])
        printed = read_published("mutex_auc").assign(**_AS_PUBLISHED)
        found = found.assign(architecture=found["backbone"].map(architecture), stem=found["image"].map(_stem))
        printed = printed.rename(columns={"backbone": "architecture", "image": "stem"})
        columns = ["architecture", "stem", "img_size", *_AS_PUBLISHED]
        theirs = printed[[*columns, *_AREAS]].rename(columns={name: f"published_{name}" for name in _AREAS})
        return found.merge(theirs, how="left", on=columns).drop(columns=["architecture", "stem"])

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        for _, rows in data.groupby(_TABLE, sort=False, dropna=False):
            unit, seconds = explained.times(rows["seconds"])
            columns = {
                "Image": [f"{name} ({image})" for name, image in zip(rows["class_name"], rows["image"], strict=True)],
                "Explainer": explained.labels(rows),
                "Predicted": rows["predicted"].tolist(),
                "Probability": numbers(rows["probability"]),
                **_area_columns(rows),
                unit: seconds,
            }
            model = explained.models(rows.head(1))[0] if rows["reducer"].iloc[0] != "none" else ""
            notes = (explained.areas_note(rows), *explained.digits_note(rows))
            title, frame = explained.title_of(rows, data, model), pd.DataFrame(columns)
            yield Section(title, frame, notes, folded=len(rows) > _OPEN_ROWS)

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        for _, rows in data.groupby([*_TABLE, "image"], sort=False, dropna=False):
            row = rows.iloc[0]
            said = f"{backbone_name(row['backbone'])} says {row['predicted']} ({100 * row['probability']:.1f} %)"
            points = [
                f"{name}: insertion AUC {each.insertion_auc:.3f}, deletion AUC {each.deletion_auc:.3f}"
                for name, each in zip(explained.labels(rows), rows.itertuples(), strict=True)
            ]
            yield Answer(f"{row['image']} ({row['class_name']}): {said}.", tuple(points))
