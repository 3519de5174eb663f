"""Figures of how good explanations are, and of what they share with token reduction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from common.errors import UsageError
from common.plots.frames import legend_below, panel_axes, require_columns, require_table, split_panels
from common.plots.labels import Label, place_labels
from common.plots.patches import as_numpy
from common.plots.style import EXPLAINERS, RC, explainer_label, explainer_style, method_style, new_figure, place_of

if TYPE_CHECKING:
    from common.explain.metrics import Curves

_BACKBONE_AND_DATA = ("profile", "dataset", "backbone", "weights", "recipe", "img_size")
_WHERE = (*_BACKBONE_AND_DATA, "keep_rate", "baseline", "n_images", "seed", "dtype")
SETTING = (*_WHERE, "reducer")
NAMED = ("dataset", "backbone")  # what the title of a panel always says
_AUCS = ("insertion_auc", "insertion_auc_sem", "deletion_auc", "deletion_auc_sem")
_AGREEMENT = {"rank_correlation": "Rank correlation", "above_chance": "IoU minus chance"}
_VARIANT_LINES = ("-", "--", "-.", ":")


@rc_context(RC)
def mean_curves(curves: Mapping[str, Curves]) -> Figure:
    """Draw insertion and deletion curves of every explainer, means over images with a band of one standard error.

    ``curves`` maps explainers, written ``name`` or ``name:key=value``, to what insertion and deletion of n images gave:
    ``shares`` (K,), ``insertion`` and ``deletion`` (n, K), fractions in [0, 1]. A single image has no band.
    """
    if not curves:
        raise UsageError("mean_curves needs at least one explainer; given: none")
    texts = {tuple(text.partition(":")[::2]): found for text, found in curves.items()}
    fig = new_figure(4.3)
    left, right = panel_axes(fig, 2, sharey=True)
    for pair, look in _looks(texts).items():
        shares = 100 * np.asarray(as_numpy(texts[pair].shares), float)
        for ax, name in ((left, "insertion"), (right, "deletion")):
            mean, sem = _mean_and_sem(getattr(texts[pair], name), len(shares), f"{name} of {':'.join(pair)}")
            ax.plot(shares, mean, **{**look, "linewidth": 1.4, "markersize": 4.2})
            ax.fill_between(shares, mean - sem, mean + sem, color=look["color"], alpha=0.15, linewidth=0)
    left.set(title="Insertion (higher is better)", xlabel="Patches shown, hottest first (%)")
    right.set(title="Deletion (lower is better)", xlabel="Patches removed, hottest first (%)")
    left.set(ylabel="Probability of the explained class", ylim=(0, None))
    counts = sorted({len(as_numpy(found.insertion)) for found in curves.values()})
    images = f"{'-'.join(map(str, counts))} image{'' if counts == [1] else 's'}"
    legend_below(fig, [left, right], title="" if counts == [1] else f"mean ± standard error over {images}")
    return fig


@rc_context(RC)
def insertion_deletion_plane(df: pd.DataFrame) -> Figure:
    """Draw every explainer as a point: deletion AUC across, insertion AUC up, bars of one standard error.

    ``df`` holds explain_benchmark rows, of which those of part "explainers" are shown, a panel per setting. The shaded
    corner is better than random in both.
    """
    df = of_part(df, "explainers", (), ("method", "options"), "insertion_deletion_plane")
    panels = list(split_panels(df, SETTING, NAMED))
    columns = min(len(panels), 2)
    fig = new_figure(4.6 * -(-len(panels) // columns))
    labels: list[Label] = []
    axes = panel_axes(fig, len(panels), columns)
    for place, (ax, (title, rows)) in enumerate(zip(axes, panels, strict=True)):
        labels += _plane(ax, rows)
        ax.set(title=title, xlabel="Deletion AUC (\N{LEFTWARDS ARROW} lower is better)")
        if place % columns == 0:
            ax.set_ylabel("Insertion AUC (higher is better \N{RIGHTWARDS ARROW})")
    place_labels(fig, labels)
    return fig


@rc_context(RC)
def agreement_matrix(df: pd.DataFrame) -> Figure:
    """Draw how well explainers (rows) agree with what reducers (columns) keep: rank correlation, and IoU above chance.

    ``df`` holds explain_agreement rows; every setting has its own two panels. A reducer that was read after several
    blocks has a column for each, and blocks count from 0, as timm's ``blocks.N``. Colours are centred on 0 and shared
    by the panels of one measure. A pair that was not measured stays empty.
    """
    columns = ("method", "reducer", "block", *_AGREEMENT)
    df = require_table(df, columns, (*_WHERE, "method", "options", "reducer", "block"), "agreement_matrix")
    panels = list(split_panels(df, _WHERE, NAMED))
    names = [name for name in _AGREEMENT if df[name].notna().any()]
    count = len(_looks(zip(df["method"], df["options"], strict=True)))
    fig = new_figure((1.6 + 0.29 * count) * len(panels))
    axes = np.array(panel_axes(fig, len(names) * len(panels), len(names))).reshape(len(panels), -1)
    for (title, rows), cells in zip(panels, axes, strict=True):
        for ax, name in zip(cells, names, strict=True):
            limit = max(df[name].abs().max(), 1e-9)
            _matrix(ax, rows, name, Normalize(-limit, limit))
            ax.set_title(f"{title}\n{_AGREEMENT[name]}")
        for ax in cells[1:]:
            ax.tick_params(labelleft=False)
    return fig


def _plane(ax: Axes, rows: pd.DataFrame) -> list[Label]:
    """Draw the points of one panel; return the labels that they should get."""
    labels = []
    looks = _looks(zip(rows["method"], rows["options"], strict=True))
    points = rows.set_index(["method", "options"])
    for pair, look in looks.items():
        point = points.loc[pair]
        x, y = point["deletion_auc"], point["insertion_auc"]
        dx, dy = point[["deletion_auc_sem", "insertion_auc_sem"]].astype(float).fillna(0)
        # lines, which labels avoid, in place of matplotlib's error bars
        ax.plot([x - dx, x + dx, x, x, x], [y, y, y, y - dy, y + dy], color=look["color"], linewidth=1.3)
        ax.plot(x, y, **{**look, "linestyle": "none", "markersize": 7})
        labels.append((ax, x, y, look["label"], look["color"]))
    ax.margins(0.14, 0.14)
    ax.autoscale_view()
    for _, random in rows[rows["method"] == "random"].iterrows():
        _better_corner(ax, random["deletion_auc"], random["insertion_auc"])
    return labels


def _better_corner(ax: Axes, x: float, y: float) -> None:
    """Shade what is better than (x, y) in both."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.add_patch(Rectangle((left, y), x - left, top - y, color="#009E73", alpha=0.07, linewidth=0, zorder=0))
    ax.axvline(x, color="#999999", linestyle=":", linewidth=1, zorder=1)
    ax.axhline(y, color="#999999", linestyle=":", linewidth=1, zorder=1)
    ax.annotate(
        "better than random in both", (0, 1), (6, -6), xycoords="axes fraction", textcoords="offset points",
        ha="left", va="top", fontsize=8, style="italic", color="#00664B",
    )  # fmt: skip


def _matrix(ax: Axes, rows: pd.DataFrame, name: str, norm: Normalize) -> None:
    rows = rows[rows["reducer"].isin(rows.loc[rows[name].notna(), "reducer"])]  # not every reducer scores patches
    pairs = list(_looks(zip(rows["method"], rows["options"], strict=True)))
    columns = _reducers(rows)
    wide = rows.pivot(index=["method", "options"], columns=["reducer", "block"], values=name)
    wide = wide.reindex(index=pd.MultiIndex.from_tuples(pairs), columns=pd.MultiIndex.from_tuples(columns))
    ax.imshow(np.ma.masked_invalid(wide.to_numpy(float)), norm=norm, cmap="RdBu", aspect="auto")
    for (row, column), value in np.ndenumerate(wide.to_numpy(float)):
        text = "" if np.isnan(value) else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")
        color = "white" if abs(value) > 0.55 * norm.vmax else "#222222"
        ax.text(column, row, "0.00" if abs(value) < 0.005 else text, ha="center", va="center", fontsize=8, color=color)
    ax.set_yticks(range(len(pairs)), [explainer_label(*pair) for pair in pairs])
    turned = {"rotation": 30, "rotation_mode": "anchor", "ha": "right", "va": "top", "multialignment": "right"}
    ax.set_xticks(range(len(columns)), list(columns.values()), fontsize=8.5, **turned)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    errors = rows[f"{name}_sem"].dropna() if f"{name}_sem" in rows else []
    if len(errors):
        ax.set_xlabel(f"standard errors up to {max(errors):.2f}", fontsize=8.5)


def _reducers(rows: pd.DataFrame) -> dict[tuple[str, int], str]:
    """Labels of (reducer, block), reducers in their fixed order; they name the block where there are several."""
    several = rows["block"].nunique() > 1
    labels = {}
    for text, block in sorted(set(zip(rows["reducer"], rows["block"], strict=True)), key=_place_of):
        name, _, options = text.partition(":")
        label = method_style(name).label + (f", block {block}" if several else "")
        labels[text, block] = label + (f"\n({options})" if options else "")
    return labels


def _place_of(column: tuple[str, int]) -> tuple[int, str, int]:
    text, block = column
    return (place_of(text.partition(":")[0]), text, block)


def _looks(pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], dict]:
    """Keyword arguments of matplotlib's lines for every (explainer, options), explainers in their fixed order.

    Further options of one explainer keep its colour; their markers are hollow and their lines broken.
    """
    found = set(pairs)
    for name, _ in found:
        explainer_style(name)
    looks = {}
    for name, style in EXPLAINERS.items():
        for place, options in enumerate(sorted(options for other, options in found if other == name)):
            line = style.linestyle if place == 0 else _VARIANT_LINES[place % len(_VARIANT_LINES)]
            face = style.color if place == 0 else "white"
            look = {"color": style.color, "marker": style.marker, "linestyle": line, "markerfacecolor": face}
            looks[name, options] = {**look, "label": explainer_label(name, options)}
    return looks


def of_part(df: pd.DataFrame, part: str, columns: Sequence[str], keys: Sequence[str], what: str) -> pd.DataFrame:
    """Return the rows of ``part`` as :func:`require_table` does, or raise :class:`UsageError` where there is none."""
    df = require_columns(df, ("part", "method", "n_images", *columns, *_AUCS), what)
    rows = df[df["part"] == part]
    if rows.empty:
        raise UsageError(f"{what} needs rows of part {part}; given: {', '.join(sorted(set(df['part'])))}")
    return require_table(rows, (), (*SETTING, *keys), what)


def _mean_and_sem(values: ArrayLike, points: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean (K,) and its standard error, 0 for a single image, of ``values`` (n, K)."""
    values = np.asarray(as_numpy(values), float)
    if values.ndim != 2 or values.shape[1] != points or not len(values):
        raise UsageError(f"{what} has shape {values.shape}; allowed: (images, {points}), a column per share")
    sem = values.std(axis=0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.zeros(points)
    return values.mean(axis=0), sem
