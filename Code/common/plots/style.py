"""One look for all figures: colours of the methods, size of the page, and how a figure becomes a small file."""

from __future__ import annotations

import io
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context, rc_params_from_file
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from common.errors import UsageError, require_choice
from common.results import resolve, write_atomically

WIDTH = 9.0  # inches; 900 px at the lowest resolution a figure is written in
_LETTERS = 110  # in a line of this width
MAX_BYTES = 150_000
# From sharp to small: (dots per inch, colours). The first that fits under MAX_BYTES is written.
_QUALITIES = ((200, 256), (160, 256), (130, 256), (100, 256), (100, 128), (100, 64), (100, 32))
_AREAS = 8  # of so many colours one is that of an area

RC = rc_params_from_file(Path(__file__).with_name("figures.mplstyle"), use_default_template=False)

# Append a new method at the end: its place decides its colour and marker, in every figure and for good.
METHODS = {
    "none": "no reduction",
    "tram": "TRAM",
    "topk": "Top-K",
    "ats": "ATS",
    "patchmerger": "PatchMerger",
    "evit": "EViT",
    "dynamicvit": "DynamicViT",
    "tome": "ToMe",
    "kmedoids": "K-Medoids",
    "dpcknn": "DPC-KNN",
    "sinkhorn": "Sinkhorn",
    "sit": "SiT",
    "l1": "l1 pattern",
    "l2": "l2 pattern",
    "linf": "l∞ pattern",
    "idle_topk": "IdleViT",
    "idle_mlp": "Idling MLP",
    "idle_oracle": "idling oracle",
    "idle_random": "random idling",
    "patch_slimming": "Patch Slimming",
    "dynamic_slimming": "Dynamic Slimming",
    "random": "random",
    "downsample": "smaller image",
    "diffrate": "DiffRate",
    "ppt": "PPT",
    "atc": "ATC",
    "pitome": "PiToMe",
}

# Okabe-Ito first (distinct in all common kinds of colour blindness), then Tol's "muted" and dark tones; the markers
# carry the difference where so many colours no longer can.
_COLORS = (
    "#000000", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#332288", "#999933",
    "#882255", "#44AA99", "#661100", "#117733", "#AA4499", "#DDCC77", "#6699CC", "#CC6677", "#004488",
    "#BB5566", "#777777", "#5D4E00", "#9970AB", "#A6761D", "#1B7837", "#35978F", "#C51B7D", "#F781BF",
    "#8C2D04", "#4D9221", "#2B5C8A",
)  # fmt: skip
_MARKERS = "Xos^DvP<>ph*dH8soD^vP<>p*hdH8X"  # of the colours
_SHAPES = "".join(dict.fromkeys(_MARKERS))  # more methods than colours: the same, other markers
OTHER_COLOR = "#777777"  # of methods from outside this package


def place_of(method: str) -> int:
    """The place of ``method`` in legends and tables; those from outside this package come last."""
    return list(METHODS).index(method) if method in METHODS else len(METHODS)


@dataclass(frozen=True)
class MethodStyle:
    """How one method looks in every figure."""

    label: str
    color: str
    marker: str
    linestyle: str


def method_style(method: str) -> MethodStyle:
    """Return the fixed look of ``method``; one that ``METHODS`` does not list is grey, under its own name."""
    if method not in METHODS:
        return MethodStyle(method, OTHER_COLOR, "o", "-")
    turn, place = divmod(list(METHODS).index(method), len(_COLORS))
    marker = _SHAPES[(_SHAPES.index(_MARKERS[place]) + turn) % len(_SHAPES)]
    return MethodStyle(METHODS[method], _COLORS[place], marker, "--" if method == "none" else "-")


def baseline_point() -> dict:
    """Return the keyword arguments that draw the unreduced model as a lone marker, without a legend entry."""
    none = method_style("none")
    return {"color": none.color, "marker": none.marker, "markersize": 7, "linestyle": "none"}


class PageFigure(Figure):
    """A figure that shows itself, at the size it is saved in, as the last value of a notebook cell.

    Attributes:
        png: what it was last drawn to, as long as nothing of it has changed.
    """

    png: bytes = b""

    def _repr_png_(self) -> bytes:
        return to_png(self)


# In the order of legends and tables. TRAM's centrality looks as TRAM does, and random as the unreduced model does among
# the methods: it is what the others are held against.
EXPLAINERS = {
    "mutex": MethodStyle("MUTEX", "#D55E00", "D", "-"),
    "tram": MethodStyle("TRAM centrality", "#0072B2", "o", "-"),
    "raw_attention": MethodStyle("raw attention", "#E69F00", "s", "-"),
    "rollout": MethodStyle("rollout", "#009E73", "^", "-"),
    "gradient_rollout": MethodStyle("gradient rollout", "#56B4E9", "v", "-"),
    "chefer": MethodStyle("Chefer", "#CC79A7", "P", "-"),
    "grad_cam": MethodStyle("Grad-CAM", "#332288", "<", "-"),
    "integrated_gradients": MethodStyle("integrated gradients", "#999933", ">", "-"),
    "random": MethodStyle("random", "#000000", "X", "--"),
}


def explainer_style(explainer: str) -> MethodStyle:
    """Return the fixed look of ``explainer``; raise :class:`UsageError` if ``EXPLAINERS`` does not list it."""
    return EXPLAINERS[require_choice(explainer, EXPLAINERS, "explainer to plot (common.plots.style.EXPLAINERS)")]


def explainer_label(explainer: str, options: str = "") -> str:
    """Return the name for readers, options in brackets; an explainer that has none keeps its own."""
    label = EXPLAINERS[explainer].label if explainer in EXPLAINERS else explainer
    return f"{label} ({options.replace(',', ', ')})" if options else label


def new_figure(height: float, *, width: float = WIDTH, layout: str | None = "constrained") -> PageFigure:
    """Return an empty figure of ``width`` x ``height`` inches that belongs to no window and no pyplot state."""
    fig = PageFigure(figsize=(width, height), layout=layout, facecolor="white")
    if layout == "constrained":
        fig.get_layout_engine().set(w_pad=0.09, h_pad=0.07)
    return fig


def sentence(text: str) -> PageFigure:
    """Return a figure that says ``text``, in place of a drawing for which the numbers are missing."""
    text = textwrap.fill(text, _LETTERS)
    with rc_context(RC):
        fig = new_figure(0.5 + 0.2 * text.count("\n"))
        fig.text(0.5, 0.5, text, ha="center", va="center")
    return fig


def save(fig: Figure, path: str | os.PathLike[str]) -> Path:
    """Write ``fig`` as a PNG of less than 150 kB, whole or not at all; create the folders; return the path.

    A relative path starts from the repository's root, wherever a notebook runs.

    The resolution starts at 200 dpi and falls, then the number of colours, until the file is small enough. Raises
    :class:`UsageError` if the name does not end in .png or if the figure does not fit at 900 px and 32 colours.
    """
    path = resolve(path)
    if path.suffix != ".png":
        raise UsageError(f"figures are saved as .png; got {str(path)!r}")
    data = to_png(fig)
    write_atomically(path, lambda file: file.buffer.write(data))
    return path


def to_png(fig: Figure) -> bytes:
    """Return ``fig`` as the sharpest PNG below 150 kB; raise :class:`UsageError` if there is none."""
    if not fig.stale and getattr(fig, "png", b""):
        return fig.png
    rendered: dict[int, Image.Image] = {}
    for dpi, colors in _QUALITIES:
        if dpi not in rendered:
            rendered[dpi] = _render(fig, dpi)
        data = _encode(rendered[dpi], colors)
        if len(data) < MAX_BYTES:
            fig.png, fig.stale = data, False  # which every change from here on sets again
            return data
    raise UsageError(f"figure is {len(data)} bytes at {dpi} dpi and {colors} colours; allowed: {MAX_BYTES}; show less")


def _render(fig: Figure, dpi: int) -> Image.Image:
    stream = io.BytesIO()
    with rc_context(RC):  # ticks are made when first drawn, and take their look from the settings of that moment
        FigureCanvasAgg(fig).print_figure(stream, dpi=dpi, format="png")
    return Image.open(stream).convert("RGB")


def _encode(image: Image.Image, colors: int) -> bytes:
    """PNG of ``colors``, among them those of areas, exactly: legends have them, which photographs would wash out."""
    areas = sorted(image.getcolors(image.width * image.height), reverse=True)[: colors // _AREAS]
    exact = np.array([color for _, color in areas], np.uint8)  # (areas, 3)
    rest = image.quantize(colors - len(areas), method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette, stream = rest.getpalette(), io.BytesIO()
    order, pixels = np.argsort(_numbers(exact)), _numbers(np.asarray(image))
    rising = _numbers(exact)[order]
    found = np.minimum(np.searchsorted(rising, pixels), len(areas) - 1)
    places = np.where(rising[found] == pixels, len(palette) // 3 + order[found], np.asarray(rest))
    few = Image.fromarray(places.astype(np.uint8))
    few.putpalette([*palette, *exact.ravel().tolist()])
    few.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _numbers(colors: np.ndarray) -> np.ndarray:
    """Red, green and blue (..., 3) -> one number for each colour (...)."""
    red, green, blue = np.moveaxis(colors.astype(np.uint32), -1, 0)
    return red << 16 | green << 8 | blue
