"""Two questions about a selection rule: how far from the optimum is it, and is it lossless?

    compare(draft, target)                a table: acceptance, optimum, gap, TV of the output law
    lossless(verifier, draft, target, k)  a verdict, by enumeration and by sampling

A rule is a name, a `Verifier` or its class, or anything else with `acceptance` and `select`:
verifiers/asked.py says what they are given and must answer.
"""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from spectr_lite import verifiers as rules
from spectr_lite.distributions import MOST_DRAFTS, ArrayLike, as_generator, check_count, check_pair
from spectr_lite.laws import DraftLaw
from spectr_lite.stats import chi_square
from spectr_lite.transport import optimal_acceptance
from spectr_lite.verifiers.asked import Asked
from spectr_lite.verifiers.tree import TreeVerifier

EXACT_LIMIT = 2_000_000  # pairs x V^(k+1) up to which the output law is enumerated
EXACT_TOLERANCE = 1e-9  # total variation that rounding may leave in an enumerated law
FALSE_ALARM = 1e-6  # how often one test of samples calls a lossless rule biased
CHUNK = 2_000_000  # numbers (rows x V, rows x k) in one call of `select`


@dataclass(frozen=True)
class Row:
    """One rule with k drafts. With several pairs: means over them, and the largest total variation.

    None stands where a number is out of reach: a law too large to enumerate.
    """

    verifier: str
    k: int
    acceptance: float | None
    optimum: float
    gap: float | None
    ratio: float | None
    total_variation: float | None


COLUMNS = {
    "verifier": "verifier",
    "k": "k",
    "acceptance": "acceptance",
    "optimum": "optimum",
    "gap": "gap",
    "ratio": "ratio",
    "total_variation": "TV to target",
}


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
        table = [tuple(COLUMNS.values()), *self._cells()]
        widths = [max(len(line[i]) for line in table) for i in range(len(COLUMNS))]
        lines = [
            "  ".join(
                text.ljust(width) if i == 0 else text.rjust(width)
                for i, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        return "\n".join([self.caption, "", lines[0], "-" * max(map(len, lines)), *lines[1:]])

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in COLUMNS.values())
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


@dataclass(frozen=True)
class TokenError:
    """A token, how often it came out, and how often the target says it."""

    token: int
    produced: float
    target: float


@dataclass(frozen=True)
class Verdict:
    """Is Y ~ target? What enumeration and sampling say, and which tokens are wrong.

    total_variation   of the enumerated law of Y from the target; None where that is out of reach
    sampled           of `samples` tokens drawn by `select`, from the target
    noise             what `sampled` is on average for a lossless rule
    p_value           of the samples under the target; below `false_alarm` they contradict it
    agreement         the same under the rule's own output_distribution; None where there is none
    acceptance        P(Y in S) as the rule claims it; None where that is out of reach
    sampled_acceptance  the share of samples with Y in S
    over, under       tokens produced too often and too rarely, worst first; empty when lossless
    """

    verifier: str
    k: int
    lossless: bool
    total_variation: float | None
    sampled: float
    noise: float
    p_value: float
    agreement: float | None
    acceptance: float | None
    sampled_acceptance: float
    samples: int
    false_alarm: float
    over: tuple[TokenError, ...]
    under: tuple[TokenError, ...]

    def __str__(self) -> str:
        lines = [f"{self.verifier}, k={self.k}: {'lossless' if self.lossless else 'NOT lossless'}"]
        if self.total_variation is None:
            lines.append("  law of Y: not enumerated")
        else:
            lines.append(f"  law of Y, enumerated: TV {self.total_variation:.2g} from the target")
        lines.append(
            f"  {self.samples:,} samples: TV {self.sampled:.2g} from the target, where noise alone "
            f"makes {self.noise:.2g}; p = {self.p_value:.2g} (below {self.false_alarm:g} is biased)"
        )
        claim = "" if self.acceptance is None else f"{self.acceptance:.4f} claimed, "
        lines.append(f"  P(Y in S): {claim}{self.sampled_acceptance:.4f} in the samples")
        if self.agreement is not None and self.agreement < self.false_alarm:
            lines.append(
                f"  select disagrees with the rule's own output_distribution: p = {self.agreement:.2g}"
            )
        for word, errors in (("often", self.over), ("rarely", self.under)):
            if errors:
                found = ", ".join(
                    f"{e.token} ({e.produced:.4g} for {e.target:.4g})" for e in errors
                )
                lines.append(f"  said too {word}: {found}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def compare(
    draft: ArrayLike,
    target: ArrayLike,
    ks: Sequence[int] = (1, 2, 4, 8),
    verifiers: Sequence[Any] | None = None,
) -> Comparison:
    """Every rule beside the optimum for its own draft law, for each number of drafts in `ks`.

    `draft`, `target`: (..., V); several pairs give means. `verifiers`: rules, all registered token
    rules unless given (a path rule shows what it is worth only on paths longer than one token). A rule
    that is not defined for some k is left out there. The output law is enumerated while
    pairs x V^(k+1) stays within EXACT_LIMIT. Raises ValueError for bad distributions, k < 1, an
    unknown rule, or a rule that is defined for none of `ks`.
    """
    pairs = _Pairs.of(draft, target)
    ks = [
        check_count(k, "k", most=MOST_DRAFTS)
        for k in (ks if isinstance(ks, Sequence | np.ndarray) else [ks])
    ]
    listed = token_rules() if verifiers is None else verifiers
    listed = listed if isinstance(listed, list | tuple) else [listed]  # one rule alone
    chosen = [Asked.of(rule, pairs.is_torch) for rule in listed]
    optima: dict[tuple[DraftLaw, int], float] = {}
    rows = []
    for rule in chosen:
        defined = [k for k in ks if rule.takes(k)]
        if not defined and verifiers is not None:
            raise ValueError(
                f"verifiers: {rule.name!r} is not defined for k in {ks}. Choose another k for it."
            )
        for k in defined:
            if (rule.law, k) not in optima:
                optimum = optimal_acceptance(pairs.draft, pairs.target, k, law=rule.law)
                optima[rule.law, k] = float(optimum.mean())
            optimum, acceptance = optima[rule.law, k], _acceptance(rule, pairs, k)
            gap = ratio = None
            if acceptance is not None:
                gap, ratio = optimum - acceptance, acceptance / optimum if optimum > 0 else 1.0
            claimed = _claimed_laws(rule, pairs, k)
            error = None if claimed is None else _largest_error(claimed, pairs)
            rows.append(Row(rule.name, k, acceptance, optimum, gap, ratio, error))
    return Comparison(tuple(rows), len(pairs.draft), pairs.draft.shape[-1])


def lossless(
    verifier: Any,
    draft: ArrayLike,
    target: ArrayLike,
    k: int,
    samples: int | None = None,
    generator: int | np.random.Generator | torch.Generator | None = None,
) -> Verdict:
    """Does the rule's output follow the target?

    Enumerates the law of Y where pairs x V^(k+1) stays within EXACT_LIMIT, and draws `samples` tokens
    with `select`: 200,000, or 2e8 / V if that is less, at least 2,000. The samples are tested against
    the target (chi-square over all tokens with rare ones pooled, and each token by itself), and against
    the rule's own law where it has one. A lossless rule fails each test with probability FALSE_ALARM.
    Several pairs (..., V) share the samples equally, and are tested together.
    Raises ValueError for bad distributions, k < 1, a rule not defined for k, or too few samples.
    """
    pairs = _Pairs.of(draft, target)
    k = check_count(k, "k", most=MOST_DRAFTS)
    rule = Asked.of(verifier, pairs.is_torch)
    if not rule.takes(k):
        raise ValueError(f"k: {rule.name!r} is not defined for k={k}.")
    count, vocabulary = pairs.draft.shape
    if samples is None:
        samples = min(200_000, max(2_000, 200_000_000 // max(vocabulary, k)))
    per_pair = check_count(samples, "samples", least=count) // count
    source = as_generator(generator, torch.device("cpu"))
    at_once = max(1, CHUNK // max(vocabulary, k))

    counts = np.zeros((count, vocabulary), dtype=np.int64)
    hits = 0
    for row, (p, q) in enumerate(pairs):
        for start in range(0, per_pair, at_once):
            size = min(at_once, per_pair - start)
            tokens = rule.law.sample(p.expand(size, -1), k, source)
            chosen = rule.select(p, q, tokens, source)
            counts[row] += np.bincount(chosen, minlength=vocabulary)
            hits += int((tokens.numpy() == chosen[:, None]).any(-1).sum())

    wanted = pairs.target.numpy() / count
    produced = counts / counts.sum()
    claimed = _claimed_laws(rule, pairs, k)
    error = None if claimed is None else _largest_error(claimed, pairs)
    p_value = _p_value(counts, wanted)
    agreement = None
    if claimed is not None:
        # A law that is no distribution is an error already; the test needs one, so it is mended first.
        mended = claimed.clip(0)
        agreement = _p_value(counts, mended / mended.sum())
    passed = (
        p_value >= FALSE_ALARM
        and (error is None or error <= EXACT_TOLERANCE)
        and (agreement is None or agreement >= FALSE_ALARM)
    )
    # Where the law is known to be wrong, it names the tokens better than the samples do.
    exact = error is not None and error > EXACT_TOLERANCE
    over, under = (
        ((), ()) if passed else _wrong_tokens(claimed / count if exact else produced, wanted)
    )
    return Verdict(
        verifier=rule.name,
        k=k,
        lossless=passed,
        total_variation=error,
        sampled=float(np.abs(produced - wanted).sum() / 2),
        noise=float(np.sqrt(wanted * (1 - wanted) / (2 * np.pi * counts.sum())).sum()),
        p_value=p_value,
        agreement=agreement,
        acceptance=_acceptance(rule, pairs, k),
        sampled_acceptance=hits / int(counts.sum()),
        samples=int(counts.sum()),
        false_alarm=FALSE_ALARM,
        over=over,
        under=under,
    )


def token_rules() -> tuple[str, ...]:
    """The names of the rules that look at one node at a time."""
    return tuple(name for name in rules.names() if not isinstance(rules.get(name), TreeVerifier))


def is_defined(verifier: Any, k: int) -> bool:
    """Whether the rule takes k drafts. Only a Verifier can say no: 'coupling' takes one."""
    return Asked.of(verifier, speaks_torch=True).takes(k)


@dataclass(frozen=True)
class _Pairs:
    """Draft and target as (n, V) float64 on the CPU, and whether the caller speaks torch."""

    draft: Tensor
    target: Tensor
    is_torch: bool

    @classmethod
    def of(cls, draft: ArrayLike, target: ArrayLike) -> _Pairs:
        pair = check_pair(draft, target)
        # float32 rows sum to 1 within 1e-7; in float64 they must do so exactly to be compared exactly.
        both = (values.detach().double().cpu() for values in (pair.draft, pair.target))
        p, q = ((v / v.sum(-1, keepdim=True)).reshape(-1, v.shape[-1]) for v in both)
        if len(p) == 0:
            raise ValueError(
                f"draft: shape {tuple(pair.draft.shape)} holds no pair. Pass at least one row."
            )
        return cls(p, q, pair.is_torch)

    def __iter__(self):
        return zip(self.draft, self.target, strict=True)


# --- exact and sampled errors ---


def _acceptance(rule: Asked, pairs: _Pairs, k: int) -> float | None:
    """The mean over the pairs; None when any has none."""
    values = [rule.acceptance(p, q, k) for p, q in pairs]
    return None if None in values else float(np.mean(values))


def _claimed_laws(rule: Asked, pairs: _Pairs, k: int) -> np.ndarray | None:
    """The rule's own law of Y for every pair, (n, V); None where it has none, or it is too large."""
    count, vocabulary = pairs.draft.shape
    if count * vocabulary ** (k + 1) > EXACT_LIMIT:
        return None
    laws = [rule.law_of_output(p, q, k) for p, q in pairs]
    return None if any(law is None for law in laws) else np.stack(laws)


def _largest_error(laws: np.ndarray, pairs: _Pairs) -> float:
    return float(np.abs(laws - pairs.target.numpy()).sum(-1).max() / 2)


def _p_value(counts: np.ndarray, law: np.ndarray) -> float:
    """Of counts as unlikely as these under `law`: chi-square, unless a single token gives the rule away.

    Chi-square sees an error spread over many tokens, but pools the rare ones. The exact binomial tail
    of each token, times the number of tokens, sees one rare token said too often.
    """
    n, observed, law = counts.sum(), counts.ravel(), law.ravel().clip(0, 1)
    tail = np.minimum(stats.binom.sf(observed - 1, n, law), stats.binom.cdf(observed, n, law))
    single = min(1.0, float(2 * tail.min() * len(law)))
    if single < FALSE_ALARM:
        return single
    try:
        return chi_square(counts, law / law.sum()).p_value
    except ValueError:  # fewer than two cells are common enough
        return single


def _wrong_tokens(
    produced: np.ndarray, wanted: np.ndarray, most: int = 5
) -> tuple[tuple[TokenError, ...], tuple[TokenError, ...]]:
    """Tokens said too often and too rarely, at most `most` of each, by the size of the error."""
    produced, wanted = produced.sum(0), wanted.sum(0)
    error = produced - wanted
    worst = np.argsort(-np.abs(error), kind="stable")
    worst = worst[np.abs(error[worst]) > 0.05 * np.abs(error).max()]
    lists = ([t for t in worst if error[t] > 0][:most], [t for t in worst if error[t] < 0][:most])
    over, under = (
        tuple(TokenError(int(t), float(produced[t]), float(wanted[t])) for t in tokens)
        for tokens in lists
    )
    return over, under
