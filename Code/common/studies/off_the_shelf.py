"""Accuracy of reduced models without any training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from common import plots
from common.cost.counter import gmac_of
from common.data import head_classes
from common.reducers import Method
from common.report.grids import best_answer, pivot, ranked
from common.report.rows import VARIANT, holes, in_order, over_seeds
from common.report.sections import Answer, Section, measured_text, numbers, setting_title, where_text
from common.schema import REQUIRED, count, number
from common.setup import Setup
from common.studies import _accuracy_claims
from common.studies.base import Study, register_study
from common.training import accuracies, cross_entropy, predict
from common.training.metrics import hits_by_image

SETTING = ["dataset", "backbone", "weights", "recipe", "img_size", "dtype"]


@register_study
class OffTheShelf(Study):
    """How much accuracy survives in a trained model that is reduced."""

    name, title = "off_the_shelf", "Accuracy without training"
    question = "How much accuracy survives in a trained model that is reduced without further training?"
    place = 30
    columns = {
        "accuracy": number("top-1 with the head restricted to the classes of the dataset", "percent"),
        "accuracy_full": number("top-1 among all classes of the head, where it has others", "percent", optional=True),
        "loss": number("mean cross-entropy among the classes of the dataset"),
        "n_val": count("validation images"),
        "gmac": number("multiply-accumulates of an image, attention included", "GMAC"),
    }
    required = (*REQUIRED, "dataset")
    setting = SETTING
    claims = _accuracy_claims.CLAIMS
    captions = {
        "": "Accuracy without training against keep rate. Dashed: the unreduced model.",
        "cost": "The same accuracy against the cost of one image. Labels: keep rate in percent. Rings: no other model "
        "is as accurate at the same or lower cost.",
    }

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Accuracy (percent), loss and GMAC per image of models that were reduced and not trained."""
        key = [*SETTING, "n_val", *VARIANT]
        metrics = ["accuracy", "accuracy_full", "loss", "gmac"]
        return in_order(over_seeds(runs, key, metrics, compared=metrics[:2]), SETTING)

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            title, images = setting_title(rows), rows["n_val"].iloc[0]
            for name, head in _heads(rows):
                note = f"Top-1 accuracy in percent on {images:,} images, no training; {head}."
                yield ranked(f"{title}: {head}", rows, name, note)
            yield Section(f"{title}: GMAC per image, attention included", pivot(rows, numbers(rows["gmac"])))

    def figures(self, runs: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
        heads = [name for name, _ in _heads(runs)]
        yield "", plots.accuracy_vs_keep_rate(runs, value=heads)
        yield "cost", plots.accuracy_mac_pareto(runs, value=heads[-1])

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            for name, head in _heads(rows):
                context = f"On {where_text(rows)}, {rows['n_val'].iloc[0]:,} images, {head}"
                yield best_answer(rows, name, context, cost=True)

    def measured_on(self, rows: pd.DataFrame) -> str:
        return measured_text(rows, "n_val")

    def missing(self, runs: pd.DataFrame) -> list[str]:
        return holes(runs, SETTING)


def _heads(rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """The accuracies that there are, and among which classes."""
    heads = {"accuracy": "classes of the dataset only", "accuracy_full": "all classes of the head"}
    return ((name, head) for name, head in heads.items() if rows[name].notna().any())


def measure(setup: Setup, reducers: Sequence[str], keep_rates: Sequence[float]) -> list[dict[str, object]]:
    """A row for every method at every keep rate, all on the weights of one backbone and on the same images.

    Args:
        reducers: methods in their written form; "none" keeps everything, once.

    Example:
        >>> setup = Setup("vit_digits", "", "digits", img_size=32, limit_val=20)
        >>> [(row["method"], row["keep_rate"]) for row in measure(setup, ["none", "topk"], [0.9, 0.5])]
        [('none', 1.0), ('topk', 0.9), ('topk', 0.5)]
    """
    vit, images = setup.vit, setup.val_set
    inside = head_classes(vit.num_classes, images)
    variants = [(text, rate) for text in reducers for rate in ([1.0] if text == "none" else keep_rates)]
    models = {place: setup.reduced(text, keep_rate=rate) for place, (text, rate) in enumerate(variants)}
    predictions, labels = predict(models, setup.loader(images))
    constant = {"seed": setup.seed, "epochs": 0, "n_train": 0, "n_val": len(images)}
    rows = []
    for place, (text, rate) in enumerate(variants):
        method, logits = Method.parse(text), predictions[place].logits
        row = {"method": method.name, "options": method.options_text, "keep_rate": rate, **constant}
        row |= accuracies(logits, labels, images) | hits_by_image(logits, labels, images)
        gmac = gmac_of(models[place], setup.cost_images)
        rows.append({**row, "loss": cross_entropy(logits, labels, inside), "gmac": gmac})
    return rows
