"""How far from the optimum is a rule, and how far from the target its output? Explained in chapter 5."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from spectr_lite import verifiers as rules
from spectr_lite.check.stranger import Asked
from spectr_lite.distributions import MOST_DRAFTS, ArrayLike, Drafting, check_count, check_pair
from spectr_lite.transport import optimal_acceptance
from spectr_lite.verifiers import TreeVerifier

EXACT_LIMIT = 2_000_000  # pairs x V^(k+1) up to which the output distribution is enumerated


@dataclass(frozen=True)
class Row:
    """One rule with k drafts. With several pairs: means over them, and the largest total variation.

    gap = optimum - acceptance, ratio = acceptance / optimum; total_variation is the distance of the
    output's distribution from the target. None stands for what is too large to enumerate.
    """

    verifier: str
    k: int
    acceptance: float | None
    optimum: float
    gap: float | None
    ratio: float | None
    total_variation: float | None


COLUMNS = [field.name for field in dataclasses.fields(Row)]
HEADINGS = [*COLUMNS[:-1], "TV to target"]


@dataclass(frozen=True)
class Comparison:
    """The table made by `compare`: print it, show it in a notebook, or read its rows."""

    rows: tuple[Row, ...]
    pairs: int
    vocabulary: int

    @property
    def caption(self) -> str:
        if self.pairs == 1:
            return f"P(Y in S) against the optimum, V = {self.vocabulary:,}"
        return (
            f"P(Y in S) against the optimum, V = {self.vocabulary:,}: means over {self.pairs:,} pairs, "
            "and the largest TV"
        )

    def _cells(self) -> list[tuple[str, ...]]:
        return [tuple(_cell(name, getattr(row, name)) for name in COLUMNS) for row in self.rows]

    def __str__(self) -> str:
        table = [tuple(HEADINGS), *self._cells()]
        name, *widths = (max(map(len, column)) for column in zip(*table, strict=True))
        lines = []
        for first, *rest in table:
            numbers = [text.rjust(width) for text, width in zip(rest, widths, strict=True)]
            lines.append("  ".join([first.ljust(name), *numbers]))
        return "\n".join([self.caption, "", lines[0], "-" * max(map(len, lines)), *lines[1:]])

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in HEADINGS)
        body = "\n".join(
            f'<tr><th scope="row">{html.escape(first)}</th>'
            + "".join(f"<td>{html.escape(text)}</td>" for text in rest)
            + "</tr>"
            for first, *rest in self._cells()
        )
        return (
            f"<table>\n<caption>{html.escape(self.caption)}</caption>\n"
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)


def _cell(name: str, value: str | int | float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, str | int):
        return str(value)
    if name == "total_variation":
        return f"{value:.1e}"
    return f"{0.0 if abs(value) < 5e-7 else value:.6f}"


def compare(
    draft: ArrayLike,
    target: ArrayLike,
    ks: Sequence[int] = (1, 2, 4, 8),
    verifiers: Sequence[Any] | None = None,
) -> Comparison:
    """Every rule beside the optimum for its own way of drafting, for each number of drafts in `ks`.

    `draft`, `target`: (..., V); several pairs give means. `verifiers`: one rule or several; all
    registered token rules unless given (rules for paths are judged on longer paths). For a k that a
    rule is not defined for, it has no row. The distribution of Y is enumerated while pairs x V^(k+1)
    stays within EXACT_LIMIT. Raises ValueError for bad distributions, k < 1, an unknown rule, or a
    rule that is defined for none of `ks`.

        >>> print(compare([0.5, 0.5], [0.25, 0.75], ks=[1], verifiers=["coupling", "target-only"]))
        P(Y in S) against the optimum, V = 2
        <BLANKLINE>
        verifier     k  acceptance   optimum       gap     ratio  TV to target
        ----------------------------------------------------------------------
        coupling     1    0.750000  0.750000  0.000000  1.000000       0.0e+00
        target-only  1    0.500000  0.750000  0.250000  0.666667       0.0e+00
    """
    pairs = Pairs.of(draft, target)
    ks = [
        check_count(k, "k", most=MOST_DRAFTS)
        for k in (ks if isinstance(ks, Sequence | np.ndarray) else [ks])
    ]
    listed = token_rules() if verifiers is None else verifiers
    listed = listed if isinstance(listed, list | tuple) else [listed]  # one rule alone
    chosen = [Asked.of(rule, pairs.is_torch) for rule in listed]
    optima: dict[tuple[Drafting, int], float] = {}
    rows = []
    for rule in chosen:
        defined = [k for k in ks if rule.takes(k)]
        if not defined and verifiers is not None:
            raise ValueError(
                f"verifiers: {rule.name!r} is not defined for k in {ks}. Choose another k for it."
            )
        for k in defined:
            if (rule.drafting, k) not in optima:
                optimum = optimal_acceptance(pairs.draft, pairs.target, k, drafting=rule.drafting)
                optima[rule.drafting, k] = float(np.mean(np.asarray(optimum)))
            best, acceptance = optima[rule.drafting, k], mean_acceptance(rule, pairs, k)
            gap = ratio = None
            if acceptance is not None:
                gap, ratio = best - acceptance, acceptance / best if best > 0 else 1.0
            claimed = claimed_distributions(rule, pairs, k)
            error = None if claimed is None else largest_error(claimed, pairs)
            rows.append(Row(rule.name, k, acceptance, best, gap, ratio, error))
    return Comparison(tuple(rows), len(pairs.draft), pairs.draft.shape[-1])


def token_rules() -> tuple[str, ...]:
    """The names of the rules for one token at a time; the others need whole paths."""
    return tuple(name for name in rules.names() if not isinstance(rules.get(name), TreeVerifier))


def is_defined(verifier: Any, k: int) -> bool:
    """Whether the rule takes k drafts. Only a Verifier can say no: 'coupling' takes one."""
    return Asked.of(verifier, speaks_torch=True).takes(k)


@dataclass(frozen=True)
class Pairs:
    """Draft and target as (n, V) float64 on the CPU; whether the caller passed torch tensors."""

    draft: Tensor
    target: Tensor
    is_torch: bool

    @classmethod
    def of(cls, draft: ArrayLike, target: ArrayLike) -> Pairs:
        """Raises what `check_pair` raises, and ValueError when there is no pair."""
        pair = check_pair(draft, target)
        # float32 rows sum to 1 within 1e-7: in float64 they are normalised again.
        both = (values.detach().double().cpu() for values in (pair.draft, pair.target))
        p, q = ((v / v.sum(-1, keepdim=True)).reshape(-1, v.shape[-1]) for v in both)
        if len(p) == 0:
            raise ValueError(
                f"draft: shape {tuple(pair.draft.shape)} holds no pair. Pass at least one row."
            )
        return cls(p, q, pair.is_torch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.draft, self.target, strict=True)


def mean_acceptance(rule: Asked, pairs: Pairs, k: int) -> float | None:
    """P(Y in S), the mean over the pairs; None when it is out of reach for any."""
    values = [rule.acceptance(p, q, k) for p, q in pairs]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def is_enumerable(pairs: Pairs, k: int) -> bool:
    """Whether enumerating the distribution of Y stays within EXACT_LIMIT."""
    count, vocabulary = pairs.draft.shape
    return count * vocabulary ** (k + 1) <= EXACT_LIMIT


def claimed_distributions(rule: Asked, pairs: Pairs, k: int) -> np.ndarray | None:
    """The rule's own distributions of Y, (n, V); None when it has none, or they are too large."""
    if not is_enumerable(pairs, k):
        return None
    claims = [rule.output_distribution(p, q, k) for p, q in pairs]
    known = [claim for claim in claims if claim is not None]
    return np.stack(known) if len(known) == len(claims) else None


def largest_error(distributions: np.ndarray, pairs: Pairs) -> float:
    """The largest total variation of `distributions` (n, V) from the targets of the pairs."""
    return float(np.abs(distributions - pairs.target.numpy()).sum(-1).max() / 2)
