"""A keep rate for a budget, in place of one that is given: :func:`keep_rate_for`, :func:`reduce_tokens`,
:func:`create_model`."""

from common.budget.models import create_model, reduce_tokens
from common.budget.search import FoundSchedule, search_schedule
from common.budget.solver import (
    COST_IMAGES,
    BudgetSolver,
    Solution,
    check_solvable,
    cost_images,
    keep_rate_for,
    solved,
)
from common.budget.timing import OutOfReachError, met
