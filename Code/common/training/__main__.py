"""``python -m common.training CONFIG.yaml [key=value ...]``, alone or under ``torchrun``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from common.errors import command
from common.processes import is_main_process
from common.schema import accuracy_name
from common.training.engine import Epoch, goes_on
from common.training.experiment import Experiment


@command
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m common.training",
        description="Train the model that a YAML file describes; goes on if stopped.",
        epilog=f"keys: {', '.join(sorted(Experiment.keys()))}. "
        "What they mean: help(common.training.experiment.Experiment) and help(common.training.config.TrainConfig).",
    )
    parser.add_argument("config", help="YAML file of the attributes of Experiment and TrainConfig")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="win over the file")
    given = parser.parse_args(arguments)
    try:
        experiment = Experiment.from_yaml(given.config, given.overrides)
        measure = accuracy_name(experiment.dataset)

        def resumed(history: list[Epoch]) -> None:
            _say(goes_on(history, experiment.config))
            if history[-1].epoch == experiment.config.total_epochs:  # no other line is to come
                _say(describe(history[-1], measure))

        for epoch in experiment.run(on_resume=resumed):
            _say(describe(epoch, measure))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _say(line: str) -> None:
    if is_main_process():
        print(line, flush=True)


def describe(epoch: Epoch, measure: str = "accuracy") -> str:
    """One line about an epoch; ``measure`` is what its accuracies are."""
    parts = [f"epoch {epoch.epoch}:"]
    if epoch.train_loss is not None:
        parts.append(f"train loss {epoch.train_loss:.4f}, lr {epoch.lr:.2e},")
    parts.append(f"val loss {epoch.val_loss:.4f}, {measure} {epoch.val_accuracy:.2f} %")
    if epoch.ema_val_accuracy is not None:
        parts.append(f"(averaged weights {epoch.ema_val_accuracy:.2f} %)")
    waited = "" if epoch.loading_seconds is None else f", {epoch.loading_seconds:.1f} of them for images"
    return " ".join([*parts, f"in {epoch.epoch_seconds:.1f} s{waited}"])


if __name__ == "__main__":
    sys.exit(main())
