"""Probability vectors: what is accepted, what is refused and in which words, what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import distributions

from spectr_lite import distributions as D
from spectr_lite import verifiers
from spectr_lite.stats import chi_square
from spectr_lite.transport import optimal_acceptance

GOOD = np.array([0.2, 0.3, 0.5])

# (values, error, what the message must say after the argument's name)
BAD = {
    "negative": ([0.5, -0.1, 0.6], ValueError, r"entry \[1\] is -0\.1"),
    "negative in a batch": ([[0.5, 0.5], [1.5, -0.5]], ValueError, r"entry \[1, 1\] is -0\.5"),
    "NaN": ([0.5, np.nan, 0.5], ValueError, r"entry \[1\] is nan"),
    "infinite": ([0.5, np.inf, 0.5], ValueError, r"entry \[1\] is inf"),
    "sum too large": ([0.5, 0.5, 0.1], ValueError, r"row 0 sums to 1\.1, more than 6\.6e-07"),
    "sum too small": ([[0.2, 0.3, 0.5], [0.2, 0.3, 0.4]], ValueError, r"row 1 sums to 0\.9"),
    "all zero": ([0.0, 0.0, 0.0], ValueError, r"row 0 sums to 0,"),
    "logits": ([2.0, 1.0, 0.5], ValueError, r"row 0 sums to 3\.5.*softmax"),
    "no axis": (0.5, ValueError, r"shape \(\) has no vocabulary"),
    "empty vocabulary": ([], ValueError, r"shape \(0,\) has no vocabulary"),
    "empty vocabulary in a batch": (np.zeros((2, 0)), ValueError, r"shape \(2, 0\) has no"),
    "text": ("half", TypeError, r"expected an array of probabilities, found str"),
    "ragged": ([[0.5, 0.5], [1.0]], TypeError, r"expected an array of probabilities, found list"),
    "nothing": (None, TypeError, r"expected an array of probabilities, found NoneType"),
    "boolean": (np.array([True, False]), TypeError, r"found dtype torch\.bool"),
    "complex": (np.array([1j, 1 - 1j]), TypeError, r"found dtype torch\.complex128"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("argument", ["draft", "target"])
def test_bad_distributions_are_named(case, argument):
    """By every public door, with the argument, what was found, and what to do."""
    values, error, message = BAD[case]
    pair = {"draft": GOOD, "target": GOOD, argument: values}
    rule = verifiers.get("kseq")
    for call in (
        lambda: D.check_distribution(values, argument),
        lambda: rule.acceptance(**pair, k=2),
        lambda: rule.output_distribution(**pair, k=2),
        lambda: rule.select(**pair, tokens=[0, 1]),
        lambda: optimal_acceptance(**pair, k=2),
    ):
        with pytest.raises(error, match=rf"^{argument}: .*{message}"):
            call()


def test_vocabularies_and_shapes_must_fit():
    with pytest.raises(ValueError, match=r"draft and target: vocabularies of 3 and 2 tokens.*pad"):
        D.check_pair(GOOD, [0.5, 0.5])
    with pytest.raises(ValueError, match=r"draft and target: shapes \(2, 3\) and \(4, 3\) do not"):
        D.check_pair(np.tile(GOOD, (2, 1)), np.tile(GOOD, (4, 1)))
    pair = D.check_pair(np.tile(GOOD, (4, 1, 1)), np.tile(GOOD, (5, 1)))
    assert pair.draft.shape == pair.target.shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "k: found 0. It must be at least 1"),
        (-2, ValueError, "k: found -2"),
        (2.0, TypeError, r"k: expected a whole number, found 2\.0 \(float\)"),
        ("2", TypeError, r"k: expected a whole number, found '2' \(str\)"),
        (True, TypeError, r"k: expected a whole number, found True"),
        (None, TypeError, r"k: expected a whole number, found None"),
    ],
)
def test_bad_numbers_of_drafts(value, error, message):
    for name in verifiers.names():
        with pytest.raises(error, match=message):
            verifiers.get(name).acceptance(GOOD, GOOD, value)
    with pytest.raises(error, match=message):
        optimal_acceptance(GOOD, GOOD, value)


def test_numpy_whole_numbers_count():
    assert verifiers.get("kseq").acceptance(GOOD, GOOD, np.int64(2)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ([0.0, 1.0], TypeError, r"tokens: expected integer ids, found dtype torch\.float64"),
        ([True, False], TypeError, r"tokens: expected integer ids, found dtype torch\.bool"),
        ([0, 3], ValueError, r"tokens: found id 3; the vocabulary has ids 0 to 2"),
        ([0, -1], ValueError, r"tokens: found id -1; the vocabulary has ids 0 to 2"),
        ([[0, 1], [2, 7]], ValueError, r"tokens: found id 7"),
        (1, ValueError, r"tokens: shape \(\) has no drafts"),
        (np.zeros((2, 0), dtype=int), ValueError, r"tokens: shape \(2, 0\) has no drafts"),
        ([[0, 1], [1]], TypeError, r"tokens: expected an array of integer ids, found list"),
    ],
)
def test_bad_tokens(tokens, error, message):
    with pytest.raises(error, match=message):
        verifiers.get("kseq").select(GOOD, GOOD, tokens)


def test_tokens_must_broadcast_with_the_distributions():
    with pytest.raises(ValueError, match=r"tokens: shape \(4, 2\) does not match .* \(3, 3\)"):
        verifiers.get("kseq").select(np.tile(GOOD, (3, 1)), GOOD, np.zeros((4, 2), dtype=int))


def test_unknown_rules_and_distributions_are_named():
    with pytest.raises(ValueError, match=r"verifier: no rule named 'best'. Known rules: .*kseq"):
        verifiers.get("best")
    from spectr_lite.distributions import IID, WithoutReplacement

    with pytest.raises(
        ValueError, match=r"drafting: 'kseq' is not lossless for .*WithoutReplacement"
    ):
        verifiers.get("kseq").acceptance(GOOD, GOOD, 2, drafting=WithoutReplacement())
    with pytest.raises(ValueError, match=r"drafting: 'recursive-wor' is not lossless for .*IID"):
        verifiers.get("recursive-wor").acceptance(GOOD, GOOD, 2, drafting=IID())
    with pytest.raises(ValueError, match=r"drafting: .*'iid'"):
        verifiers.get("kseq").acceptance(GOOD, GOOD, 2, drafting="iid")


def test_rules_made_for_one_number_of_drafts_say_so():
    with pytest.raises(ValueError, match=r"k: 'coupling' is defined for k=1 only, found 2"):
        verifiers.get("coupling").acceptance(GOOD, GOOD, 2)
    with pytest.raises(ValueError, match=r"k: 'coupling' is defined for k=1 only, found 3"):
        verifiers.get("coupling").select(GOOD, GOOD, [0, 1, 2])


def test_an_enumeration_too_large_is_refused():
    draft, target = D.zipf(100)
    with pytest.raises(ValueError, match=r"k: enumeration needs 100,000,000 tuples x 100 tokens"):
        verifiers.get("kseq").output_distribution(draft, target, 4)


# --- kinds and precision ---


def test_numpy_and_lists_become_float64_and_come_back():
    for values in (GOOD, GOOD.tolist(), GOOD.astype(np.float32)):
        if isinstance(values, np.ndarray) and values.dtype == np.float32:
            values = values.astype(np.float64) / values.astype(np.float64).sum()
        assert D.check_distribution(values, "draft").dtype == torch.float64
    pair = D.check_pair(GOOD, GOOD)
    assert isinstance(pair.restore(pair.draft), np.ndarray)
    assert isinstance(pair.restore(pair.draft.sum()), float)
    assert D.check_distribution([1], "draft").tolist() == [1.0]


def test_numpy_float32_is_judged_as_float32():
    values = np.random.default_rng(0).dirichlet(np.ones(1000)).astype(np.float32)
    assert D.check_distribution(values, "draft").sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_torch_keeps_its_precision(dtype, kept):
    logits = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    values = torch.softmax(logits.double(), -1)
    checked = D.check_distribution(values.to(dtype), "draft")
    assert checked.dtype == kept
    np.testing.assert_allclose(checked.sum(-1), 1, atol=1e-6)
    mixed = D.check_pair(values.to(dtype), values)
    assert mixed.draft.dtype == mixed.target.dtype == torch.float64


def test_a_torch_tensor_in_gives_torch_out():
    assert D.check_pair(torch.tensor(GOOD), GOOD).is_torch
    assert not D.check_pair(GOOD.tolist(), GOOD).is_torch


# --- drawing ---


@given(probs=distributions(6), seed=st.integers(0, 2**32))
def test_a_token_without_mass_is_never_drawn(probs, seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = D.sample(torch.tensor(probs), generator, count=200)
    assert (probs[drawn.numpy()] > 0).all()


@pytest.mark.parametrize("weights", [[0, 1, 0, 2, 0], [0.1] * 10 + [0], [0, 0, 1e-300]])
@pytest.mark.parametrize("number", [0.0, 1 / 3, 1 - 2.0**-53])
def test_a_token_without_mass_is_not_drawn_at_an_edge_either(weights, number, monkeypatch):
    """Random numbers at the ends of [0, 1), and on the edge of a token."""
    monkeypatch.setattr(
        "spectr_lite.distributions.vectors.uniform", lambda *_: torch.tensor([number])
    )
    weights = torch.tensor(weights, dtype=torch.float64)
    assert weights[D.sample(weights, torch.Generator())] > 0


def test_draws_follow_the_distribution():
    probs = np.random.default_rng(0).dirichlet(np.full(20, 0.5))
    drawn = D.sample(torch.tensor(probs * 7), torch.Generator().manual_seed(0), count=100_000)
    assert chi_square(np.bincount(drawn, minlength=20), probs).p_value > 1e-6
    rows = D.sample(torch.tensor(probs).expand(100_000, -1), torch.Generator().manual_seed(1))
    assert chi_square(np.bincount(rows, minlength=20), probs).p_value > 1e-6


def test_a_large_float32_vocabulary_reaches_every_tail():
    """float32 has 2^24 uniforms: inverted in float32, tokens of mass below 6e-8 would never come."""
    vocabulary = 256_000
    probs = torch.full((vocabulary,), 0.5 / vocabulary)
    probs[0] += 0.5
    drawn = D.sample(probs, torch.Generator().manual_seed(0), count=200_000)
    late = (drawn >= vocabulary // 2).double().mean()
    assert float(late) == pytest.approx(0.25, abs=0.005)
    assert int(drawn.max()) < vocabulary


def test_generators_of_every_kind():
    def draws(generator) -> list:
        source = D.as_generator(generator, torch.device("cpu"))
        return D.uniform((3,), source).tolist()

    assert draws(5) == draws(5) == draws(np.int64(5)) == draws(torch.Generator().manual_seed(5))
    assert draws(5) != draws(6)
    assert draws(None) != draws(None)
    assert draws(np.random.default_rng(1)) == draws(np.random.default_rng(1))
    shared = np.random.default_rng(1)
    assert draws(shared) != draws(shared)
    for wrong in ("seed", 1.5, True, np.random.RandomState(0)):
        with pytest.raises(TypeError, match="generator: expected None, a seed"):
            draws(wrong)


def test_dead_drafts_read_zero():
    probs = torch.tensor(GOOD)
    read = D.probability_of(probs, torch.tensor([[0, -1, 2], [-1, -1, 1]]))
    np.testing.assert_allclose(read, [[0.2, 0, 0.5], [0, 0, 0.3]])


# --- the examples ---


@pytest.mark.parametrize(
    "pair",
    [
        D.bernoulli(0.2, 0.9),
        D.three_tokens(),
        D.five_tokens(),
        D.kseq_worst_case(),
        D.uniform_on_subset(7, 3),
        D.zipf(100),
        D.dirichlet(9),
        D.tempered(np.array([0.0, 0.4, 0.6]), 0.5, 2.0),
    ],
)
def test_the_examples_are_pairs(pair):
    draft, target = pair
    assert draft.dtype == target.dtype == np.float64
    D.check_pair(draft, target)


def test_examples_by_hand():
    np.testing.assert_allclose(D.bernoulli(0.2, 0.9), [[0.8, 0.2], [0.1, 0.9]])
    np.testing.assert_allclose(D.uniform_on_subset(4, 2)[1], [0.5, 0.5, 0, 0])
    draft, target = D.tempered(np.array([0.2, 0.8]), 1.0, 0.5)
    np.testing.assert_allclose(draft, [0.2, 0.8])
    np.testing.assert_allclose(target, [0.04 / 0.68, 0.64 / 0.68])
    assert (D.zipf(10, seed=3)[0] == D.zipf(10, seed=3)[0]).all()
    with pytest.raises(ValueError, match=r"support: found 9\. It must be between 1 and 7"):
        D.uniform_on_subset(7, 9)
    with pytest.raises(ValueError, match="vocabulary: found 0"):
        D.zipf(0)
