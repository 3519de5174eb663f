"""Tables to panels and lines: what the figures share before anything is drawn."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.devices import FORMATS, RUNTIMES
from common.errors import UsageError
from common.plots.style import METHODS, MethodStyle, method_style, place_of
from common.schedule import keep_rate_text, ratio_of

_VARIANT_LINES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))
_SIZES = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H"}
_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
PLACES = {"dtype": FORMATS, "runtime": RUNTIMES}  # of which the first come first
_FORMS = {
    "batch": "batch {}",
    "img_size": "{} px",
    "epochs": "{} epochs",
    "n_train": "{:,} training images",
    "n_images": "{} images",
    "baseline": "baseline {}",
    "seed": "seed {}",
    "keep_rate": "keep rate {:.4g}",
}
_LEGEND_ROWS, _ROW_HEIGHT = 2, 0.22  # that figures have room for; inches of each further one
_UNTRAINED = {"epochs": "off the shelf", "n_train": ""}


@dataclass(frozen=True)
class Series:
    """One line of a figure: a method with its options, its look, and its rows."""

    method: str
    label: str
    style: MethodStyle
    linestyle: str | tuple
    filled: bool
    rows: pd.DataFrame

    def look(self) -> dict:
        """Return the keyword arguments that give a matplotlib line this look."""
        face = self.style.color if self.filled else "white"
        look = {"color": self.style.color, "marker": self.style.marker, "linestyle": self.linestyle}
        return {**look, "markerfacecolor": face, "label": self.label}


def require_columns(df: pd.DataFrame, columns: Sequence[str], what: str) -> pd.DataFrame:
    """Return a copy of ``df`` with empty ``options`` as "" and ``keep_rate`` as one ratio.

    Raises :class:`UsageError` on a missing column or no row.
    """
    missing = [name for name in columns if name not in df.columns]
    if missing:
        raise UsageError(
            f"{what} needs column {', '.join(map(repr, missing))}; given: {', '.join(map(str, df.columns))}"
        )
    if df.empty:
        raise UsageError(f"{what} needs at least one row; given: an empty table")
    options = df["options"].astype(object).fillna("").astype(str) if "options" in df.columns else ""
    df = df.assign(options=options)
    return df.assign(keep_rate=df["keep_rate"].map(ratio_of)) if "keep_rate" in df.columns else df


def require_table(df: pd.DataFrame, columns: Sequence[str], keys: Sequence[str], what: str) -> pd.DataFrame:
    """Return :func:`require_columns`, no two rows of which agree in all ``keys``: they would be averaged unseen.

    Keys that are no column count as equal. Raises :class:`UsageError`, also for such two rows.
    """
    written, df = df.get("keep_rate"), require_columns(df, columns, what)
    keys = [key for key in keys if key in df.columns]
    # what is no ratio (a rule, a budget) is NaN by now, and yet not the same as any other
    repeated = df[(df if written is None else df.assign(keep_rate=written.map(keep_rate_text))).duplicated(keys)]
    if len(repeated):
        values = ", ".join(f"{key}={repeated.iloc[0][key]}" for key in keys)
        raise UsageError(f"{what} has several rows for {values}; give one run of each")
    return df


def split_series(df: pd.DataFrame) -> list[Series]:
    """Return one :class:`Series` per method and options of ``df``, methods in their fixed order."""
    models = list(zip(df["method"], df["options"], strict=True))
    labels, found = dict(zip(models, method_names(models), strict=True)), []
    for method in sorted(df["method"].unique(), key=lambda name: (place_of(name), name)):
        rows, style = df[df["method"] == method], method_style(method)
        variants = sorted(rows["options"].unique())
        for place, options in enumerate(variants):
            line = style.linestyle if place == 0 else _VARIANT_LINES[place % len(_VARIANT_LINES)]
            own = rows[rows["options"] == options]
            found.append(Series(method, labels[method, options], style, line, place == 0, own))
    return found


def method_names(models: Sequence[tuple[str, str]], between: str = " ") -> list[str]:
    """Return names for readers of (method, options): with options where ``models`` have several of a method."""
    variants = Counter(method for method, _ in set(models))
    labels = [METHODS.get(method, method) for method, _ in models]
    return [
        f"{label}{between}({options})" if options and variants[method] > 1 else label
        for label, (method, options) in zip(labels, models, strict=True)
    ]


def split_panels(df: pd.DataFrame, keys: Sequence[str], named: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield (title, rows) per combination of ``keys`` in ``df``; titles name ``named`` and whatever differs."""
    keys = [key for key in keys if key in df.columns]
    titled = [key for key in keys if key in named or df[key].nunique(dropna=False) > 1]
    groups = dict(list(df.groupby(keys, dropna=False, sort=False)))
    for values in sorted(
        groups, key=lambda values: [_rank(key, value) for key, value in zip(keys, values, strict=True)]
    ):
        shown = dict(zip(keys, values, strict=True))
        yield " · ".join(filter(None, (_name(key, shown[key]) for key in titled))), groups[values]


def backbone_name(backbone: str) -> str:
    """Return a short name: ``vit_small_patch16_224`` -> ``ViT-S/16``; a name of another form is returned as it is."""
    match = re.fullmatch(r"(simple_vit|vit|deit)_(\w+?)_patch(\d+)(?:_.*)?", str(backbone).split(".")[0])
    if match is None or match[2] not in _SIZES:
        return str(backbone)
    family = {"simple_vit": "SimpleViT", "vit": "ViT", "deit": "DeiT"}[match[1]]
    return f"{family}-{_SIZES[match[2]]}/{match[3]}"


def panel_axes(fig: Figure, count: int, columns: int = 3, **share: str | bool) -> list[Axes]:
    """Add ``count`` axes to ``fig`` in rows of at most ``columns``."""
    columns = min(count, columns)
    rows = -(-count // columns)
    axes = fig.subplots(rows, columns, squeeze=False, **share).ravel().tolist()
    for empty in axes[count:]:
        empty.remove()
    return axes[:count]


def outer_labels(axes: Sequence[Axes], columns: int) -> None:
    """Say once what a row or column of panels shares: x under the lowest of equals, y on the left of equals."""
    labels = [ax.get_xlabel() for ax in axes]
    for ax, own, below in zip(axes, labels, labels[columns:], strict=False):
        if own == below:
            ax.set_xlabel("")
    outer_values(axes, columns)


def outer_values(axes: Sequence[Axes], columns: int) -> None:
    """Say y on the left of equal neighbours only."""
    labels = [ax.get_ylabel() for ax in axes]
    for place, ax in enumerate(axes):
        if place % columns and labels[place] == labels[place - 1]:
            ax.set_ylabel("")


MOST_TICKS = 8


def keep_rate_axis(ax: Axes, keep_rates: Sequence[float]) -> None:
    """Make x the keep rate in percent, all tokens on the left, a tick at each rate that was run and is a ratio.

    Where there are more than :data:`MOST_TICKS`, as of budgets, round numbers have the ticks.
    """
    percent = sorted({round(100 * rate, 6) for rate in keep_rates if not math.isnan(rate)} | {100.0}, reverse=True)
    if len(percent) <= MOST_TICKS:
        ax.set_xticks(percent, [f"{value:g}" for value in percent])
    ax.set_xlim(percent[0] + 5, percent[-1] - 5)
    ax.set_xlabel("Keep rate per stage (%)")


def legend_below(fig: Figure, axes: Sequence[Axes], *, title: str | None = None) -> None:
    """Put one legend for all ``axes`` under the figure, each label once; a long one makes the figure higher."""
    entries = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = min(len(entries), int(fig.get_figwidth() / (0.45 + 0.07 * max(map(len, entries)))))
    more = -(-len(entries) // columns) - _LEGEND_ROWS
    fig.set_figheight(fig.get_figheight() + max(0, more) * _ROW_HEIGHT)
    fig.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=columns,
        title=title,
        title_fontsize=9,
    )


def spread(count: int, step: float) -> np.ndarray:
    """Return ``count`` offsets, ``step`` apart and centred on 0, that keep error bars from hiding each other."""
    return (np.arange(count) - (count - 1) / 2) * step


def _rank(key: str, value: object) -> tuple:
    if key == "backbone":
        sizes = [size for size in _SIZES if f"_{size}_" in str(value)]
        return (int(str(value).startswith("simple_")), list(_SIZES).index(sizes[0]) if sizes else 0, str(value))
    if key in PLACES:
        return (0, [*PLACES[key], value].index(value), str(value))
    if isinstance(value, (int, float, np.number)):
        return (0, float(value), "")
    return (1, 0.0, str(value))


def _name(key: str, value: object) -> str:
    if key == "backbone":
        return backbone_name(str(value))
    if key == "dtype":
        return _DTYPES.get(str(value), str(value))
    if pd.isna(value):
        return ""
    if key in _UNTRAINED and value == 0:
        return _UNTRAINED[key]
    name = _FORMS.get(key, "{}").format(value)
    return name.removesuffix("s") if key == "epochs" and value == 1 else name
