"""Does a rule's output follow the target? By enumeration and by sampling. Explained in chapter 5."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from spectr_lite.check.stranger import Asked
from spectr_lite.check.table import Pairs, claimed_distributions, largest_error, mean_acceptance
from spectr_lite.distributions import MOST_DRAFTS, ArrayLike, as_generator, check_count
from spectr_lite.stats import chi_square

EXACT_TOLERANCE = 1e-9  # total variation that rounding may leave in an enumerated distribution
FALSE_ALARM = 1e-6  # how often one test of samples calls a lossless rule biased
CHUNK = 2_000_000  # numbers (rows x V, rows x k) in one call of `select`


@dataclass(frozen=True)
class TokenShare:
    """A token, its probability in the output, and its probability in the target."""

    token: int
    produced: float
    target: float


@dataclass(frozen=True)
class Verdict:
    """Is Y ~ target? What enumeration and sampling say, and which tokens are wrong.

    total_variation  of the enumerated distribution of Y from the target; None if not enumerated
    sampled  total variation of the `samples` tokens drawn by `select` from the target
    noise  what `sampled` is on average for a lossless rule
    p_value  of the samples under the target; below `false_alarm` they contradict it
    agreement  the p-value under the rule's own output_distribution; None where it has none
    acceptance  P(Y in S) as the rule claims it; None where that is out of reach
    sampled_acceptance  the share of samples with Y in S
    over, under  tokens produced too often and too rarely, worst first; empty when lossless
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
    over: tuple[TokenShare, ...]
    under: tuple[TokenShare, ...]

    def __str__(self) -> str:
        lines = [f"{self.verifier}, k={self.k}: {'lossless' if self.lossless else 'NOT lossless'}"]
        if self.total_variation is None:
            lines.append("  distribution of Y: not enumerated")
        else:
            lines.append(
                f"  distribution of Y, enumerated: TV {self.total_variation:.2g} from the target"
            )
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


def lossless(
    verifier: Any,
    draft: ArrayLike,
    target: ArrayLike,
    k: int,
    samples: int | None = None,
    generator: int | np.random.Generator | torch.Generator | None = None,
) -> Verdict:
    """Does the rule's output follow the target?

    Enumerates the distribution of Y while pairs x V^(k+1) stays within EXACT_LIMIT, and draws
    `samples` tokens with `select`: 200,000 unless given, fewer where V or k exceeds 1,000, at least
    2,000. The samples are tested against the target (chi-square over all tokens with rare ones pooled,
    and each token by itself), and against the rule's own distribution where it has one. A lossless
    rule fails each test with probability FALSE_ALARM. Several pairs (..., V) share the samples equally
    and are tested together. Raises ValueError for bad distributions, k < 1, a rule that is not
    defined for k, or fewer samples than pairs.

        >>> verdict = lossless("kseq", [0.5, 0.5], [0.25, 0.75], k=2, samples=10_000, generator=0)
        >>> verdict.lossless, round(verdict.total_variation, 9), verdict.over
        (True, 0.0, ())
    """
    pairs = Pairs.of(draft, target)
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
            tokens = rule.drafting.sample(p.expand(size, -1), k, source)
            chosen = rule.select(p, q, tokens, source)
            counts[row] += np.bincount(chosen, minlength=vocabulary)
            hits += int((tokens.numpy() == chosen[:, None]).any(-1).sum())

    wanted = pairs.target.numpy() / count
    produced = counts / counts.sum()
    claimed = claimed_distributions(rule, pairs, k)
    p_value = _p_value(counts, wanted)
    error = agreement = None
    found = produced  # what the wrong tokens are read from
    passed = p_value >= FALSE_ALARM
    if claimed is not None:
        error = largest_error(claimed, pairs)
        # Claims that are no probabilities are an error already; they are mended for the test's sake.
        mended = claimed.clip(0)
        agreement = _p_value(counts, mended / mended.sum())
        passed = passed and error <= EXACT_TOLERANCE and agreement >= FALSE_ALARM
        if error > EXACT_TOLERANCE:  # a distribution names them better than samples do
            found = claimed / count
    over, under = ((), ()) if passed else _wrong_tokens(found, wanted)
    return Verdict(
        verifier=rule.name,
        k=k,
        lossless=passed,
        total_variation=error,
        sampled=float(np.abs(produced - wanted).sum() / 2),
        noise=float(np.sqrt(wanted * (1 - wanted) / (2 * np.pi * counts.sum())).sum()),
        p_value=p_value,
        agreement=agreement,
        acceptance=mean_acceptance(rule, pairs, k),
        sampled_acceptance=hits / int(counts.sum()),
        samples=int(counts.sum()),
        false_alarm=FALSE_ALARM,
        over=over,
        under=under,
    )


def _p_value(counts: np.ndarray, probs: np.ndarray) -> float:
    """The p-value of `counts` under `probs`, of one shape: chi-square, unless one token alone decides.

    Chi-square detects an error spread over many tokens, but pools the rare ones. The exact binomial
    tail of each token, times the number of tokens, detects a rare token that is said too often.
    """
    n, observed, probs = counts.sum(), counts.ravel(), probs.ravel().clip(0, 1)
    tail = np.minimum(stats.binom.sf(observed - 1, n, probs), stats.binom.cdf(observed, n, probs))
    single = min(1.0, float(2 * tail.min() * len(probs)))
    if single < FALSE_ALARM:
        return single
    try:
        return chi_square(counts, probs / probs.sum()).p_value
    except ValueError:  # fewer than two cells are common enough
        return single


def _wrong_tokens(
    produced: np.ndarray, wanted: np.ndarray, most: int = 5
) -> tuple[tuple[TokenShare, ...], tuple[TokenShare, ...]]:
    """Tokens said too often and too rarely, at most `most` of each, largest error first.

    `produced` and `wanted`: (n, V), each summing to 1.
    """
    produced, wanted = produced.sum(0), wanted.sum(0)
    error = produced - wanted
    worst = np.argsort(-np.abs(error), kind="stable")
    worst = worst[np.abs(error[worst]) > 0.05 * np.abs(error).max()]
    shares = [TokenShare(int(t), float(produced[t]), float(wanted[t])) for t in worst]
    over = [share for share in shares if share.produced > share.target]
    under = [share for share in shares if share.produced < share.target]
    return tuple(over[:most]), tuple(under[:most])
