"""The rules that the tests of decoding run through: every registered one, and four that are wrong."""

from __future__ import annotations

from collections.abc import Iterator

from wrong_variants import Deduplicated, PlainResidual, RhoOne, StaleCount

from spectr_lite import verifiers
from spectr_lite.distributions import IID

WRONG = [Deduplicated(), RhoOne(), PlainResidual(), StaleCount()]


def decoding_rules() -> Iterator[tuple[str, int]]:
    """(name, K) for every rule that decodes from i.i.d. drafts, with every K <= 3 that it takes."""
    for name in verifiers.names():
        rule = verifiers.get(name)
        for num_drafts in (1, 2, 3):
            try:
                rule.check_drafts(num_drafts)
            except ValueError:
                continue
            if IID in rule.valid_for:
                yield name, num_drafts
