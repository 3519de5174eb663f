"""What is measured of models with idle patches, as rows of "idling"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from common.cost.closed_form import Shape
from common.cost.throughput import interleaved
from common.data.base import LabelledDataset
from common.data.transforms import denormalise
from common.idling.boxes import idle_outside, patches_inside
from common.idling.candidates import Candidate, tune
from common.idling.outcomes import Outcome, outcomes, predictor_quality
from common.idling.similarity import PatchSimilarities
from common.models.reduced import ReducedVisionTransformer
from common.reducers import Method
from common.results import BY_IMAGE
from common.setup import Setup
from common.training import TrainConfig
from common.training.metrics import from_unreduced, hits, hits_by_image, means_with_errors


def described(row: Mapping[str, object]) -> str:
    """What the model of a row is, in words."""
    cut = f"{100 * row['mac_cut']:.0f} % of the MAC saved"
    back = ", for good" if "re_entry=false" in str(row["options"]) else ""
    return f"{labels(row)}{back}, {row['attention']} attention, {row['stage']}, {cut}"


def labels(row: Mapping[str, object]) -> str:
    """What the predictor of a model learnt."""
    kinds = {"influence=rollout": "by influence", "influence=fisher": "by Fisher information"}
    return next((kind for option, kind in kinds.items() if option in str(row["options"])), "by change")


def similarity_rows(found: PatchSimilarities, seed: int) -> list[dict[str, object]]:
    """Rows of a model that computes everything: the patches that enter it, and those before and after each block."""
    across, within = found.across.double().mean(2), found.within.double()  # (n, L), (n, L + 1)
    model = {"method": "none", "keep_rate": 1.0, "n_train": 0, "epochs": 0, "seed": seed, "n_val": len(within)}
    rows = [{**model, "part": "input", **means_with_errors(within_similarity=within[:, 0])}]
    for block in range(across.shape[1]):
        measured = means_with_errors(similarity=across[:, block], within_similarity=within[:, block + 1])
        rows.append({**model, "part": "similarity", "block": block, **measured})
    return rows


def measure(
    setup: Setup, part: str, candidates: Sequence[Candidate], images: LabelledDataset | None = None
) -> tuple[list[dict[str, object]], list[Outcome]]:
    """A row of ``part`` for every candidate, and what the rows are made from.

    Args:
        candidates: where the first is the unreduced model, the rows tell the difference from it.
        images: all of them are classified; by default all validation images. Where they have boxes, rows say how many
            of the idle patches lie outside.
    """
    images = setup.val_set if images is None else images
    found, labels = outcomes([each.model for each in candidates], setup.loader(images))
    right, rows = [hits(each.logits, labels, images) for each in found], []
    inside = patches_inside(images, candidates[0].model.patch_embed.grid_size)
    for candidate, outcome, own in zip(candidates, found, right, strict=True):
        measured = {
            name.removesuffix(BY_IMAGE): 100 * torch.as_tensor(values)
            for name, values in hits_by_image(outcome.logits, labels, images).items()
        }
        if candidates[0].text == "none":
            measured["accuracy_change"] = 100 * (own - right[0])
            measured |= from_unreduced(outcome.logits, found[0].logits)
        measured |= idle_outside(outcome.active, inside)
        rows.append({"part": part, **_row(candidate, outcome), **means_with_errors(**measured)})
    return rows, found


def _row(candidate: Candidate, found: Outcome) -> dict[str, object]:
    """What ``candidate`` is and costs."""
    method, reducer = Method.parse(candidate.text), candidate.model.reducer
    cut = 1 - found.macs / Shape.of(candidate.model).unreduced
    return {
        "method": method.name,
        "options": method.options_text,
        "keep_rate": reducer.schedule.keep_rate,
        "attention": getattr(reducer, "attention", "standard"),
        "stage": candidate.stage,
        "tau": candidate.tau,
        "idle_share": candidate.idle_share,
        "mac_cut_target": candidate.cut,
        **means_with_errors(patches_idle=found.idle.mean(1), gmac=found.macs / 1e9, mac_cut=cut),
        "reactivated": found.reactivated,
        "lr": candidate.lr,
        "n_train": candidate.n_train,
        "epochs": candidate.epochs,
        "seed": candidate.seed,
        "n_val": len(found.logits),
    }


def try_rates(
    setup: Setup, start: Candidate, cut: float, config: TrainConfig, rates: Sequence[float], count: int | None
) -> list[dict[str, object]]:
    """Stage 2 of ``start`` with each of the learning ``rates``: rows of the part "rates" on calibration images.

    Args:
        config, count: see :func:`common.idling.candidates.tune`.
    """
    trials = [tune(setup, start, cut, replace(config, lr=rate), count) for rate in rates]
    dense = Candidate("none", setup.reduced("none"), seed=start.seed)
    rows, _ = measure(setup, "rates", [dense, *trials], setup.calibration)
    return rows[1:]


def prediction(setup: Setup, candidate: Candidate, images: LabelledDataset) -> dict[str, float]:
    """How well the predictors of ``candidate`` know their labels, mean over the blocks where both labels occur."""
    blocks = predictor_quality(candidate.model, setup.loader(images)).values()
    known = pd.DataFrame([vars(block) for block in blocks]).dropna().drop(columns="confusion")
    return known.mean().rename({"accuracy": "predictor_accuracy"}).to_dict()


def speeds(setup: Setup, candidates: Sequence[Candidate], rounds: int = 3) -> list[float]:
    """Median speed-up of every candidate over the first, interleaved, on one batch of validation images."""
    images = setup.some(min(setup.batch_size, len(setup.val_set))).stack()
    models = {place: each.model.eval() for place, each in enumerate(candidates)}
    measured = interleaved(models, images.to(setup.where), baseline=0, rounds=rounds)
    return [measured[place].speedup for place in models]


def idle_shares_by_block(rows: Sequence[Mapping[str, object]], found: Sequence[Outcome]) -> dict[str, Tensor]:
    """Share of the patches that idle in each block (depth,), mean over images, by what each reduced model is."""
    pairs = [(row, each) for row, each in zip(rows, found, strict=True) if row["method"] != "none"]
    return {described(row): (~each.active).double().mean((0, 2)) for row, each in pairs}


def computed_patches(
    setup: Setup, model: ReducedVisionTransformer, places: Sequence[int], among: int = 10
) -> tuple[Tensor, Tensor, list[str]]:
    """Pictures (n, 3, H, W) in [0, 1], patches that each block computes (n, depth, P), and classes.

    Args:
        places: of the images among ``among`` validation images, the classes as even as possible.
    """
    few = setup.some(among).select(torch.tensor(list(places)))
    images = few.stack()
    _, trace = model.trace(images.to(setup.where))
    classes = [few.classes[label] for label in few.labels]
    return denormalise(images, few.mean, few.std), torch.stack(trace.active, dim=1).cpu(), classes
