"""A hunt for inputs that are answered wrongly: any container, layout and mass, good and bad.

    python tests/fuzz.py --minutes 10

Two outcomes are allowed: the right value, or a ValueError or TypeError that begins with the argument's
name. tests/test_fuzz.py runs the same properties on a few examples. What was found stands as @example.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import time
from fractions import Fraction

import numpy as np
import torch
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st
from strategies import pairs

from spectr_lite import check, verifiers
from spectr_lite.decoding import generate
from spectr_lite.decoding.enumeration import (
    block_distribution,
    joint_distribution,
    path_block_distribution,
)
from spectr_lite.distributions import IID, by_ratio
from spectr_lite.models.markov import MarkovModel
from spectr_lite.stats import spread_p_value
from spectr_lite.transport import optimal_acceptance
from spectr_lite.verifiers import TreeVerifier

if __name__ == "__main__":  # before the properties, which keep the settings that they are made with
    quiet = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    settings.register_profile("hunt", max_examples=40, print_blob=True, **quiet)
    settings.load_profile("hunt")

NAMED = re.compile(r"^(draft|target|draft and target|tokens|paths|k|ks|samples|verifiers?)\b.*[:]")
RULES = st.sampled_from(verifiers.names())
SEEDS = st.integers(0, 2**32)


def read_only(rows: np.ndarray) -> np.ndarray:
    rows = rows.copy()
    rows.flags.writeable = False
    return rows


# Each holds the same numbers, to the precision of the kind.
GOOD = {
    "array": np.asarray,
    "lists": np.ndarray.tolist,
    "reversed strides": lambda rows: np.ascontiguousarray(rows[..., ::-1])[..., ::-1],
    "Fortran order": np.asfortranarray,
    "every other": lambda rows: np.repeat(rows, 2, -1)[..., ::2],
    "big-endian": lambda rows: rows.astype(">f8"),
    "big-endian float32": lambda rows: rows.astype(">f4"),
    "read-only": read_only,
    "objects": lambda rows: rows.astype(object),
    "fractions": lambda rows: np.vectorize(Fraction, otypes=[object])(rows).tolist(),
    "long double": lambda rows: rows.astype(np.longdouble),
    "float32": lambda rows: rows.astype(np.float32),
    "float32 as lists": lambda rows: rows.astype(np.float32).tolist(),
    "tensor": torch.tensor,
    "tensor, float32": lambda rows: torch.tensor(rows).float(),
    "tensor, other strides": lambda rows: torch.tensor(rows).repeat_interleave(2, -1)[..., ::2],
    "tensor with a gradient": lambda rows: torch.tensor(rows).requires_grad_(),
}
BAD = {
    "masked": lambda rows: np.ma.masked_less(rows, rows.max()),
    "text": lambda rows: rows.astype(str),
    "complex": lambda rows: rows + 0j,
    "boolean": lambda rows: rows > 0,
    "dates": lambda rows: rows.astype("M8[s]"),
    "sparse": lambda rows: torch.tensor(rows).to_sparse(),
    "no values": lambda rows: torch.tensor(rows).to("meta"),
    "None": lambda rows: None,
    "negative": lambda rows: rows - 2 * rows.max(),
    "NaN": lambda rows: rows * np.nan,
    "infinite": lambda rows: np.full_like(rows, np.inf),
    "not normalised": lambda rows: rows * 1.01,
    "no vocabulary": lambda rows: rows[..., :0],
    "another vocabulary": lambda rows: np.concatenate([rows, 0 * rows], -1),
    "a mapping": lambda rows: dict(enumerate(rows.flat)),
}


@st.composite
def sharp_pairs(draw: st.DrawFn, max_vocabulary: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of tests/strategies.py, some with masses that end float64's range, some one-hot."""
    draft, target = draw(pairs(max_vocabulary))
    for side in (draft, target):
        if draw(st.booleans()):
            place = draw(st.integers(0, len(side) - 1))
            small = draw(st.sampled_from([0.0, 5e-324, 1e-310, 1e-200, 1e-17]))
            if side.sum() - side[place] > 0:
                side[place] = small
                side /= side.sum()
    return draft, target


def allowed(error: Exception, *, expected: bool) -> None:
    assert expected, f"refused: {error}"
    assert NAMED.match(str(error)), f"names no argument: {error}"


def questions(rule: verifiers.Verifier, draft: object, target: object, tokens: np.ndarray) -> list:
    """What the public functions answer about one pair, as float64."""
    k = tokens.shape[-1]
    answers = [
        rule.acceptance(draft, target, k),
        rule.output_distribution(draft, target, k),
        optimal_acceptance(draft, target, k, drafting=rule.default_drafting),
    ]
    if (tokens >= 0).all():
        answers.append(rule.select(draft, target, tokens, generator=0).token)
    return [np.asarray(torch.as_tensor(answer).detach(), np.float64) for answer in answers]


@given(sharp_pairs(), RULES, st.integers(1, 3), st.sampled_from([*GOOD]), st.sampled_from([*GOOD]))
@example(
    (np.array([0.5, 0.5]), np.array([0.25, 0.75])), "kseq", 1, "reversed strides", "big-endian"
)
@example((np.ones(1), np.ones(1)), "importance", 1, "array", "tensor with a gradient")
@example(
    (np.array([5e-324, 0.0, 1.0]), np.array([1.0, 0.0, 0.0])),
    "recursive-wor",
    2,
    "tensor with a gradient",
    "array",
)
@example((np.array([1.0, 5e-324]), np.array([0.5, 0.5])), "recursive-wor", 2, "array", "array")
def test_containers(pair, name, k, one, other):
    """Every container gives what float64 gives, and the enumerated output is the target."""
    if not check.is_defined(name, k):
        k = verifiers.get(name).only_k
    draft, target = pair
    rule, single = verifiers.get(name), "float32" in one + other
    if single:  # which may turn a tiny mass into nothing
        draft, target = (side.astype(np.float32).astype(np.float64) for side in pair)
        draft, target = draft / draft.sum(), target / target.sum()
    source = torch.Generator().manual_seed(0)
    tokens = rule.default_drafting.sample(torch.tensor(draft).expand(20, -1), k, source).numpy()
    expected = questions(rule, draft, target, tokens)
    found = questions(rule, GOOD[one](draft), GOOD[other](target), tokens)
    # Rounding may part a tie of ratios, and select another token.
    for left, right in zip(expected[: 3 if single else 4], found, strict=not single):
        np.testing.assert_allclose(left, right, atol=2e-3 if single else 1e-9)
    np.testing.assert_allclose(expected[1], target, atol=1e-9)
    assert expected[0] <= expected[2] + 1e-9


@given(sharp_pairs(), st.sampled_from([*BAD]), st.booleans(), RULES)
def test_bad_containers(pair, kind, first, name):
    draft, target = pair
    ruined = BAD[kind](draft if first else target)
    both = (ruined, target) if first else (draft, ruined)
    k = verifiers.get(name).only_k or 2
    for ask in (
        lambda: verifiers.get(name).acceptance(*both, k),
        lambda: optimal_acceptance(*both, k),
        lambda: verifiers.get(name).select(*both, [0] * k, generator=0),
        lambda: check.compare(*both, [k], [name]),
        lambda: check.lossless(name, *both, k, samples=10),
    ):
        try:
            ask()
        except (ValueError, TypeError) as error:
            allowed(error, expected=True)
        else:
            raise AssertionError(f"{kind} was not refused")


@given(sharp_pairs(), RULES, st.integers(1, 3), SEEDS)
@example((np.array([0.0, 1.0]), np.array([6.5e-309, 1.0])), "block", 1, 0)
def test_draws_and_verdicts(pair, name, k, source):
    """`select` answers tokens the target can say, and no right rule is called biased."""
    draft, target = pair
    if not check.is_defined(name, k):
        k = verifiers.get(name).only_k
    verdict = check.lossless(name, draft, target, k, samples=300, generator=source)
    assert verdict.answer == "exact", str(verdict)
    many = np.repeat(draft[None] / 3, 3, -1), np.repeat(target[None] / 3, 3, -1)
    limit, check.table.EXACT_LIMIT = check.table.EXACT_LIMIT, 0
    try:
        verdict = check.lossless(name, *many, k, samples=300, generator=source)
    finally:
        check.table.EXACT_LIMIT = limit
    assert verdict.answer == "no bias found", str(verdict)
    row = check.compare(draft, target, [k], [name]).rows[0]
    assert row.total_variation < 1e-9
    assert row.acceptance <= row.optimum + 1e-9


@given(sharp_pairs(3), RULES, st.integers(1, 2), st.integers(1, 2), SEEDS)
@example((np.array([1e-323, 1.0]), np.array([1.0, 0.0])), "block", 1, 2, 0)
def test_trees(pair, name, k, length, source):
    """`verify_tree` answers tokens of its paths and one more; enumerated, the block is the target's."""
    rule = verifiers.get(name)
    if IID not in rule.valid_for:
        return
    k = rule.only_k or k
    draft, target = pair
    vocabulary = len(draft)
    paths = np.random.default_rng(source).choice(vocabulary, (k, length), p=draft)
    laws = (
        np.broadcast_to(draft, (k, length, vocabulary)),
        np.broadcast_to(target, (k, length + 1, vocabulary)),
    )
    block = rule.verify_tree(*laws, paths[:, ::-1][:, ::-1], generator=source)
    kept = int(block.accepted)
    assert (block.tokens[:kept] == paths[int(block.path), :kept]).all()
    assert target[block.tokens[kept]] > 0
    assert (block.tokens[kept + 1 :] == -1).all()
    enumerate_paths = isinstance(rule, TreeVerifier) or vocabulary ** (k * length) <= 81
    joint = joint_distribution(lambda prefix: target, length + 1)
    if enumerate_paths:
        probs, _ = path_block_distribution(
            lambda prefix: target, lambda prefix: draft, rule, k, length
        )
        np.testing.assert_allclose(probs, joint, atol=1e-9)


@given(st.lists(sharp_pairs(3), min_size=4, max_size=4), RULES, st.integers(1, 2), SEEDS)
def test_the_loop(rows, name, num_drafts, source):
    """Two Markov chains whose drafts may be dead: the texts follow the target."""
    rule = verifiers.get(name)
    if IID not in rule.valid_for:
        return
    num_drafts = rule.only_k or num_drafts
    size = min(len(draft) for draft, _ in rows)
    cut = [
        [side[:size] if side[:size].sum() > 1e-3 else np.ones(size) for side in row] for row in rows
    ]
    chains = [[side / side.sum() for side in sides] for sides in zip(*cut, strict=True)]
    draft, target = (MarkovModel((chain * 4)[:size], chain[3]) for chain in chains)
    joint = joint_distribution(target.next_probs, 3)
    found = block_distribution(target.next_probs, draft.next_probs, name, num_drafts, 2)
    np.testing.assert_allclose(found, joint, atol=1e-9)
    run = generate(
        target, draft, [[size]] * 400, verifier=name, num_drafts=num_drafts, draft_length=2,
        max_new_tokens=3, generator=source,
    )  # fmt: skip
    counts = np.zeros_like(joint)
    np.add.at(counts, tuple(np.array(run.tokens).T), 1)
    assert spread_p_value(counts.reshape(1, -1), joint.reshape(1, -1)) > 1e-9


@given(sharp_pairs())
def test_order(pair):
    """Tokens that are never drafted come last, the others by target/draft."""
    draft, target = (torch.tensor(side) for side in pair)
    order = by_ratio(draft, target)
    drafted = (draft[order] > 0).tolist()
    assert drafted == sorted(drafted, reverse=True)
    exact = [
        Fraction(float(target[x])) / Fraction(float(draft[x]))
        for x in order.tolist()
        if draft[x] > 0
    ]
    for before, after in itertools.pairwise(exact):
        assert before <= after * (1 + Fraction(1, 10**12)) or after > 10**300


PROPERTIES = [value for name, value in list(globals().items()) if name.startswith("test_")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    torch.set_num_threads(1)
    end, failed = time.monotonic() + 60 * args.minutes, set()
    for turn in itertools.count(args.seed):
        for check_property in PROPERTIES:
            if time.monotonic() > end:
                print(
                    f"{turn - args.seed} rounds of {len(PROPERTIES)}; failed: {sorted(failed) or 'none'}"
                )
                return int(bool(failed))
            try:
                seed(turn)(check_property)()
            except Exception as error:
                failed.add(check_property.__name__)
                notes = "\n".join(getattr(error, "__notes__", []))
                print(f"{check_property.__name__}, seed {turn}: {error}\n{notes}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
