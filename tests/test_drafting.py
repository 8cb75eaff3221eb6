"""How drafts are drawn: what is sampled is what is enumerated, and what the cut formula is told."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import distributions

from spectr_lite import distributions as D
from spectr_lite.distributions import IID, TopM, WithoutReplacement
from spectr_lite.stats import chi_square
from spectr_lite.transport import optimal_acceptance

LAWS = [IID(), WithoutReplacement(), TopM(1), TopM(2), TopM(6)]
DRAFT = np.array([0.45, 0.3, 0.15, 0.1, 0.0])


def cell(tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    """One number for each tuple, -1 counted as a token of its own."""
    return ((tokens + 1) * (vocabulary + 1) ** np.arange(tokens.shape[-1])).sum(-1)


@pytest.mark.parametrize("drafting", LAWS, ids=str)
@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_what_is_sampled_is_what_is_enumerated(drafting, k):
    draft = torch.tensor(DRAFT)
    drawn = drafting.sample(draft.expand(40_000, -1), k, torch.Generator().manual_seed(0))
    assert drawn.shape == (40_000, k)
    tokens, mass = drafting.tuples(draft, k)
    size = 6**k
    counts = np.bincount(cell(drawn.numpy(), 5), minlength=size)
    expected = np.bincount(cell(tokens.numpy(), 5), mass.numpy(), minlength=size)
    assert (counts[expected == 0] == 0).all()
    if expected.max() < 1 - 1e-9:
        assert chi_square(counts, expected).p_value > 1e-6


@pytest.mark.parametrize("drafting", LAWS, ids=str)
@given(draft=st.integers(1, 5).flatmap(distributions), k=st.integers(1, 6))
def test_tuples_are_distinct_and_sum_to_one(drafting, draft, k):
    tokens, mass = drafting.tuples(torch.tensor(draft), k)
    assert (mass >= 0).all()
    assert float(mass.sum()) == pytest.approx(1, abs=1e-12)
    assert tokens.shape == (len(mass), k)
    assert len(tokens.unique(dim=0)) == len(tokens)


def test_plackett_luce_by_hand():
    tokens, mass = WithoutReplacement().tuples(
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 2
    )
    found = {tuple(row): value for row, value in zip(tokens.tolist(), mass.tolist(), strict=True)}
    assert found[0, 1] == pytest.approx(0.5 * 0.3 / 0.5)
    assert found[2, 0] == pytest.approx(0.2 * 0.5 / 0.8)
    assert len(found) == 6


def test_plackett_luce_keeps_the_digits_behind_a_near_certain_token():
    draft = torch.tensor([1 - 1e-12, 7.5e-13, 2.5e-13], dtype=torch.float64)
    tokens, mass = WithoutReplacement().tuples(draft, 2)
    second = {tuple(row): value for row, value in zip(tokens.tolist(), mass.tolist(), strict=True)}
    assert second[0, 1] == pytest.approx(0.75, rel=1e-9)
    assert second[0, 2] == pytest.approx(0.25, rel=1e-9)


def test_distributions_that_run_out_of_tokens_say_minus_one():
    draft = torch.tensor([0.6, 0.4, 0.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = WithoutReplacement().sample(draft.expand(100, -1), 4, generator)
    assert (drawn[:, 2:] == -1).all()
    assert (drawn[:, :2].sort(-1).values == torch.tensor([0, 1])).all()
    hub = TopM(3).sample(draft, 5, generator)
    assert hub.tolist() == [0, 1, 2, -1, -1]
    one_hot = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert TopM(1).sample(one_hot, 2, generator).tolist() == [1, -1]


def test_top_m_breaks_ties_by_the_lower_id():
    draft = torch.full((5,), 0.2, dtype=torch.float64)
    assert TopM(3).sample(draft, 3, torch.Generator()).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="m: found 0"):
        TopM(0)


@pytest.mark.parametrize("drafting", LAWS, ids=str)
@given(draft=st.integers(1, 5).flatmap(distributions), k=st.integers(1, 5), seed=st.integers(0, 99))
def test_containment_is_the_probability_it_names(drafting, draft, k, seed):
    """P(S subset of A) for every prefix A of the distribution's own order, added up over the tuples."""
    p = torch.tensor(draft)
    q = torch.tensor(np.random.default_rng(seed).dirichlet(np.ones(len(draft))))
    order = drafting.order(p, q, k)
    found = drafting.containment(p, order, k)
    tokens, mass = drafting.tuples(p, k)
    for j in range(1, len(draft) + 1):
        inside = torch.isin(tokens, torch.cat([order[:j], torch.tensor([-1])])).all(-1)
        assert float(found[j - 1]) == pytest.approx(float(mass[inside].sum()), abs=1e-11)


@pytest.mark.parametrize("k", [2, 8])
def test_containment_without_replacement_at_size(k):
    """Against 20,000 samples at V = 1,000, and never above what repeats allow."""
    draft, target = (torch.tensor(side) for side in D.zipf(1_000, seed=1))
    drafting = WithoutReplacement()
    order = drafting.order(draft, target, k)
    found = drafting.containment(draft, order, k)
    assert (found.diff() >= -1e-12).all()
    assert (found <= IID().containment(draft, order, k) + 1e-10).all()
    rank = torch.empty_like(order).scatter(0, order, torch.arange(len(order)))
    generator = torch.Generator().manual_seed(0)
    furthest = torch.cat(
        [rank[drafting.sample(draft.expand(1000, -1), k, generator)].amax(-1) for _ in range(20)]
    )
    for j in (500, 800, 950, 990):
        share = float((furthest < j).double().mean())
        expected = float(found[j - 1])
        noise = (expected * (1 - expected) / 20_000) ** 0.5
        assert abs(share - expected) < 5 * noise + 1e-9


def test_batches():
    rows = [D.dirichlet(5, seed=seed) for seed in range(3)]
    p, q = (torch.tensor(np.stack(side)) for side in zip(*rows, strict=True))
    for drafting, k in itertools.product(LAWS, (1, 3)):
        together = drafting.containment(p, drafting.order(p, q, k), k)
        for row in range(3):
            single = drafting.containment(p[row], drafting.order(p[row], q[row], k), k)
            np.testing.assert_allclose(together[row], single, atol=1e-14)
        drawn = drafting.sample(p, k, torch.Generator().manual_seed(0))
        assert drawn.shape == (3, k)


def test_an_enumeration_too_large_is_refused():
    draft = torch.full((40,), 1 / 40, dtype=torch.float64)
    for drafting in (IID(), WithoutReplacement(), TopM(1)):
        with pytest.raises(ValueError, match=r"k: enumeration needs [\d,]+ tuples x 40 tokens"):
            drafting.tuples(draft, 6)


# --- masses at the end of float64 ---


TINY = [
    [1.0, 1e-310, 1e-320],
    [1.0, 5e-324, 0.0],
    [0.6, 0.4, 1e-305],
    [0.5, 0.5 - 1e-16, 1e-300, 1e-310],
    [0.4, 0.3, 0.3, 1e-323, 1e-308],
]


@pytest.mark.parametrize("draft", TINY)
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_optimum_with_masses_below_1e_300(draft, k):
    """Against the largest excess over all sets, by enumeration of the tuples."""
    p = torch.tensor(draft, dtype=torch.float64)
    target = np.linspace(1, 2, len(draft)) / np.linspace(1, 2, len(draft)).sum()
    tokens, mass = WithoutReplacement().tuples(p, k)
    worst = 0.0
    for size in range(len(draft) + 1):
        for chosen in itertools.combinations(range(len(draft)), size):
            inside = torch.isin(tokens, torch.tensor([*chosen, -1])).all(-1)
            worst = max(worst, float(mass[inside].sum()) - target[list(chosen)].sum())
    found = optimal_acceptance(draft, target, k, drafting=WithoutReplacement())
    assert found == pytest.approx(1 - worst, abs=1e-9)


def test_a_mass_of_1e_310_is_drafted_when_nothing_else_is_left():
    draft = torch.tensor([1.0, 1e-310, 0.0], dtype=torch.float64)
    drawn = WithoutReplacement().sample(draft, 3, torch.Generator().manual_seed(0))
    assert drawn.tolist() == [0, 1, -1]
    order = D.by_ratio(draft[[0, 2, 1]], torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64))
    assert order.tolist() == [0, 2, 1]  # the one that is never drafted last, though 1e310 overflows
