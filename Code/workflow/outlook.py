"""What profiles cost, told to people: ./run_all.sh PROFILE --plan, and the table of Code/workflow/README.md.

python Code/workflow/outlook.py prints that table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from estimate import DOWNLOADS, GB, GPU, TFLOPS, cost_of, is_known, sizes_of
from needs import data_of, weights_of
from plan import Plan, load_plans
from profile_file import list_profiles

HOW = (
    f"estimated for {GPU}: multiply-accumulates of the unreduced network over every image, three times in training, at "
    f"{TFLOPS['no']} TFLOP/s in float32 and {TFLOPS['bf16']} in mixed precision; reading images is not counted"
)


def summary(plans: list[Plan]) -> dict[str, Any]:
    """Runs, GPU-hours of all, the most that one run needs, and what is downloaded."""
    costs = [cost_of(run) for plan in plans for run in plan.runs]
    downloads = {name: DOWNLOADS.get(name) for name in data_of(plans)}
    weights = {name: 4 * sizes_of(name, None).params / GB for name in weights_of(plans)}
    return {
        "runs": len(costs),
        "hours": sum(cost.hours for cost in costs),
        "longest": max(cost.hours for cost in costs),
        "memory": max(cost.memory for cost in costs),
        "disk": sum(cost.disk for cost in costs if cost.kept)
        + max((cost.disk for cost in costs if not cost.kept), default=0.0),
        "downloads": {name: size for name, size in downloads.items() if size},
        "weights": weights,
        "needed": [name for name, size in downloads.items() if size is None],
    }


def describe(plans: list[Plan]) -> str:
    """The summary for people, a line for each study before it."""
    lines = []
    for plan in plans:
        for study in plan.tables:
            costs = [cost_of(run) for run in plan.runs if run.study == study]
            hours, memory = sum(cost.hours for cost in costs), max(cost.memory for cost in costs)
            lines.append(
                f"{plan.profile}: {study}: {len(costs)} runs, {hours_text(hours)}, {memory:.1f} GB of GPU memory"
            )
    found = summary(plans)
    weights = sum(found["weights"].values())
    downloads = [f"{name} {size:g} GB" for name, size in found["downloads"].items()]
    downloads += [f"weights of {len(found['weights'])} backbones {weights:.1f} GB"] if weights else []
    lines.append(
        f"in all: {found['runs']} runs, {hours_text(found['hours'])} (the longest run {hours_text(found['longest'])}), "
        f"up to {found['memory']:.1f} GB of GPU memory, {found['disk']:.1f} GB of disk for checkpoints"
    )
    lines.append(f"downloads: {', '.join(downloads) or 'nothing'}")
    lines += [f"has to be under DATA_ROOT: {', '.join(found['needed'])}"] if found["needed"] else []
    unknown = sorted({run.notebook for plan in plans for run in plan.runs if not is_known(run)})
    lines += [f"not counted, as there is no estimate: {', '.join(unknown)}"] if unknown else []
    return "\n".join([*lines, HOW])


def table() -> str:
    """The summary of every shipped profile, as Code/workflow/README.md has it."""
    lines = ["| profile | runs | GPU-hours | longest run | GPU memory | downloads | has to be there |"]
    lines.append("|---|--:|--:|--:|--:|--:|---|")
    for name in list_profiles():
        found = summary(load_plans(name))
        hours, longest = (hours_text(found[key]).removesuffix(" GPU-hours") for key in ("hours", "longest"))
        downloads = sum(found["downloads"].values()) + sum(found["weights"].values())
        needed = ", ".join(Path(data.removeprefix("folder:")).name for data in found["needed"])
        cells = [
            f"`{name}`",
            f"{found['runs']}",
            hours,
            longest,
            f"{found['memory']:.1f} GB",
            f"{downloads:.1f} GB",
            needed,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def hours_text(hours: float) -> str:
    """
    >>> hours_text(0.02), hours_text(3.26), hours_text(1234.0)
    ('under 0.1 GPU-hours', '3.3 GPU-hours', '1,234 GPU-hours')
    """
    if hours < 0.1:
        return "under 0.1 GPU-hours"
    return f"{hours:.1f} GPU-hours" if hours < 100 else f"{hours:,.0f} GPU-hours"


if __name__ == "__main__":
    print(table())
