"""The properties of tests/fuzz.py on a few examples; `python tests/fuzz.py` hunts for more."""

from fuzz import (
    test_bad_containers,
    test_containers,
    test_draws_and_verdicts,
    test_order,
    test_the_loop,
    test_trees,
)

__all__ = [
    "test_bad_containers",
    "test_containers",
    "test_draws_and_verdicts",
    "test_order",
    "test_the_loop",
    "test_trees",
]
