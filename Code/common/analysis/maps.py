"""How alike two maps over the patches are, for instance the mean depth of each patch on two data sets."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.optimize import linprog
from scipy.special import rel_entr
from scipy.stats import rankdata
from torch import Tensor

from common.analysis.arrays import as_numbers, require_alike
from common.analysis.intervals import Interval, independent_bootstrap
from common.errors import UsageError
from common.options import Count, Whole, checked

ENDS = {"KLD12": (0, np.inf), "KLD21": (0, np.inf), "JSD": (0, 1), "PCC": (-1, 1), "SCC": (-1, 1), "SIM": (0, 1)}
ENDS["EMD"] = (0, np.inf)  # what each measure lies in
TOLERANCE = 1e-10  # the least that HiGHS takes


def compare_maps(m1: ArrayLike | Tensor, m2: ArrayLike | Tensor, *, parity: bool = False) -> dict[str, float]:
    """The seven measures by which "Which Tokens to Use?" (Haurum et al., 2023) compares maps of token depth.

    With p and q the two maps divided by their sums::

        KLD12, KLD21    Kullback-Leibler divergence of q from p, sum q log2(q / p), and of p from q, in bits; inf where
                        one map is 0 and the other is not
        JSD             Jensen-Shannon divergence, in bits, in [0, 1]
        PCC, SCC        Pearson's and Spearman's correlation over the patches; NaN where a map is constant
        SIM             histogram intersection, sum min(p', q'), in [0, 1], of the maps scaled to [0, 1] and divided by
                        their sums; NaN where a map is constant
        EMD             earth mover's distance of p and q in patches, by Euclidean distance on the grid, exact

    Bylinskii et al., "What Do Different Evaluation Metrics Tell Us About Saliency Models?", TPAMI 2019. EMD takes
    the package POT where it is installed (``pip install -e '.[analysis]'``), and scipy's linear programming, which is
    slower, otherwise.

    Args:
        m1, m2: (h, w), not negative.
        parity: the numbers of the reference implementation: its JSD weighs both logarithms by the mean of p and q and
            has no bound; 0 log 0 makes KLD and JSD NaN; its distances are those of a grid that is flattened column by
            column, wrong unless h = w.

    Raises:
        UsageError: no two maps of one shape (h, w), values that are negative or not finite, a map of zeros.

    >>> found = compare_maps([[4, 0], [0, 0]], [[0, 4], [0, 0]])  # all heat moves by one patch
    >>> {name: round(value, 3) for name, value in found.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'KLD12': inf, 'KLD21': inf, 'JSD': 1.0, 'PCC': -0.333, 'SCC': -0.333, 'SIM': 0.0, 'EMD': 1.0}
    """
    m1, m2 = as_numbers(m1, "maps"), as_numbers(m2, "maps")
    require_alike(m1, m2, "maps", "h", "w")
    for each in (m1, m2):
        if each.min() < 0 or not each.sum() > 0:
            raise UsageError(
                f"a map from {each.min():g} to {each.max():g} is no distribution; allowed: >= 0, not all 0"
            )
    p, q = m1.ravel() / m1.sum(), m2.ravel() / m2.sum()
    middle, divergence = (p + q) / 2, _literal_divergence if parity else _divergence
    halves = [(middle, p), (middle, q)] if parity else [(p, middle), (q, middle)]
    return {
        "KLD12": divergence(q, p),
        "KLD21": divergence(p, q),
        "JSD": sum(divergence(*half) for half in halves) / 2,
        "PCC": _correlation(m1.ravel(), m2.ravel()),
        "SCC": _correlation(rankdata(m1), rankdata(m2)),
        "SIM": _intersection(m1, m2),
        "EMD": _earth_mover(p, q, _distances(m1.shape, "F" if parity else "C")),
    }


@checked
def compare_mean_maps(
    a: ArrayLike | Tensor, b: ArrayLike | Tensor, *, resamples: Count = 100, seed: Whole = 0
) -> dict[str, Interval]:
    """:func:`compare_maps` of two means of maps, as of token depth on two data sets, each measure with its interval.

    The interval is about other images of both data sets: those of each are drawn anew by themselves, see
    :func:`common.analysis.independent_bootstrap`.

    Args:
        a, b: (n, h, w) and (m, h, w), maps of n images and of m others.

    Raises:
        UsageError: another shape; otherwise as :func:`compare_maps`.

    >>> rng = np.random.default_rng(0)
    >>> slope = np.arange(16.0).reshape(4, 4)
    >>> near, far = (slope + noise * rng.random((200, 4, 4)) for noise in (1, 8))
    >>> found = compare_mean_maps(near, far)
    >>> found["PCC"].low > 0.99, found["EMD"].low <= found["EMD"].value <= found["EMD"].high
    (True, True)
    """
    a, b = _maps_of_images(a), _maps_of_images(b)
    found = independent_bootstrap(
        lambda *maps: list(compare_maps(*maps).values()), a, b, resamples=resamples, seed=seed
    )
    parts = zip(ENDS.items(), *(each.tolist() for each in vars(found).values()), strict=True)
    return {name: Interval(value, error, max(low, ends[0]), min(high, ends[1]))
            for (name, ends), value, error, low, high in parts}  # fmt: skip


@checked
def compare_halves(maps: ArrayLike | Tensor, *, splits: Count = 5, seed: Whole = 0) -> dict[str, float]:
    """:func:`compare_maps` of the mean maps of two halves of the images, mean over random ``splits``.

    It is what the same looks like: both halves are of one kind, and differ by what half of the images leave to chance.

    Args:
        maps: (n, h, w), of at least two images.

    >>> found = compare_halves(np.random.default_rng(0).random((300, 4, 4)) + np.arange(4.0))
    >>> found["PCC"] > 0.99
    True
    """
    maps, rng = _maps_of_images(maps), np.random.default_rng(seed)
    if len(maps) < 2:
        raise UsageError("one image has no halves; give maps of two or more")
    found = []
    for _ in range(splits):
        halves = np.array_split(rng.permutation(len(maps)), 2)
        found.append(list(compare_maps(*(maps[half].mean(0) for half in halves)).values()))
    return dict(zip(ENDS, np.mean(found, axis=0).tolist(), strict=True))


def _maps_of_images(maps: ArrayLike | Tensor) -> np.ndarray:
    found = as_numbers(maps, "maps")
    if found.ndim != 3 or not found.size:
        raise UsageError(f"maps of shape {found.shape} are not allowed; give (n, h, w) of n images")
    return found


def _divergence(q: np.ndarray, p: np.ndarray) -> float:
    """sum q log2(q / p), where 0 log 0 = 0."""
    return float(rel_entr(q, p).sum() / np.log(2))


def _literal_divergence(q: np.ndarray, p: np.ndarray) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float((q * np.log2(q / p)).sum())


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def _intersection(m1: np.ndarray, m2: np.ndarray) -> float:
    if np.ptp(m1) == 0 or np.ptp(m2) == 0:
        return np.nan
    scaled = [(each - each.min()) / (each.max() - each.min()) for each in (m1, m2)]
    return float(np.minimum(*(each / each.sum() for each in scaled)).sum())


def _distances(shape: tuple[int, int], order: str) -> np.ndarray:
    """Euclidean distances (P, P) of the patches of a grid that is flattened in ``order``: "C", row by row, or "F"."""
    rows, columns = (axis.ravel(order) for axis in np.indices(shape))
    return np.hypot(rows[:, None] - rows, columns[:, None] - columns)


def _earth_mover(p: np.ndarray, q: np.ndarray, distance: np.ndarray) -> float:
    """Least mass times ``distance`` that turns p into q; mass that both have can stay, as distances are a metric."""
    more, less = np.flatnonzero(p > q), np.flatnonzero(p < q)
    if not len(more) or not len(less):
        return 0.0
    supply, demand = (p - q)[more], (q - p)[less]
    total = supply.sum()
    transport = _transport_by_pot if find_spec("ot") else _transport_by_scipy
    return float(total * transport(supply / total, demand / demand.sum(), distance[np.ix_(more, less)]))


def _transport_by_pot(supply: np.ndarray, demand: np.ndarray, cost: np.ndarray) -> float:
    import ot

    return ot.emd2(supply, demand, cost, numItermax=10_000_000)


def _transport_by_scipy(supply: np.ndarray, demand: np.ndarray, cost: np.ndarray) -> float:
    rows, columns = cost.shape
    way = np.arange(cost.size)
    places = np.concatenate([way // columns, rows + way % columns]), np.tile(way, 2)
    sums, masses = sparse.coo_array((np.ones(2 * cost.size), places)).tocsr(), np.concatenate([supply, demand])
    exact = {"primal_feasibility_tolerance": TOLERANCE, "dual_feasibility_tolerance": TOLERANCE}
    found = linprog(cost.ravel(), A_eq=sums, b_eq=masses, method="highs", options=exact)
    if not found.success:
        raise ArithmeticError(f"the earth mover's distance was not found: {found.message}")
    return found.fun
