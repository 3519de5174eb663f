"""What one run decided on every image of a split, in one file that is small and quick to read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UsageError
from common.evaluation.archive import pack_index, pack_json, read_arrays, unpack_index, unpack_json, write_arrays
from common.evaluation.names import run_key, unique_key
from common.tokens import GONE

RECORD, CLS = "record of decisions 3", "record of CLS tokens 1"  # the number is that of the layout
PER_IMAGE = ("targets", "predictions", "loss")
TRAINING = ("epochs", "lr", "n_train")  # details that tell of a training, as rows of results do


@dataclass(frozen=True)
class Setting:
    """What was evaluated, and with what.

    Attributes:
        name: of the run.
        method: as :class:`common.reducers.Method` writes it.
        backbone, dataset, weights: as given.
        keep_rate: the schedule's.
        reduction_loc: the blocks of :attr:`Record.stages`; () without reduction.
        img_size: pixels (height, width).
        grid_size: patches (rows, columns).
        classes: outputs of the head that are the dataset's classes; None = all of them.
        depth, width: of the backbone: blocks, and channels of a token.
        seed: of what is random in the run: its training, and draws in the evaluation; None = it was given none.
        scored: what :attr:`Stage.scores` are, in words; "" = there are none.
        noted: optional parts that were asked for: ``scores`` (0 or 1), ``soft_weights`` (tokens per patch).
        versions: torch, timm, commit, device and date (UTC, ISO 8601 to the second).
        details: whatever else belongs to the run, as JSON has it; of a trained one some of :data:`TRAINING`.
    """

    name: str
    method: str
    backbone: str
    dataset: str
    weights: str
    keep_rate: float | tuple[float, ...]
    reduction_loc: tuple[int, ...]
    img_size: tuple[int, int]
    grid_size: tuple[int, int]
    classes: tuple[int, ...] | None = None
    depth: int | None = None
    width: int | None = None
    seed: int | None = None
    scored: str = ""
    noted: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("keep_rate", "reduction_loc", "img_size", "grid_size", "classes"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)

    @property
    def num_patches(self) -> int:
        """Number P of patches of an image."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def reduces(self) -> bool:
        """Whether there is a method at all."""
        return self.method.partition(":")[0] != "none"

    @property
    def training(self) -> dict[str, Any]:
        """How the reduced model was trained, as far as the record tells; {} where it was not."""
        return {name: self.details[name] for name in TRAINING if name in self.details} if self.is_trained else {}

    @property
    def is_trained(self) -> bool:
        """Whether the model was trained after it was reduced."""
        return bool(self.details.get("epochs"))

    @property
    def run_key(self) -> str:
        """What tables of the reference are joined by: :func:`common.evaluation.run_key`, without dataset and seed."""
        return run_key(self.method, self.backbone, self.keep_rate, self.reduction_loc)

    @property
    def key(self) -> str:
        """What tells runs of several data sets and seeds apart: :func:`common.evaluation.unique_key`."""
        return unique_key(self.run_key, self.dataset, self.seed)


@dataclass(frozen=True, eq=False)
class Stage:
    """The patch tokens of n images after a reduction block.

    Attributes:
        num_tokens: (n,) how many there are, padding not counted.
        kept: (n, K) the patch that each token is, as its place in the grid, row by row, in the order of the tokens; of
            a cluster its centre. -1 = a mixture without one (EViT's fused token), or padding (ATS). None for methods
            whose tokens are no patches.
        destination: (n, N) the token that each of the N patch tokens before went to, of which the first stage has P;
            -1 = dropped. None for methods that group no patches.
        computed: (n, P) whether the block computed each patch. None for methods that let none idle.
        fused: (n, P) whether each patch went into the token that this block appended, be it by way of an earlier such
            token. None for methods that append none (all but EViT).
        scores: (n, P) float16, limited to its range: the score that each patch's token got, NaN = it was gone before,
            or not scored. What it is stands in :attr:`Setting.scored`. Only there when asked for.
        holders: (n, P, M) the M tokens of soft merging in which each patch has most weight, heaviest first. Only there
            when asked for, as the next.
        shares: (n, P, M) float16, these weights, followed through all stages so far. Of PatchMerger and SiT the
            weights of one token over all patches sum to 1; of Sinkhorn those of one patch over all tokens.
    """

    num_tokens: np.ndarray
    kept: np.ndarray | None = None
    destination: np.ndarray | None = None
    computed: np.ndarray | None = None
    fused: np.ndarray | None = None
    scores: np.ndarray | None = None
    holders: np.ndarray | None = None
    shares: np.ndarray | None = None

    def parts(self) -> dict[str, np.ndarray]:
        """The arrays that there are, by name."""
        return {name: array for name, array in vars(self).items() if array is not None}


@dataclass(frozen=True, eq=False)
class Record:
    """What one run decided on the n images of a split.

    >>> from tempfile import TemporaryDirectory
    >>> from common import create_model, load_dataset
    >>> from common.evaluation import evaluate_model
    >>> model = create_model("vit_digits", reducer="topk", keep_rate=0.5)
    >>> data = load_dataset("digits", "val", img_size=32)
    >>> record = evaluate_model(model, data, batch_size=60, method="topk", backbone="vit_digits", name="run")
    >>> with TemporaryDirectory() as folder:
    ...     part = Record.load(record.save(folder + "/run.npz"), blocks=[4], images=["val-7", "val-0"])
    >>> part.image_ids, list(part.stages), part.stages[4].kept.shape  # 8 of 64 patches are left
    (('val-7', 'val-0'), [4], (2, 8))

    Attributes:
        setting: what was evaluated.
        image_ids: of the dataset, one per image.
        targets: (n,) class; with several labels per image (n, C) zeros and ones.
        predictions: (n, 5) classes, the most likely first (fewer where there are fewer classes); with several labels
            per image (n, C) probabilities, float16.
        loss: (n,) float32, of each image: cross-entropy; with several labels binary cross-entropy, mean over classes.
            NaN where the head has other classes than the dataset; predictions are then classes of the head.
        accuracy: percent, ``top1`` and ``top5``; with several labels per image ``map``; always of all images. Empty
            where the head has other classes than the dataset.
        params: number of parameters of the model.
        stages: by reduction block.
        cls: block -> (n, D) float16, CLS token after that block; in a file of its own, only there when asked for.
        gmac: 10^9 multiply-accumulates of the model on one image, attention included, see :func:`common.count_macs`.
    """

    setting: Setting
    image_ids: tuple[str, ...]
    targets: np.ndarray
    predictions: np.ndarray
    loss: np.ndarray
    accuracy: Mapping[str, float]
    params: int
    stages: Mapping[int, Stage]
    cls: Mapping[int, np.ndarray] = field(default_factory=dict)
    gmac: float | None = None

    def __post_init__(self) -> None:
        arrays = [self.targets, self.predictions, self.loss, *self.cls.values()]
        arrays += [array for stage in self.stages.values() for array in stage.parts().values()]
        lengths = {len(self.image_ids), *map(len, arrays)}
        if len(lengths) > 1:
            raise UsageError(f"a record has one row per image in every part; given parts of {sorted(lengths)} rows")

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def multi_label(self) -> bool:
        """Whether an image has any number of the classes in place of exactly one."""
        return self.targets.ndim == 2

    def assignment(self, block: int) -> np.ndarray:
        """Token (n, P) that holds each patch after the stage ``block``; -1 = dropped. Of methods that group patches.

        Raises:
            UsageError: a stage up to ``block`` was not loaded, or groups no patches.
        """
        self._require_stages(block)
        places = np.tile(np.arange(self.setting.num_patches), (len(self), 1))
        for stage in (stage for at, stage in self.stages.items() if at <= block):
            followed = np.take_along_axis(stage.destination, places.clip(min=0), axis=1)
            places = np.where(places == GONE, GONE, followed)
        return places

    def _require_stages(self, block: int) -> None:
        before = [stage for stage in self.setting.reduction_loc if stage <= block]
        missing = [stage for stage in before if stage not in self.stages]
        if missing or any(self.stages[stage].destination is None for stage in before):
            reason = f"it was loaded without blocks {missing}" if missing else "its method groups no patches"
            raise UsageError(f"no assignment after block {block} of {self.setting.method!r}: {reason}")

    def save(self, path: str | Path) -> Path:
        """Write the record to ``path`` (.npz), and CLS tokens, where it has some, beside it (.cls.npz).

        CLS tokens of an earlier evaluation do not stay beside a record without any.
        """
        path = _checked(path)
        if self.cls:
            blocks = {f"block_{block}": tokens for block, tokens in self.cls.items()}
            write_arrays(cls_path(path), CLS, blocks, compress=False)  # numbers like these shrink by a tenth
        header = {"setting": asdict(self.setting), "accuracy": dict(self.accuracy), "params": self.params}
        header |= {"gmac": self.gmac, "stages": list(self.stages), "cls": list(self.cls)}
        arrays = {"header": pack_json(header), "image_ids": pack_json(self.image_ids)}
        arrays |= {name: getattr(self, name) for name in PER_IMAGE}
        for block, stage in self.stages.items():
            arrays |= {f"{name}_{block}": pack_index(array) for name, array in stage.parts().items()}
        write_arrays(path, RECORD, arrays)
        if not self.cls:
            cls_path(path).unlink(missing_ok=True)
        return path

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        with_cls: bool = False,
        blocks: Sequence[int] | None = None,
        images: Sequence[str] | Sequence[int] | slice | None = None,
    ) -> Record:
        """Read a record, or a part of it; accuracy, parameters and GMAC stay those of the whole.

        Args:
            with_cls: also the CLS tokens beside it.
            blocks: of stages and CLS tokens; arrays of other blocks are not read. None = all.
            images: their ids, or their places in the record, in any order, or a slice of these. None = all.

        Raises:
            UsageError: a file is missing, damaged, cut off, or something else; or has no such block or image.
        """
        path = _checked(path)
        wanted = partial(_is_of, blocks)
        arrays = read_arrays(path, RECORD, wanted)
        header, ids = unpack_json(arrays["header"]), unpack_json(arrays["image_ids"])
        tokens = read_arrays(cls_path(path), CLS, wanted) if with_cls and header["cls"] else {}
        _require_blocks(blocks, {*header["stages"], *(header["cls"] if with_cls else ())})
        rows = _rows(ids, images)
        here = [block for block in header["stages"] if blocks is None or block in blocks]
        return cls(
            setting=Setting(**header["setting"]),
            image_ids=tuple(np.array(ids, dtype=object)[rows]),
            **{name: arrays[name][rows] for name in PER_IMAGE},
            accuracy=header["accuracy"],
            params=header["params"],
            stages={block: _stage(arrays, block, rows) for block in here},
            cls={block: tokens[f"block_{block}"][rows] for block in header["cls"] if f"block_{block}" in tokens},
            gmac=header["gmac"],
        )


def peek(path: str | Path) -> tuple[Setting, tuple[int, ...]]:
    """What a record is about and the blocks whose CLS tokens lie beside it, without reading any decision.

    Raises:
        UsageError: as :meth:`Record.load`.
    """
    header = unpack_json(read_arrays(_checked(path), RECORD, "header".__eq__)["header"])
    return Setting(**header["setting"]), tuple(header["cls"])


def cls_path(path: str | Path) -> Path:
    """Where the CLS tokens of the record ``path`` are: NAME.npz -> NAME.cls.npz."""
    return Path(path).with_suffix(".cls.npz")


def _stage(arrays: Mapping[str, np.ndarray], block: int, rows: slice | np.ndarray) -> Stage:
    found = {part.name: f"{part.name}_{block}" for part in fields(Stage)}
    return Stage(**{name: unpack_index(arrays[key][rows]) for name, key in found.items() if key in arrays})


def _is_of(blocks: Sequence[int] | None, name: str) -> bool:
    """Whether the array ``name`` is of one of ``blocks``, or of no block."""
    block = name.rpartition("_")[2]
    return blocks is None or not block.isdigit() or int(block) in blocks


def _require_blocks(blocks: Sequence[int] | None, there: Collection[int]) -> None:
    missing = [block for block in blocks or () if block not in there]
    if missing:
        raise UsageError(f"the record has no blocks {missing}; allowed: {sorted(there)}")


def _rows(ids: Sequence[str], images: Sequence[str] | Sequence[int] | slice | None) -> slice | np.ndarray:
    """Where ``images`` stand among ``ids``."""
    if images is None or isinstance(images, slice):
        return slice(None) if images is None else images
    places = dict(zip(ids, range(len(ids)), strict=True))
    found = [places.get(image) if isinstance(image, str) else image for image in images]
    for image, place in zip(images, found, strict=True):
        if not isinstance(place, (int, np.integer)) or isinstance(place, bool) or not 0 <= place < len(ids):
            raise UsageError(f"the record has no image {image!r}; it has {len(ids)}, from {ids[0]!r} to {ids[-1]!r}")
    return np.array(found, dtype=np.intp)


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".npz" or path.suffixes[-2:-1] == [".cls"]:
        raise UsageError(f"a record is a file NAME.npz; given {str(path)!r}")
    return path
