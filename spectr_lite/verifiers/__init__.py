"""Selection rules: which drafted token is kept, so that the output still follows the target.

A rule is one file here and one line below.
"""

from spectr_lite.verifiers import (
    block,
    coupling,
    importance,
    kseq,
    multipath_block,
    naive,
    optimal,
    optimal_block,
    recursive,
    recursive_wor,
    spechub,
    target_only,
    traversal,
)
from spectr_lite.verifiers.base import Selection, Verifier
from spectr_lite.verifiers.registry import get, names, register
from spectr_lite.verifiers.walk import Block, BlockLaw

__all__ = [
    "Block",
    "BlockLaw",
    "Selection",
    "Verifier",
    "block",
    "coupling",
    "get",
    "importance",
    "kseq",
    "multipath_block",
    "naive",
    "names",
    "optimal",
    "optimal_block",
    "recursive",
    "recursive_wor",
    "register",
    "spechub",
    "target_only",
    "traversal",
]
