"""Selection rules: which drafted token is kept, so that the output still follows the target.

A rule is one file here and one line of RULES. Chapters 1, 4, 5, 6 and 10 explain one or more each.
"""

from __future__ import annotations

from spectr_lite.verifiers.base import Selection, TreeVerifier, Verifier
from spectr_lite.verifiers.block import BlockVerification
from spectr_lite.verifiers.coupling import Coupling
from spectr_lite.verifiers.importance import Importance
from spectr_lite.verifiers.kseq import KSeq
from spectr_lite.verifiers.multipath_block import MultipathBlock
from spectr_lite.verifiers.naive import Naive
from spectr_lite.verifiers.optimal import Optimal
from spectr_lite.verifiers.optimal_block import OptimalBlock
from spectr_lite.verifiers.paths import Block, BlockGivenPaths
from spectr_lite.verifiers.recursive import Recursive
from spectr_lite.verifiers.recursive_wor import RecursiveWithoutReplacement
from spectr_lite.verifiers.spechub import SpecHub
from spectr_lite.verifiers.target_only import TargetOnly
from spectr_lite.verifiers.traversal import Traversal

RULES: dict[str, type[Verifier]] = {
    "block": BlockVerification,
    "coupling": Coupling,
    "importance": Importance,
    "kseq": KSeq,
    "multipath-block": MultipathBlock,
    "naive": Naive,
    "optimal": Optimal,
    "optimal-block": OptimalBlock,
    "recursive": Recursive,
    "recursive-wor": RecursiveWithoutReplacement,
    "spechub": SpecHub,
    "target-only": TargetOnly,
    "traversal": Traversal,
}

__all__ = [
    "RULES",
    "Block",
    "BlockGivenPaths",
    "Selection",
    "TreeVerifier",
    "Verifier",
    "get",
    "names",
]


def get(name: str | Verifier) -> Verifier:
    """The rule of this name; a Verifier passes through. Raises ValueError for an unknown name.

    >>> get("kseq").name
    'kseq'
    """
    if isinstance(name, Verifier):
        return name
    if not isinstance(name, str) or name not in RULES:
        raise ValueError(f"verifier: no rule named {name!r}. Known rules: {', '.join(RULES)}.")
    return RULES[name]()


def names() -> tuple[str, ...]:
    """The name of every rule, in the order of RULES."""
    return tuple(RULES)
