"""Probability vectors: what is accepted, what is refused and in which words, what is drawn."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import distributions

from spectr_lite import distributions as D
from spectr_lite import verifiers
from spectr_lite.distributions import vectors
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


def float32_softmax(vocabulary, seed=0):
    """A row whose sum misses 1 as a softmax in float32 does: 1 + 1.2e-5 at 256,000 tokens."""
    logits = 3 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed))
    weights = torch.exp(logits)
    return (weights / weights.cumsum(0)[-1]).numpy()


@pytest.mark.parametrize("vocabulary", [2, 5, 1_000, 32_000, 256_000])
def test_a_float32_softmax_passes_in_every_container(vocabulary):
    for seed in range(5):
        row = float32_softmax(vocabulary, seed)
        containers = [row, torch.tensor(row), row.astype(np.float64), torch.tensor(row).double()]
        if vocabulary <= 32_000:
            containers += [row.tolist(), [float(str(v)) for v in row]]
        for values in containers:
            checked = D.check_distribution(values, "draft")
            assert float(checked.sum(dtype=torch.float64)) == pytest.approx(1, abs=1e-6)
            np.testing.assert_allclose(checked, row, rtol=5e-4)


@pytest.mark.parametrize("kind", [np.float32, np.float64, list, torch.tensor])
def test_what_float32_cannot_have_done_is_refused(kind):
    for values in ([0.5, 0.50001], [0.333, 0.333, 0.333], [0.25, 0.25, 0.25, 0.2499]):
        with pytest.raises(ValueError, match=r"draft: row 0 sums to .*Normalise it"):
            D.check_distribution(
                np.array(values, kind)
                if isinstance(kind, type) and kind is not list
                else kind(values),
                "draft",
            )
    long = np.full(100_000, 1e-5)
    long[0] += 4e-4
    with pytest.raises(ValueError, match=r"more than 3\.5e-04 away"):
        D.check_distribution(long, "draft")


def test_half_precision_may_miss_three_hundredths():
    half = np.full(100, 0.01).astype(np.float16)
    half[0] = 0.03
    assert float(D.check_distribution(half, "draft").sum()) == pytest.approx(1)
    half[0] = 0.06
    with pytest.raises(ValueError, match=r"draft: row 0 sums to 1\.05.*more than 3\.1e-02"):
        D.check_distribution(half, "draft")


SHAPES = {
    "reversed": lambda row: np.sort(row[::-1])[::-1],
    "flipped": lambda row: np.flip(np.flip(row).copy()),
    "every other": lambda row: np.repeat(row, 2)[::2],
    "a column": lambda row: np.tile(row[:, None], (1, 3))[:, 1],
    "big-endian": lambda row: row.astype(">f8"),
    "little-endian": lambda row: row.astype("<f8"),
    "big-endian float32": lambda row: row.astype(">f4"),
    "long double": lambda row: row.astype(np.longdouble),
    "objects": lambda row: row.astype(object),
    "fractions": lambda row: [Fraction(1, 5), Fraction(3, 10), Fraction(1, 2)],
    "decimals": lambda row: [Decimal("0.2"), Decimal("0.3"), Decimal("0.5")],
    "a tuple of scalars": lambda row: tuple(row),
    "a list of tensors": lambda row: list(torch.tensor(row)),
    "torch, not contiguous": lambda row: torch.tensor(row).repeat(2, 1).T[:, 1],
    "float16": lambda row: row.astype(np.float16),
}


def read_only(row):
    row = row.copy()
    row.flags.writeable = False
    return row


@pytest.mark.parametrize("shape", [*SHAPES, "read-only"])
def test_layouts_byte_orders_and_kinds_of_numbers(shape):
    """Every one gives what the plain array gives; a warning is an error in these tests."""
    make = read_only if shape == "read-only" else SHAPES[shape]
    values = make(GOOD)
    expected = np.asarray([float(v) for v in values])
    np.testing.assert_allclose(D.check_distribution(values, "draft"), expected, rtol=2e-3)
    rule = verifiers.get("kseq")
    found = rule.acceptance(values, GOOD[::-1], 2)
    assert float(found) == pytest.approx(rule.acceptance(expected / expected.sum(), GOOD[::-1], 2))


@pytest.mark.parametrize(
    "make",
    [
        lambda t: np.flip(t, -1),
        lambda t: t.astype(">i4"),
        read_only,
        lambda t: t.astype(np.uint64),
        np.ndarray.tolist,
        torch.tensor,
    ],
)
def test_drafted_ids_of_every_layout(make):
    rule, tokens = verifiers.get("kseq"), np.array([[0, 1], [2, 0], [1, 1]])
    values = make(tokens)
    expected = rule.select(GOOD, GOOD[::-1], np.asarray(values, np.int64), generator=0).token
    np.testing.assert_array_equal(
        rule.select(GOOD, GOOD[::-1], values, generator=0).token, expected
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ma.masked_array(GOOD, [0, 0, 1]), "masked"),
        ([np.ma.masked_array(GOOD, [0, 0, 1])], "masked"),
        (["0.5", "0.5"], "expected an array of probabilities"),
        ([Fraction(1, 2), "0.5"], "expected an array of probabilities"),
        ([Fraction(1, 2), None], "not all of it is numbers"),
        ([10**400, Fraction(1, 2)], "expected an array of probabilities"),
        (np.array([0, 1], "M8[s]"), "expected an array of probabilities"),
        ({"a": 0.5}, "expected an array of probabilities"),
        (torch.tensor(GOOD).to_sparse(), "sparse"),
        (torch.empty(3, device="meta"), "without values"),
        (torch.tensor([0.5, 0.5]).to(torch.float8_e5m2), "float8"),
    ],
)
def test_what_is_no_array_of_probabilities_is_named(values, message):
    with pytest.raises(TypeError, match=f"^target: .*{message}"):
        verifiers.get("kseq").acceptance(GOOD, values, 2)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_vocabulary_is_drawn_from_by_blocks(dtype):
    """Blocks without weight, a weight in the last and shorter block, and a row without any."""
    weights = torch.zeros(2, vectors.BLOCK**2 + 700, dtype=dtype)
    places = torch.tensor([3, 200, 201, 9000, weights.shape[-1] - 1])
    weights[0, places] = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=dtype)
    drawn = D.sample(weights, torch.Generator().manual_seed(0), count=20_000)
    assert (drawn[1] == weights.shape[-1] - 1).all()
    counts = torch.bincount(drawn[0], minlength=weights.shape[-1])
    assert counts.sum() == counts[places].sum()
    assert chi_square(counts[places].numpy(), weights[0, places].double().numpy()).p_value > 1e-6
