"""Draft selection as optimal transport: the linear program, its optimum by a cut, an optimal plan."""

from spectr_lite.transport.nested import NestedPlan
from spectr_lite.transport.optimum import optimal_acceptance, worst_set
from spectr_lite.transport.program import LPResult, lp_bytes, lp_size, solve_lp

__all__ = [
    "LPResult",
    "NestedPlan",
    "lp_bytes",
    "lp_size",
    "optimal_acceptance",
    "solve_lp",
    "worst_set",
]
