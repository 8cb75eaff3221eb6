"""Two questions about a selection rule: how far from the optimum is it, and is it lossless?

    compare(draft, target)                a table: acceptance, optimum, gap, distance from the target
    lossless(verifier, draft, target, k)  a verdict, by enumeration and by sampling

A rule is a name, a `Verifier` or its class, or anything else with `acceptance` and `select`:
check/stranger.py says what arguments these two get and what they must return. Explained in chapter 5.
"""

from spectr_lite.check.table import Comparison, Row, compare, is_defined, token_rules
from spectr_lite.check.verdict import TokenShare, Verdict, lossless

__all__ = [
    "Comparison",
    "Row",
    "TokenShare",
    "Verdict",
    "compare",
    "is_defined",
    "lossless",
    "token_rules",
]
