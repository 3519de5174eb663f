"""The records in folders, and what is kept of each while many of them are compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from common.analysis.compare import Decisions
from common.analysis.depth import blocks_passed, token_depth, token_statistics
from common.errors import UsageError
from common.evaluation import Record, Setting, off_the_shelf
from common.evaluation.record import peek
from common.evaluation.runner import DECISIONS
from common.reducers import Method, reducer_class
from common.schedule import keep_rate_text
from common.setup import Setup


@dataclass(frozen=True, eq=False)
class RunData:
    """One run in few bytes: its decisions, and what tables say of it as a whole.

    Attributes:
        decisions: image by image.
        top1, top5: accuracy in percent; with several labels per image both are the mAP. None = it is not known.
        gmac: of the model on one image.
        right: (n,) whether each image is classified correctly; None with several labels per image.
        left: patch tokens after each stage, mean over the images.
        statistics: :func:`common.analysis.token_statistics` as the reference counts.
        depth, depth_sd: (P,) mean over the images, and population standard deviation, of the blocks that each patch
            comes through; None where tokens are no patches, or the record does not tell the number of blocks.
    """

    decisions: Decisions
    top1: float | None
    top5: float | None
    gmac: float | None
    right: np.ndarray | None
    left: tuple[float, ...]
    statistics: pd.DataFrame
    depth: np.ndarray | None = None
    depth_sd: np.ndarray | None = None

    @classmethod
    def of(cls, record: Record) -> RunData:
        """That of a whole record."""
        setting, names = record.setting, ("map", "map") if record.multi_label else ("top1", "top5")
        patches = all(stage.kept is not None or stage.computed is not None for stage in record.stages.values())
        depth = token_depth(record) if patches and setting.depth else None
        return cls(
            Decisions.of(record),
            *(record.accuracy.get(name) for name in names),
            record.gmac,
            None if record.multi_label else record.predictions[:, 0] == record.targets,
            tuple(float(stage.num_tokens.mean()) for stage in record.stages.values()),
            token_statistics(record, parity=True),
            None if depth is None else depth.mean(0),
            None if depth is None else depth.std(0),
        )

    @property
    def setting(self) -> Setting:
        return self.decisions.setting

    @property
    def tokens(self) -> float:
        """Patch tokens after the last stage, mean over the images."""
        return self.left[-1] if self.left else float(self.setting.num_patches)

    @property
    def images(self) -> int:
        return len(self.decisions.image_ids)

    @property
    def depth_map(self) -> np.ndarray | None:
        """Mean depth of the patches, (h, w)."""
        return None if self.depth is None else self.depth.reshape(self.setting.grid_size)

    def depth_maps(self) -> np.ndarray:
        """Depth of the patches of every image, (n, h, w), where :attr:`depth` is known; made anew from its bits."""
        decisions, setting = self.decisions, self.setting
        masks = {block: decisions.mask(block) for block in decisions.kept}
        idle = reducer_class(Method.parse(setting.method).name).idles
        passed = blocks_passed(masks, (self.images, setting.num_patches), setting.depth, idle)
        return passed.reshape(-1, *setting.grid_size)


def find_records(roots: Sequence[str | Path]) -> dict[Path, Setting]:
    """The records below folders, or given as files, and what they are about; none of them is read as a whole.

    Raises:
        UsageError: a root without records, a file that is none, or two records of one key.
    """
    found: dict[Path, Setting] = {}
    for root in map(Path, roots):
        below = [root] if root.is_file() else sorted(root.rglob(DECISIONS))
        if not below:
            raise UsageError(
                f"no record in {str(root)!r}: a record is a file {DECISIONS} of python -m common.evaluation"
            )
        found |= {path.resolve(): peek(path)[0] for path in below}
    first: dict[str, Path] = {}
    for path, setting in found.items():
        if setting.key in first:
            raise UsageError(f"{str(first[setting.key])!r} and {str(path)!r} are both {setting.key}; give one of them")
        first[setting.key] = path
    return found


def shelf_runs(
    folder: str | Path,
    setup: Setup,
    methods: Sequence[str],
    keep_rates: Sequence[float | tuple[float, ...]],
    *,
    seeds: Sequence[int] = (0,),
    **options: object,
) -> list[RunData]:
    """The runs of :func:`common.evaluation.off_the_shelf`, those that were asked for, whatever else lies in ``folder``.

    Arguments are those of :func:`common.evaluation.off_the_shelf`.

    Raises:
        UsageError: as :func:`common.evaluation.off_the_shelf`, or a model that could not be evaluated.
    """
    errors = off_the_shelf(folder, setup, methods, keep_rates, seeds=seeds, **options)
    if errors:
        raise UsageError("; ".join(f"{path.name}: {error}" for path, error in errors.items()))
    written, rates = {str(Method.parse(text)) for text in methods}, set(map(keep_rate_text, keep_rates))

    def asked(setting: Setting) -> bool:
        same = (setting.dataset, setting.backbone) == (setup.dataset, setup.backbone)
        known = not setting.reduces or keep_rate_text(setting.keep_rate) in rates
        return same and known and setting.method in written and setting.seed in seeds

    return list(read_runs(path for path, setting in find_records([folder]).items() if asked(setting)))


def trained_runs(
    folder: str | Path,
    setup: Setup,
    methods: Sequence[str],
    keep_rates: Sequence[float | tuple[float, ...]],
    *,
    seeds: Sequence[int] = (0,),
) -> list[RunData]:
    """The records of trained models below ``folder`` that were asked for, whatever else lies there.

    The notebook ``method_grid`` leaves them there (``records``), and ``python -m common.evaluation`` beside trainings.
    Other arguments are those of :func:`common.evaluation.off_the_shelf`.

    Raises:
        UsageError: one of them is missing, or its model was not trained; the message names it.
    """
    methods = [str(Method.parse(text)) for text in methods]
    rates = [("1",) if text == "none" else map(keep_rate_text, keep_rates) for text in methods]
    wanted = [(text, rate, seed) for seed in seeds for text, some in zip(methods, rates, strict=True) for rate in some]
    found = {}
    for path, setting in find_records([folder]).items():
        if (setting.dataset, setting.backbone) == (setup.dataset, setup.backbone) and setting.is_trained:
            found[setting.method, keep_rate_text(setting.keep_rate), setting.seed] = path
    missing = "; ".join(f"{key[0]} at keep rate {key[1]}, seed {key[2]}" for key in wanted if key not in found)
    if missing:
        raise UsageError(
            f"{str(folder)!r} has no record of {setup.backbone} trained on {setup.dataset} with {missing}; the "
            "notebook method_grid leaves them in the folder that its parameter records names"
        )
    return list(read_runs(found[key] for key in wanted))


def read_runs(paths: Iterable[Path]) -> Iterator[RunData]:
    """Read records one after the other, with the CLS tokens beside them."""
    for path in tqdm(list(paths), "records", leave=False):
        yield RunData.of(Record.load(path, with_cls=True))
