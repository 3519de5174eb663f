"""Around the methods that let patches idle: their cost, their thresholds for a budget, their training, their study."""

from common.idling.budget import solve_thresholds
from common.idling.outcomes import outcomes, pruner_quality

__all__ = ["outcomes", "pruner_quality", "solve_thresholds"]
