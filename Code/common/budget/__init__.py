"""A keep rate for a budget, in place of one that is given: :func:`keep_rate_for`, :func:`reduce_tokens`."""

from common.budget.solver import BudgetSolver, OutOfReachError, Solution, keep_rate_for, reduce_tokens
