"""Around the methods that let patches idle: their thresholds for a budget, their training, what they do with images."""

from common.idling.budget import solve_thresholds
from common.idling.fitting import fit
from common.idling.outcomes import outcomes, predictor_quality
