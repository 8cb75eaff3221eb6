"""Selection rules: which drafted token is kept, so that the output still follows the target.

A rule is one file here and one line below.
"""

from spectr_lite.verifiers import (
    coupling,
    importance,
    kseq,
    naive,
    optimal,
    recursive,
    recursive_wor,
    spechub,
    target_only,
)
from spectr_lite.verifiers.base import Selection, Verifier
from spectr_lite.verifiers.registry import get, names, register

__all__ = [
    "Selection",
    "Verifier",
    "coupling",
    "get",
    "importance",
    "kseq",
    "naive",
    "names",
    "optimal",
    "recursive",
    "recursive_wor",
    "register",
    "spechub",
    "target_only",
]
