"""The columns of every results table: the conditions that all rows carry, and what each table measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TEXT, INT, FLOAT = "str", "Int64", "float64"

CONDITIONS: dict[str, str] = {
    "table": TEXT,
    "profile": TEXT,
    "method": TEXT,
    "options": TEXT,
    "backbone": TEXT,
    "dataset": TEXT,
    "img_size": INT,
    "keep_rate": FLOAT,
    "seed": INT,
    "epochs": INT,
    "dtype": TEXT,
    "batch": INT,
    "device": TEXT,
    "threads": INT,
    "torch": TEXT,
    "timm": TEXT,
    "commit": TEXT,
    "date": TEXT,
}


@dataclass(frozen=True)
class Schema:
    """Columns of one results table: name -> dtype, which may be empty, and which conditions must be given."""

    metrics: Mapping[str, str]
    optional: frozenset[str] = field(default_factory=frozenset)
    required: tuple[str, ...] = ("table", "profile", "method", "backbone", "img_size", "keep_rate")

    @property
    def columns(self) -> dict[str, str]:
        return {**CONDITIONS, **self.metrics}


_TRAINING = Schema(
    metrics={
        "epoch": INT,
        "train_loss": FLOAT,
        "train_loss_last_batch": FLOAT,
        "val_loss": FLOAT,
        "val_accuracy": FLOAT,
        "ema_val_loss": FLOAT,
        "ema_val_accuracy": FLOAT,
        "lr": FLOAT,
        "epoch_seconds": FLOAT,
        "n_train": INT,
        "n_val": INT,
    },
    # Row 0 is the model before training: nothing was trained or averaged yet; not every run averages its weights.
    optional=frozenset(
        {"train_loss", "train_loss_last_batch", "ema_val_loss", "ema_val_accuracy", "lr", "epoch_seconds"}
    ),
    required=(*Schema.required, "dataset", "seed", "epochs"),
)

TABLES: dict[str, Schema] = {
    "throughput": Schema(
        metrics={
            **dict.fromkeys(("fps", "fps_q1", "fps_q3", "speedup", "speedup_q1", "speedup_q3"), FLOAT),
            **dict.fromkeys(("rounds", "params"), INT),
            **dict.fromkeys(("gmac", "gmac_thop_compat"), FLOAT),
        },
        required=(*Schema.required, "dtype", "batch"),
    ),
    "sizing": Schema(
        metrics={
            **dict.fromkeys(("source", "model"), TEXT),
            **dict.fromkeys(("params", "published_params"), INT),
            **dict.fromkeys(("gmac_linear", "gmac_attention", "gmac", "gmac_closed_form"), FLOAT),
            **dict.fromkeys(("gmac_thop_compat", "published_gflops"), FLOAT),
        },
        # Not every source prints parameters, and a random sampler has no closed form.
        optional=frozenset({"published_params", "published_gflops", "gmac_closed_form"}),
    ),
    "finetune": _TRAINING,
    "off_the_shelf": Schema(
        metrics={
            **dict.fromkeys(("accuracy", "accuracy_full", "loss"), FLOAT),
            "n_val": INT,
            **dict.fromkeys(("gmac", "images_per_second"), FLOAT),
        },
        # A head trained on the dataset itself has no further classes.
        optional=frozenset({"accuracy_full"}),
        required=(*Schema.required, "dataset"),
    ),
    "method_grid": Schema(
        metrics={
            # epochs = 0: the weights as they were given; otherwise after that many
            **dict.fromkeys(("accuracy", "accuracy_best", "ema_accuracy", "loss"), FLOAT),
            "tokens": TEXT,  # patch tokens left after each reduction, mean over images, e.g. "137 96 67"
            "gmac": FLOAT,
            **dict.fromkeys(("params", "n_train", "n_val"), INT),
        },
        optional=frozenset({"ema_accuracy"}),
        required=(*Schema.required, "dataset", "seed", "epochs"),
    ),
    "visualize": Schema(
        metrics={
            **dict.fromkeys(("image", "class_name"), TEXT),
            **dict.fromkeys(("layer", "num_kept"), INT),
            "predicted": TEXT,
            "probability": FLOAT,
            "predicted_full_model": TEXT,
            "probability_full_model": FLOAT,
        },
        required=(*Schema.required, "dataset"),
    ),
    "gallery": Schema(
        metrics={
            **dict.fromkeys(("image", "class_name"), TEXT),
            **dict.fromkeys(("layer", "num_tokens"), INT),
            "predicted": TEXT,
            "probability": FLOAT,
        },
        required=(*Schema.required, "dataset", "seed", "epochs"),
    ),
    "scratch": _TRAINING,
    "slimming": Schema(
        metrics={
            # study "stages": a plan before and after training; "budgets": plans of several budgets, "dynamic": gates;
            # "tolerances": searches, "sensitivity", "single_block": one block computes fewer patches, "heads": scores
            # schedule: how tokens were shared out ("learned", "uniform"), or the score that patches were chosen by
            **dict.fromkeys(("study", "schedule", "stage"), TEXT),
            "layer": INT,
            "tolerance": FLOAT,  # error that each block may make, in "tolerances"
            # share: of the multiplications that may be spent in "stages" and "budgets", of the patches elsewhere
            # accuracy: among the classes of the dataset in "stages", among all of the head elsewhere
            **dict.fromkeys(("share", "accuracy", "accuracy_full", "accuracy_sem", "gain", "gain_sem"), FLOAT),
            "pruned": TEXT,  # what becomes of patches that the one block does not compute: "idle", "zero", "dropped"
            **dict.fromkeys(("rank_correlation", "gmac", "gmac_paper", "cut", "cut_paper"), FLOAT),
            "tokens": TEXT,  # that each block computes, prefix tokens included
            **dict.fromkeys(("n_val", "n_calibration"), INT),
        },
        optional=frozenset(
            {"schedule", "layer", "share", "accuracy", "accuracy_full", "accuracy_sem", "gain", "gain_sem"}
            | {"tolerance", "pruned", "rank_correlation", "gmac", "gmac_paper", "cut", "cut_paper", "tokens", "n_val"}
        ),
        required=(*Schema.required, "dataset", "seed"),
    ),
    # In the three tables of explanations ``method`` and ``options`` are those of the explainer.
    "explain": Schema(
        metrics={
            **dict.fromkeys(("reducer", "image", "class_name", "predicted"), TEXT),
            **dict.fromkeys(("probability", "insertion_auc", "deletion_auc", "seconds"), FLOAT),
        },
        required=(*Schema.required, "dataset"),
    ),
    "explain_benchmark": Schema(
        metrics={
            # part: which masks of MUTEX were used, in study "masks": "all", or a kind such as "degree=in"
            **dict.fromkeys(("study", "reducer", "part", "baseline"), TEXT),
            "n_images": INT,
            **dict.fromkeys(("insertion_auc", "insertion_auc_sem", "deletion_auc", "deletion_auc_sem"), FLOAT),
            # mean difference to random on the same images, positive = better; two-sided p of the paired t test
            **dict.fromkeys(("insertion_gain", "insertion_p", "deletion_gain", "deletion_p"), FLOAT),
            **dict.fromkeys(("pointing", "pointing_sem", "mass", "mass_sem"), FLOAT),
            **dict.fromkeys(("sparseness", "max_sensitivity", "seconds"), FLOAT),
        },
        # One image has no standard error, random no gain over itself; few data say where their object is, and not every
        # study measures it all.
        optional=frozenset(
            {"part", "insertion_auc_sem", "deletion_auc_sem"}
            | {"insertion_gain", "insertion_p", "deletion_gain", "deletion_p"}
            | {"pointing", "pointing_sem", "mass", "mass_sem", "sparseness", "max_sensitivity", "seconds"}
        ),
        required=(*Schema.required, "dataset"),
    ),
    "explain_agreement": Schema(
        metrics={
            "reducer": TEXT,  # with its options: "topk:head_fusion=mean"
            **dict.fromkeys(("layer", "n_images"), INT),  # the block, first = 0, after which patches were left
            **dict.fromkeys(("rank_correlation", "rank_correlation_sem", "iou", "iou_sem", "iou_chance"), FLOAT),
        },
        # Not every reducer scores the patches; one image has no standard error.
        optional=frozenset({"rank_correlation", "rank_correlation_sem", "iou_sem"}),
        required=(*Schema.required, "dataset"),
    ),
    "idling": Schema(
        metrics={
            # stage: "frozen" or "tuned" backbone; layer: block of a row about one, first = 1, 0 = the state before it
            **dict.fromkeys(("study", "attention", "stage"), TEXT),
            **dict.fromkeys(("tau", "lr", "divergence"), FLOAT),
            "layer": INT,
            # patches per image, mean over all blocks; came_back: share of them that the next block computes
            **dict.fromkeys(("patches_idle", "came_back", "similarity", "within_similarity"), FLOAT),
            **dict.fromkeys(("pruner_accuracy", "balanced_accuracy", "auroc"), FLOAT),
            **dict.fromkeys(("accuracy", "accuracy_full", "gmac", "target_cut", "macs_cut", "speedup"), FLOAT),
            **dict.fromkeys(("n_train", "n_val"), INT),
        },
        # Every study measures what it is about.
        optional=frozenset(
            {
                "tau",
                "lr",
                "divergence",
                "layer",
                "patches_idle",
                "came_back",
                "similarity",
                "within_similarity",
                "pruner_accuracy",
            }
            | {"balanced_accuracy", "auroc", "accuracy", "accuracy_full", "gmac", "target_cut", "macs_cut", "speedup"}
        ),
        required=(*Schema.required, "dataset", "seed", "epochs"),
    ),
}
