"""Does a rule's output follow the target? By enumeration and by sampling. Explained in chapter 5.

Where V^(k+1) allows it, the distribution of Y is enumerated. Elsewhere a Verifier is enumerated on the
pair with its tokens merged to a few classes of similar target/draft: what is lossless for every pair is
lossless there too (a rule made for one pair says so by `for_any_pair` and is not asked). Always, tokens
drawn by `select` are counted by token, by classes in the order of target/draft (a bias lies along it as
a rule) and of target, and up to each class. For a Verifier that is not enumerated P(Y = y | drafts),
which varies less than a draw, is tested as well, and the draws against it.

The tests are exact (stats.py) and share FALSE_ALARM equally. For several pairs a set's count is a sum
of different binomials: at least one away from its mean, its tails are at most those of one binomial with
the average probability (Hoeffding, Ann. Math. Stat. 27, 1956).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectr_lite.check import table
from spectr_lite.check.stranger import Asked
from spectr_lite.check.table import (
    Pairs,
    claimed_distributions,
    is_enumerable,
    largest_error,
    mean_acceptance,
)
from spectr_lite.distributions import (
    MOST_DRAFTS,
    ArrayLike,
    WithoutReplacement,
    as_generator,
    by_ratio,
    check_count,
)
from spectr_lite.stats import (
    betting_p_value,
    binomial_p_values,
    mean_deviation,
    spread_p_value,
    unseen_error,
)

EXACT_TOLERANCE = 1e-9  # total variation that rounding may leave in an enumerated distribution
FALSE_ALARM = 1e-6  # how often a verdict calls a lossless rule biased, at most
POWER = 0.99  # how often an error above `detectable` is found, at least
CHUNK = 2_000_000  # numbers (rows x V, rows x k) in one call of the rule
CLASSES = 32  # of tokens, along each of two orders; one more holds those that are never drafted
MERGED_NUMBERS = 300_000  # pairs x V^(k+1) after merging: V = 4 for eight drafts
MOST_LAWS, LAW_NUMBERS = 10_000, 32_000_000  # P(Y = y | drafts): rows, and numbers in all of them


@dataclass(frozen=True)
class TokenShare:
    """A token, its probability in the output, and its probability in the target."""

    token: int
    produced: float
    target: float


@dataclass(frozen=True)
class RatioShare:
    """The tokens with target/draft from `least` to `most`: their mass in the output and the target."""

    least: float
    most: float
    produced: float
    target: float


@dataclass(frozen=True)
class Verdict:
    """Is Y ~ target? What enumeration and sampling say, and where the output is wrong.

    answer  "exact": a Verifier, enumerated and right, whose draws do not contradict it; "biased"; or
        "no bias found", which is no proof
    total_variation  of the distribution of Y (a stranger's: as it claims) from the target; None if not
        enumerated; merged: the same after merging tokens to classes
    sampled  total variation of the `samples` tokens drawn by `select` from the target
    noise  what `sampled` is on average for a lossless rule
    detectable  draws reveal, with probability POWER, any larger error of P(target/draft <= r) at the
        edges r of the classes: the total variation of a bias that changes sign once along target/draft
    p_value  of all samples under the target; below `false_alarm` they contradict it
    agreement  the p-value under the rule's own distribution; None where it has none
    acceptance  P(Y in S) as the rule claims it; None where that is out of reach
    sampled_acceptance  the share of samples with Y in S
    over, under  tokens produced too often and too rarely, worst first; ratios: classes of tokens that
        are wrong; empty where neither samples nor enumeration show any
    """

    verifier: str
    k: int
    answer: str
    total_variation: float | None
    merged: float | None
    sampled: float
    noise: float
    detectable: float
    p_value: float
    agreement: float | None
    acceptance: float | None
    sampled_acceptance: float
    samples: int
    false_alarm: float
    over: tuple[TokenShare, ...]
    under: tuple[TokenShare, ...]
    ratios: tuple[RatioShare, ...]

    @property
    def lossless(self) -> bool:
        """Shown to be lossless on this pair: the answer is "exact"."""
        return self.answer == "exact"

    @property
    def biased(self) -> bool:
        return self.answer == "biased"

    def __str__(self) -> str:
        words = {"exact": "lossless, enumerated", "biased": "NOT lossless"}
        lines = [f"{self.verifier}, k={self.k}: {words.get(self.answer, self.answer)}"]
        if not self.biased:
            lines.append(
                f"  a TV above {self.detectable:.2g} along target/draft is seen in {POWER:.0%} of cases"
            )
        error = self.total_variation if self.merged is None else self.merged
        where = "" if self.merged is None else " with tokens merged to classes of target/draft"
        known = "not enumerated" if error is None else f"TV {error:.2g} from the target{where}"
        lines += [
            f"  distribution of Y: {known}",
            f"  {self.samples:,} samples: TV {self.sampled:.2g} from the target, where noise alone "
            f"makes {self.noise:.2g}; p = {self.p_value:.2g} (below {self.false_alarm:g} is biased)",
        ]
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
        for e in self.ratios:
            share = f"{e.produced:.4g} for {e.target:.4g}"
            lines.append(f"  where target/draft is {e.least:.3g} to {e.most:.3g}: {share}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "lossless": self.lossless}


def lossless(
    verifier: Any,
    draft: ArrayLike,
    target: ArrayLike,
    k: int,
    samples: int | None = None,
    generator: int | np.random.Generator | torch.Generator | None = None,
) -> Verdict:
    """Does the rule's output follow the target? See `Verdict.answer`.

    Enumerates the distribution of Y while pairs x V^(k+1) stays within EXACT_LIMIT, the merged pair's
    elsewhere, and draws `samples` tokens with `select`: 200,000 unless given, fewer where V or k exceeds
    1,000, at least 2,000. A lossless rule is called biased with probability FALSE_ALARM at most. Several
    pairs (..., V) share the samples equally and are tested together. Raises ValueError for bad
    distributions, k < 1, a rule that is not defined for k, or fewer samples than pairs.

        >>> verdict = lossless("kseq", [0.5, 0.5], [0.25, 0.75], k=2, samples=10_000, generator=0)
        >>> verdict.answer, round(verdict.total_variation, 9), verdict.over
        ('exact', 0.0, ())
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

    most = min(MOST_LAWS, LAW_NUMBERS // max(vocabulary, k)) // count
    laws = max(1, most) if rule.gives_laws and not is_enumerable(pairs, k) else 0
    by_ratios = _classes(pairs, by_ratio(pairs.draft, pairs.target), CLASSES)
    by_ratios = torch.where(pairs.draft > 0, by_ratios, CLASSES)
    by_rarity = _classes(pairs, pairs.target.argsort(-1, descending=True), CLASSES)
    classes = torch.stack([by_ratios, by_rarity], 1)
    wanted = pairs.target.numpy()
    masses = _sums(wanted, classes)
    counts = np.zeros((count, vocabulary), dtype=np.int64)
    hits = 0
    bets = []
    for row, (p, q) in enumerate(pairs):
        for start in range(0, per_pair, at_once):
            size = min(at_once, per_pair - start)
            tokens = rule.drafting.sample(p.expand(size, -1), k, source)
            chosen = rule.select(p, q, tokens, source)
            counts[row] += np.bincount(chosen, minlength=vocabulary)
            hits += int((tokens.numpy() == chosen[:, None]).any(-1).sum())
            if start < laws:
                law = rule.law(p, q, tokens[: laws - start])
                drawn = np.eye(CLASSES + 1)[classes[row].numpy()[:, chosen[: len(law)]]]
                drawn = np.concatenate([_cumulated(family) for family in drawn], -1)
                said = _sums(law, classes[row].expand(len(law), -1, -1))
                bets.append((said, np.broadcast_to(masses[row], said.shape), drawn))

    claimed = claimed_distributions(rule, pairs, k)
    against = _p_values(counts, wanted, classes)
    error = merged = None
    agreeing: list[float] = []
    over: tuple[TokenShare, ...] = ()
    under: tuple[TokenShare, ...] = ()
    ratios: tuple[RatioShare, ...] = ()
    if claimed is not None:
        error = largest_error(claimed, pairs)
        # Claims that are no probabilities are an error already; they are mended for the test's sake.
        mended = np.nan_to_num(claimed).clip(0)
        mended /= mended.sum(-1, keepdims=True).clip(1e-300)
        agreeing = _p_values(counts, mended, classes)
    elif bets:
        if rule.rule.for_any_pair:
            merged, ratios = _merged(rule, pairs, k)
        said, means, drawn = (np.concatenate(part) for part in zip(*bets, strict=True))
        against.append(betting_p_value(said, means, EXACT_TOLERANCE))
        agreeing = [betting_p_value(drawn, said, EXACT_TOLERANCE)]
    tests = len(against) + len(agreeing)
    p_value = min(1.0, tests * min(against))
    agreement = min(1.0, tests * min(agreeing)) if agreeing else None
    seen = min(p_value, 1.0 if agreement is None else agreement) < FALSE_ALARM
    wrong = any(known is not None and not known <= EXACT_TOLERANCE for known in (error, merged))
    number = int(counts.sum())
    found = counts / number  # what the wrong tokens are read from; better from a distribution
    if claimed is not None and wrong:
        found = np.nan_to_num(claimed) / count
    if seen or (claimed is not None and wrong):
        over, under = _wrong_tokens(found, wanted / count)
        ratios = _wrong_ratios(_sums(found, classes).sum(0), pairs, by_ratios)
    proven = error is not None and rule.gives_laws
    edges = masses.mean(0)[CLASSES + 1 : 2 * CLASSES + 1]  # P(target/draft <= r)
    return Verdict(
        verifier=rule.name,
        k=k,
        answer="biased" if seen or wrong else "exact" if proven else "no bias found",
        total_variation=error,
        merged=merged,
        sampled=float(np.abs(counts / number - wanted / count).sum() / 2),
        noise=float(mean_deviation(per_pair, wanted).sum() / (2 * number)),
        detectable=unseen_error(number, edges, FALSE_ALARM / (tests * masses.shape[-1]), POWER),
        p_value=p_value,
        agreement=agreement,
        acceptance=mean_acceptance(rule, pairs, k),
        sampled_acceptance=hits / number,
        samples=number,
        false_alarm=FALSE_ALARM,
        over=over,
        under=under,
        ratios=ratios if seen or wrong else (),
    )


def _classes(pairs: Pairs, order: Tensor, number: int) -> Tensor:
    """The class of every token, (n, V): `order` cut to equal shares of (draft + target) / 2."""
    mass = ((pairs.draft + pairs.target) / 2).gather(-1, order)
    middle = mass.cumsum(-1) - mass / 2
    return torch.empty_like(order).scatter(-1, order, (middle * number).long().clamp(0, number - 1))


def _sums(values: np.ndarray, classes: Tensor) -> np.ndarray:
    """`values` (m, V) added up in each class, and up to each, for both orders: (m, sets).

    `classes` is (m, 2, V). The last set of each order, all tokens, is left out.
    """
    both = torch.as_tensor(values, dtype=torch.float64).unsqueeze(-2).expand(classes.shape)
    parts = both.new_zeros(*classes.shape[:-1], CLASSES + 1).scatter_add_(-1, classes, both).numpy()
    return np.concatenate([_cumulated(parts[:, family]) for family in range(2)], -1)


def _cumulated(parts: np.ndarray) -> np.ndarray:
    return np.concatenate([parts, parts.cumsum(-1)[..., :-1]], -1)


def _p_values(counts: np.ndarray, probs: np.ndarray, classes: Tensor) -> list[float]:
    """p-values of `counts` under `probs`, both (n, V): by token, over all tokens, and by set."""
    observed, mean = _sums(counts, classes).sum(0), _sums(probs, classes).mean(0).clip(0, 1)
    tails = binomial_p_values(observed, int(counts.sum()), mean)
    if len(counts) > 1:
        tails[np.abs(observed - counts.sum() * mean) < 1] = 1
    single = binomial_p_values(counts, int(counts[0].sum()), probs.clip(0, 1))
    return [single.min() * counts.size, spread_p_value(counts, probs), tails.min() * tails.size]


def _merged(rule: Asked, pairs: Pairs, k: int) -> tuple[float | None, tuple[RatioShare, ...]]:
    """As enumerated on pairs merged to classes of target/draft: the error, and the worst classes."""
    most = min(MERGED_NUMBERS, table.EXACT_LIMIT) / len(pairs.draft)
    number = int(most ** (1 / (k + 1)) + 1e-9)
    # Without replacement tuples are few, and four classes leave hardly any choice.
    few = isinstance(rule.drafting, WithoutReplacement)
    if few and len(pairs.draft) * 5 ** (k + 1) <= table.EXACT_LIMIT:
        number = max(number, 5)
    if number < 2:
        return None, ()
    classes = _classes(pairs, by_ratio(pairs.draft, pairs.target), number)
    none = pairs.draft.new_zeros(len(classes), number)
    small = Pairs.of(*(none.scatter_add(-1, classes, side) for side in (pairs.draft, pairs.target)))
    claimed = claimed_distributions(rule, small, k)
    if claimed is None:
        return None, ()
    return largest_error(claimed, small), _wrong_ratios(claimed.mean(0), pairs, classes)


def _wrong_ratios(
    produced: np.ndarray, pairs: Pairs, classes: Tensor, most: int = 4
) -> tuple[RatioShare, ...]:
    """The classes (n, V) by target/draft with the largest errors of their mass, `produced`."""
    ratio = torch.where(pairs.draft > 0, pairs.target / pairs.draft, torch.inf)
    shares = [
        RatioShare(
            float(ratio[classes == c].min()),
            float(ratio[classes == c].max()),
            float(produced[c]),
            float(pairs.target[classes == c].sum()) / len(classes),
        )
        for c in classes.unique().tolist()
    ]
    worst = sorted(shares, key=lambda share: -abs(share.produced - share.target))[:most]
    return tuple(share for share in shares if share in worst)


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
