"""How many passes each notebook makes, from its parameters: what the estimate of its cost is counted in.

A pass is one image once through all blocks of a backbone; one that is differentiated counts TRAINED times. An image
counts in full however few of its tokens are left. A rehearsal counts those that are made (pass_counter.py), and the
tests hold them against these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.yaml_files import read_yaml
from profile_file import ROOT

TRAINED = 3  # forward and backward pass
TAUGHT = TRAINED + 1  # and that of a teacher
# data set -> images to train on, to validate on
IMAGES = {
    "digits": (1_437, 360),
    "photo-tiles": (260, 260),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "fashion-mnist": (60_000, 10_000),
    "imagenette": (9_469, 3_925),
    "imagenet": (1_281_167, 50_000),
    "nabirds": (23_929, 24_633),
    "coco": (82_081, 40_137),
    "nuswide": (150_000, 59_347),
}
UNKNOWN = (35_000, 4_000)  # of a folder: ImageNet-mini's
LEARNING = {"dynamicvit", "patchmerger", "sinkhorn", "sit"}  # methods with parts that a training has to make
TAUGHT_METHODS = {"dynamicvit"}  # of which the unreduced network is the teacher
BEFORE_BLOCKS = {"dpcknn", "dynamicvit", "kmedoids", "patchmerger", "sinkhorn", "sit"}  # tokens go before attention
DRAWING = {"random", "patchmerger", "sinkhorn", "sit"}  # methods that a seed changes, off the shelf
ADAPTIVE = {"ats"}  # methods that keep more of some images than of others
HALVINGS, COST_IMAGES = 15, 32  # passes over so many images until a budget of theirs is met
CURVES = 24  # passes of an image along insertion and deletion
# Passes that explaining an image takes; MUTEX: its own, and one for each of at most 54 masks
EXPLAINING = {"random": 0, "mutex": 55, "gradient_rollout": TRAINED, "chefer": TRAINED, "grad_cam": TRAINED}
STEPS = 32  # of integrated gradients, where they are not given
MOVES = 6  # explanations of an image for its max-sensitivity
MASK_KINDS = 14  # of MUTEX, each measured by itself
SOLVED = 4  # passes over the calibration images until thresholds fit a budget, about
SHARES = 11  # of its patches that each block is tried with before a budget is shared out
SCORED = 512  # calibration images that patches are ranked on before a budget is shared out
OF_A_BUDGET = 6  # plans
FAMILIES = 8  # of lengths that a search tries, where a budget is shared out by a taper
PATCH_SCORES = 15  # by which the study of patch slimming ranks patches


@dataclass(frozen=True)
class Given:
    """The parameters of a run, its notebook's included; its numbers of images; the blocks of its backbone."""

    options: Mapping[str, Any]
    depth: int = 12

    def __getitem__(self, name: str) -> Any:
        return self.options[name]

    def limited(self, name: str, split: int) -> int:
        """Images that the limit ``name`` leaves of the training (0) or validation set (1)."""
        return _limited(self["dataset"], split, self.options.get(name))

    @property
    def train(self) -> int:
        return self.limited("limit_train", 0)

    @property
    def val(self) -> int:
        return self.limited("limit_val", 1)

    @property
    def calibration(self) -> int:
        return self.limited("num_calibration" if "num_calibration" in self.options else "limit_calibration", 0)

    @property
    def models(self) -> int:
        """Methods times keep rates; the unreduced model has one."""
        methods = len(self["reducers"])
        return methods * len(self["keep_rates"]) - ("none" in self["reducers"]) * (len(self["keep_rates"]) - 1)

    def trained(self, epochs: int, images: int, passes: int = TRAINED, val: int | None = None) -> int:
        """Passes of a training that validates on ``val`` images, by default a batch, before and after every epoch.

        Args:
            passes: for each training image.
        """
        val = min(self["batch_size"], self.val) if val is None else val
        return val + epochs * (passes * images + val)

    @property
    def training(self) -> int:
        """Passes of a training that validates on all images."""
        return self.trained(self["epochs"], self.train, val=self.val)


def _limited(dataset: str, split: int, limit: int | None) -> int:
    there = IMAGES.get(dataset, UNKNOWN)[split]
    return min(limit or there, there)


def _across_data(given: Given) -> int:
    if given["trained"]:
        return 0
    images = sum(_limited(name, 1, limit) for name, limit in zip(given["datasets"], given["limits"], strict=True))
    return given.models * images * len(given["backbones"])


def _method_grid(given: Given) -> int:
    """A training for each model, and who is right before and after it; averaged weights are validated too."""
    around = given.val * (1 + bool(given["epochs"]) + given["epochs"] * bool(given["ema_decay"]))
    taught = _taught(given["reducers"]) * len(given["keep_rates"]) * given["epochs"] * given.train
    return given.models * (given.training + around) + taught


def _gallery(given: Given) -> int:
    """A training for every method that has something to learn."""
    return sum(_is(text, LEARNING) for text in given["reducers"]) * given.training + (
        _taught(given["reducers"]) * given["epochs"] * given.train
    )


def _taught(reducers: Sequence[str]) -> int:
    return sum(_is(text, TAUGHT_METHODS) for text in reducers)


def _patterns(given: Given) -> int:
    """Models that a seed changes are evaluated with every seed; of trained ones the records are read."""
    if given["trained"]:
        return 0
    drawn = sum(_is(text, DRAWING) or "sampler=random" in text for text in given["reducers"])
    return (given.models + drawn * len(given["keep_rates"]) * (len(given["seeds"]) - 1)) * given.val


def _leaderboard(given: Given) -> int:
    """The unreduced model, and every method at every budget; a few images more to solve for these."""
    drawn = given["reducers"].count("random")  # of those here the only one that a seed changes
    methods = len(given["reducers"]) - ("none" in given["reducers"]) + drawn * (len(given["seeds"]) - 1)
    return (1 + methods * len(given["mac_cuts"])) * given.val


def _throughput(given: Given) -> int:
    """A first pass of every model, and an untimed and a timed one in every round.

    The unreduced one is among them, and those with as many tokens of which none is chosen. Each is counted on an image.
    """
    conditions = len(given["backbones"]) * len(given["dtypes"]) * len(given["runtimes"]) * sum(given["batch_sizes"])
    alike = {_counted_like(text.partition(":")[0]) for text in given["reducers"]} - {""}
    timed = 1 + given.models + given["ceilings"] * len(alike) * len(given["keep_rates"])
    counted = 3 + given.models
    if given["dataset"]:  # on whose images the budgets of some methods are solved
        adaptive = sum(_is(text, ADAPTIVE) for text in given["reducers"])
        counted += adaptive * len(given["keep_rates"]) * HALVINGS * COST_IMAGES
    return timed * conditions * (1 + 2 * given["rounds"]) + len(given["backbones"]) * counted


def _serving(given: Given) -> int:
    """Every model has every load in every round, image by image and by batches; one image of each client comes first.

    A first pass of each; each is counted on an image, and there is the test of identity.
    """
    models, ways = 1 + given.models, 1 + (given["max_batch"] > 1)
    asked = sum(clients * (1 + -(-given["requests"] // clients)) for clients in given["clients"])
    once = models + 2 + models
    return len(given["backbones"]) * (models * ways * given["rounds"] * asked + once)


def _counted_like(name: str) -> str:
    """What all methods share that have as many tokens as ``name`` at a keep rate; "" = their number is not fixed."""
    if name in ("none", "ats", "downsample") or name.startswith("idle_"):
        return ""
    return name if name in ("evit", "l1", "l2", "linf") else str(name in BEFORE_BLOCKS)


def _is(text: str, methods: set[str]) -> bool:
    return text.partition(":")[0] in methods


# Explanations


def _explaining(text: str) -> int:
    """Passes of an image for the explainer written as ``text``."""
    name, _, options = text.partition(":")
    if name == "integrated_gradients":
        given = dict(option.split("=") for option in options.split(",") if option)
        return 1 + TRAINED * int(given.get("n_steps", STEPS))
    return EXPLAINING.get(name, 1)


def _explain(given: Given) -> int:
    """The explainer and its curves for every backbone, the others' heat for the first."""
    images = given["images"]
    count = len(read_yaml(ROOT / images)) if isinstance(images, str) else images
    count = len(count) if isinstance(count, list) else count
    return count * len(given["backbones"]) * (1 + _explaining(given["explainer"]) + CURVES) + count * sum(
        map(_explaining, given["others"])
    )


def _explain_benchmark(given: Given) -> int:
    each, again = (sum(map(_explaining, given[name])) for name in ("explainers", "reduced_explainers"))
    images = given["num_images"]
    whole = 1 + each + CURVES * len(given["explainers"])
    reduced = 1 + again + CURVES * len(given["reduced_explainers"])
    moved = MOVES * min(given["num_sensitive"], images) * each
    return images * (whole + len(given["reducers"]) * reduced) + moved


def _mutex_study(given: Given) -> int:
    values = sum(len(given[name]) for name in ("min_cuts", "token_ratios", "starting_layers"))
    mutex = _explaining("mutex")
    return given["num_images"] * (1 + (values + 1) * (mutex + CURVES) + (1 + MASK_KINDS) * CURVES)


def _explain_agreement(given: Given) -> int:
    return given["num_images"] * (1 + len(given["reducers"]) + sum(map(_explaining, given["explainers"])))


# Patches that idle


def _looks(label: str) -> int:
    """Passes that tell which patches of an image may idle by ``label``: one compares them; one follows influence, or
    one and two back give the gradients."""
    return next((passes for kind, passes in {"rollout": 2, "fisher": 4}.items() if f"influence={kind}" in label), 1)


def _idle_patches(given: Given) -> int:
    """Predictors for every kind of label and share, and for every tau; the backbone is not differentiated."""
    published, *others = given["labels"]
    looks = [_looks(label) for label in given["labels"] if label]
    shares, taus = len(given["idle_shares"]), len(given["taus"])
    train = _limited_labels(given)
    fits = sum(given.trained(given["epochs"], train, look) * shares for look in looks)
    fits += given.trained(given["epochs"], train, looks[0]) * taus
    similarities = given.limited("limit_states", 1) + given.calibration * (1 + shares * sum(looks))
    same = 2 if published else 0  # standard attention, at the same cost
    solved = (same + len(others)) * shares * SOLVED * given.calibration
    models = (same + bool(published) + len(others)) * shares + 3 * taus  # also with the same thresholds
    return fits + similarities + solved + (1 + models) * given.val


def _idle_study(given: Given) -> int:
    looks, study = [_looks(label) for label in given["labels"]], given.limited("limit_study", 1)
    kinds, contexts, bounds = len(looks), len(given["contexts"]), 2 + len(given["random_seeds"])
    train, solved = _limited_labels(given), SOLVED * given.calibration
    variants = given.limited("limit_variants", 0)

    def tuned(images: int) -> int:
        return given.trained(given["tune_epochs"], images, TAUGHT)

    fits = sum(given.trained(given["epochs"], train, look) for look in [*looks, *[looks[-1]] * contexts])
    fits += sum(looks) * given.calibration + (kinds + contexts) * solved
    rates = len(given["tune_rates"]) * (tuned(variants) + solved + 2 * given.calibration)
    tuning = kinds * (tuned(given.train) + solved + given.calibration) + (1 + 2 * kinds) * given.val
    idlevit = len(given["cut_weights"]) * (tuned(variants) + study)
    return fits + rates + tuning + idlevit + study * (kinds * bounds + (1 + contexts) * (2 + looks[-1]) + 4)


def _limited_labels(given: Given) -> int:
    return min(given["limit_labels"] or given.train, given.train)


# Patch slimming


def _searched(given: Given, epochs: int, candidates: float = 1) -> float:
    """Passes of a search for every image: block by block its features, and the tuning of two blocks.

    Args:
        candidates: numbers of patches that each block is tried with.
    """
    features, two_blocks = 0.5 + 1.5 / given.depth, 2 / given.depth
    tried = two_blocks * (0.75 * TRAINED * epochs + 0.25 * (2 if epochs else 1))
    return given.calibration * (given.depth - 1) * (features + candidates * tried)


def _shared_out(given: Given, images: int) -> float:
    """Passes to see what each block may drop: half of the network, on average, for every share of its patches."""
    return images * (2 + SHARES * (given.depth - 1) / 2)


def _slimming(given: Given) -> float:
    """The plans, found and distilled; what they reach, stage by stage; gates; and plans of other budgets."""
    plans, error = len(given["scores"]) * len(given["lengths"]), min(given["error_images"], given.calibration)
    passes = plans * _searched(given, given["epochs"])
    if "learned" in given["lengths"]:
        passes += len(given["scores"]) * (min(SCORED, given.calibration) + _shared_out(given, error))
    if "tapered" in given["lengths"]:
        passes += len(given["scores"]) * (min(SCORED, given.calibration) + error * (1 + FAMILIES))
    if given["distill_epochs"]:
        passes += plans * given.trained(given["distill_epochs"], given.train, TAUGHT)
    if given["finetune_epochs"]:
        passes += plans * given.trained(given["finetune_epochs"], given.train)
    stages = 1 + sum(given[name] > 0 for name in ("epochs", "distill_epochs", "finetune_epochs"))
    timed = 2 * given["rounds"] * min(given["batch_size"], given.val)
    passes += (1 + plans * stages) * (given.val + timed)
    if given["gate_epochs"]:
        gates = min(given["gate_images"], given.calibration)
        passes += gates * (TRAINED * given["gate_epochs"] + 3) + 4 * given.limited("limit_dynamic", 1)
    if given["budgets"]:
        passes += 3 * given.calibration + _shared_out(given, error)
        passes += (1 + len(given["budgets"]) * OF_A_BUDGET) * given.limited("limit_budgets", 1)
    return passes


def _slimming_limits(given: Given) -> float:
    """Every plan measured beside the unreduced network, the scores of all of them, and how alike patches are.

    From the bottom up, each block is scored by all that lies above it, half of the network on average.
    """
    bottom_up, others = len(given["tapers"]), len(given["other_scores"]) + len(given["scored_on"])
    plans = bottom_up * (len(given["floors"]) + 1) + others
    scored = (1 + others + bottom_up * (given.depth / 2 + 1)) * given.calibration
    return (1 + plans) * given.val + scored + min(given["similarity_images"], given.calibration)


def _slimming_study(given: Given) -> float:
    sensitivity = given.limited("limit_sensitivity", 1) * (2 + len(given["sensitivity_kept_shares"]) * given.depth / 2)
    names = len(given["scores"]) + given["random_masks"]
    left = sum(1 - block / given.depth for block in given["blocks"])  # blocks above the one that computes fewer patches
    single = given.val * (2 + names * len(given["kept_shares"]) * len(given["pruning"]) * left)
    scores = (1 + len(given["scores"]) + PATCH_SCORES) * given.calibration
    patches = given.options.get("img_size", 224) ** 2 / 16**2
    found = len(given["tolerances"]) * _searched(given, given["tolerance_epochs"], 1 + patches / given["step"] / 4)
    if given["finetune_epochs"]:
        found += len(given["tolerances"]) * given.trained(given["finetune_epochs"], given.train)
    return sensitivity + single + scores + found + (1 + len(given["tolerances"])) * given.limited("limit_tolerances", 1)


PASSES: dict[str, Callable[[Given], float]] = {
    "Benchmark/sizing": lambda given: 0,
    "Benchmark/serving": _serving,
    "Benchmark/throughput": _throughput,
    "Pretrained/explain": _explain,
    "Pretrained/explain_agreement": _explain_agreement,
    "Pretrained/explain_benchmark": _explain_benchmark,
    "Pretrained/finetune": lambda given: given.training,
    "Pretrained/idle_patches": _idle_patches,
    "Pretrained/idle_study": _idle_study,
    "Pretrained/leaderboard": _leaderboard,
    "Pretrained/method_grid": _method_grid,
    "Pretrained/methods_gallery": _gallery,
    "Pretrained/mutex_study": _mutex_study,
    "Pretrained/off_the_shelf": lambda given: given.models * given.val,
    "Pretrained/patch_slimming": _slimming,
    "Pretrained/patch_slimming_limits": _slimming_limits,
    "Pretrained/patch_slimming_study": _slimming_study,
    "Pretrained/pattern_proxies": lambda given: 0 if given["trained"] else given.models * given.val,
    "Pretrained/patterns_across_data": _across_data,
    "Pretrained/reduction_patterns": _patterns,
    "Pretrained/visualize": lambda given: (1 + len(given["keep_rates"])) * given["num_images"],
    "Scratch/train_test": lambda given: given.training,
}
