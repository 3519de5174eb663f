"""Records of models that nobody trained: one backbone, reduced by many methods at many keep rates.

Its command line is :mod:`common.evaluation.shelf_command`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from common.data import has_classes_of, head_classes
from common.errors import UsageError
from common.evaluation.evaluate import evaluate_model, stage_blocks
from common.evaluation.names import run_key, unique_key
from common.evaluation.record import Record
from common.evaluation.runner import DECISIONS, Wanted, complete_setting, do_all, leave
from common.models.factory import load_own
from common.models.reduced import ReducedVisionTransformer
from common.options import Many, Whole, check, check_names
from common.reducers import Method
from common.schedule import KeepRate
from common.setup import Setup
from common.training.checkpoint import refuse_difference
from common.training.digits_backbone import resolve_weights
from common.weights import weights_label

KEEP_RATES = (0.9, 0.7, 0.5, 0.25)  # those of "Which Tokens to Use?"
OF_SETUP = ("batch_size", "workers", "device")


def off_the_shelf(
    folder: str | Path,
    setup: Setup,
    methods: Sequence[str],
    keep_rates: Sequence[float | tuple[float, ...]] = KEEP_RATES,
    *,
    seeds: Sequence[int] = (0,),
    reduction_loc: tuple[int, ...] | None = None,
    decisions_only: bool | None = False,
    **wanted: object,
) -> dict[Path, str]:
    """Evaluate the backbone of ``setup`` under every method at every keep rate on the validation images.

    Each model leaves its record, and what else is wanted, in a folder of its own below ``folder``, called
    :func:`common.evaluation.unique_key`. A model whose record is there is skipped. Models are made and evaluated one
    after the other, on weights that they share; an error in one does not stop the others.

    >>> from tempfile import TemporaryDirectory
    >>> setup = Setup("vit_digits", "", "digits", img_size=32, limit_val=20, device="cpu")
    >>> with TemporaryDirectory() as folder:  # doctest: +ELLIPSIS
    ...     errors = off_the_shelf(folder, setup, ["none", "topk"], [0.5])
    ...     keys = sorted(str(path.parent.relative_to(folder)) for path in Path(folder).rglob("decisions.npz"))
    1/2 ...vit_digits--_: evaluated
    2/2 ...topk_vit_digits-1_3_4-_0.5: evaluated
    >>> errors, keys
    ({}, ['digits/seed-0/topk_vit_digits-1_3_4-_0.5', 'digits/seed-0/vit_digits--_'])

    Args:
        setup: backbone, weights, dataset (its ``limit_val`` images, normalised as the weights expect), loading, device.
            Pictures are decoded once for all models where they fit into its ``memory_gb``.
        methods: as :class:`common.reducers.Method` writes them; "none" keeps everything, once.
        keep_rates: see :class:`common.reducers.Schedule`.
        seeds: of what is random in a model: parameters that its weights do not have, draws in evaluation, the option
            ``seed`` of a method that leaves it open. A model without any is the same for all seeds, and is evaluated
            for the first one.
        reduction_loc: blocks, from 0; default 1/4, 1/2 and 3/4 of the depth.
        decisions_only: as for :func:`common.evaluation.evaluate_model`: the dataset's classes are not the head's.
            None = only where they are not.
        **wanted: other attributes of :class:`common.evaluation.runner.Wanted`: overwrite, json, cls_at, scores,
            soft_weights, mixed_precision.

    Returns:
        Errors by folder, {} when all went well.

    Raises:
        UsageError: before anything is evaluated: something that does not exist or does not fit, or a record in
            ``folder`` of the same key under other conditions (weights, images, precision), without ``overwrite``.
    """
    check_names(wanted, [field.name for field in fields(Wanted) if field.name not in OF_SETUP], "option")
    full = Wanted(**wanted, **{name: getattr(setup, name) for name in OF_SETUP})
    if decisions_only is None:
        decisions_only = not has_classes_of(setup.vit.num_classes, setup.val_set)
    shelf = Shelf(setup, full, decisions_only)
    models = list(_models(setup, methods, keep_rates, seeds, reduction_loc))
    shelf.check(models)
    places = {Path(folder) / model.key: model for model in models}
    for place, model in places.items():
        shelf.refuse_others(place, model)
    return do_all({place: partial(shelf.leave, place, model) for place, model in places.items()}, Path(folder))


@dataclass(frozen=True)
class ShelfModel:
    """A reduced backbone, and what it is called.

    Attributes:
        setup: with the model's own seed.
        untrained: number of its parameters that follow from the seed, not from weights.
    """

    setup: Setup
    method: str
    keep_rate: float | tuple[float, ...]
    model: ReducedVisionTransformer
    untrained: int

    @property
    def is_random(self) -> bool:
        """Another seed makes another model."""
        return self.untrained > 0 or self.model.reducer.draws or Method.parse(self.method).leaves_seed

    @property
    def run_key(self) -> str:
        """See :func:`common.evaluation.run_key`."""
        return run_key(self.method, self.setup.backbone, self.keep_rate, stage_blocks(self.model.reducer))

    @property
    def key(self) -> str:
        """See :func:`common.evaluation.unique_key`."""
        return unique_key(self.run_key, self.setup.dataset, self.setup.seed)

    @cached_property
    def weights(self) -> str:
        """What they are called, and a digest of their numbers: a file that was replaced is another one."""
        digest = hashlib.sha256()
        for name, value in self.model.state_dict().items():
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return f"{weights_label(self.setup.weights, self.setup.backbone)} {digest.hexdigest()[:12]}"


@dataclass(frozen=True)
class Shelf:
    """What the models of one call share; arguments as of :func:`off_the_shelf`."""

    setup: Setup
    wanted: Wanted
    decisions_only: bool

    def check(self, models: Sequence[ShelfModel]) -> None:
        """Refuse what :func:`evaluate_model` would, before it runs."""
        for model in models:
            model.model.check_cls_at(self.wanted.cls_at)
        images = self.setup.val_set
        if not self.decisions_only:
            try:
                head_classes(self.setup.vit.num_classes, images)
            except UsageError as error:
                raise UsageError(f"{error}; or --decisions-only (decisions_only=True), without accuracy") from error

    def conditions(self, model: ShelfModel) -> dict[str, object]:
        """What must be the same for a record to count as that of ``model``."""
        setup, draws = self.setup, model.model.reducer.draws
        return {
            "weights": model.weights,
            "untrained": model.untrained,
            "recipe": setup.recipe,
            "img_size": setup.img_size,
            "limit": setup.limit_val,
            "mixed_precision": self.wanted.mixed_precision,
            "decisions_only": self.decisions_only,
            **({"batch_size": setup.batch_size} if draws else {}),
        }

    def refuse_others(self, folder: Path, model: ShelfModel) -> None:
        """Refuse a record in ``folder`` that is not of ``model``."""
        found = complete_setting(folder, replace(self.wanted, cls_at=(), scores=False, soft_weights=0))
        if found is not None:
            refuse_difference(found.details, self.conditions(model), f"record {str(folder / DECISIONS)!r}", "folder")

    def leave(self, folder: Path, model: ShelfModel) -> str:
        """Leave in ``folder`` what is wanted of ``model``; returns what was done."""
        there = complete_setting(folder, self.wanted) is not None
        return leave(folder, folder.name, self.wanted, there, partial(self.evaluate, model, folder.name))

    def evaluate(self, model: ShelfModel, name: str) -> Record:
        """The record of ``model``."""
        return evaluate_model(
            model.model,
            self.setup.val_set,
            method=model.method,
            backbone=self.setup.backbone,
            name=name,
            weights=weights_label(self.setup.weights, self.setup.backbone),
            seed=model.setup.seed,
            decisions_only=self.decisions_only,
            details=self.conditions(model),
            **self.wanted.how,
        )


def _models(
    setup: Setup,
    methods: Sequence[str],
    keep_rates: Sequence[float | tuple[float, ...]],
    seeds: Sequence[int],
    reduction_loc: tuple[int, ...] | None,
) -> Iterator[ShelfModel]:
    """Every model once, the random ones for every seed."""
    methods = [str(Method.parse(text)) for text in check("methods", methods, Many[str])]
    rates = [check("keep_rate", rate, KeepRate) for rate in keep_rates]
    for number, seed in enumerate(dict.fromkeys(check("seeds", seeds, Many[Whole]))):
        seeded = _with_seed(setup, seed)
        for text in dict.fromkeys(methods):
            for rate in dict.fromkeys([1.0] if Method.parse(text).name == "none" else rates):
                model = _model(seeded, text, rate, reduction_loc)
                if number == 0 or model.is_random:
                    yield model


def _with_seed(setup: Setup, seed: int) -> Setup:
    seeded = replace(setup, seed=seed)
    if setup.weights:
        vars(seeded)["vit"] = setup.vit  # which no seed changes
    return seeded


def _model(
    setup: Setup, text: str, keep_rate: float | tuple[float, ...], reduction_loc: tuple[int, ...] | None
) -> ShelfModel:
    vit, weights = setup.vit, resolve_weights(setup.weights, setup.backbone)
    with torch.random.fork_rng([]):
        torch.manual_seed(setup.seed)  # so that a model does not depend on those made before
        model = setup.reduced(text, keep_rate=keep_rate, reduction_loc=reduction_loc)
    loaded = load_own(model, weights)
    fresh = [*([] if loaded else [model.reducer]), *([] if weights else [vit])]
    return ShelfModel(setup, text, keep_rate, model, sum(map(_size, fresh)))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
