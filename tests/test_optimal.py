"""Nested priority: the winner's distribution, its optimality, and its two ways of being computed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import pairs

from spectr_lite import distributions as D
from spectr_lite.stats import chi_square
from spectr_lite.transport import nested, optimal_acceptance, solve_lp
from spectr_lite.verifiers import optimal

CASES = json.loads((Path(__file__).parent / "cases" / "verifiers.json").read_text())


def winner_probs(plan: nested.NestedPlan, draft: np.ndarray, k: int) -> np.ndarray:
    """The winner's distribution from the rule's words alone: Z opens edges, the highest pool wins.

    The open edges only change at an activation time. Between two of them, the drafts reach no further
    than edge b with probability U_b^k, so pool [a, b) wins with probability U_b^k - U_a^k; drafts are
    exchangeable and ties are broken evenly, so a token of the pool wins in proportion to its draft mass.
    """
    classes, tau = plan.class_of.numpy(), plan.activation.numpy()
    mass = np.bincount(classes, draft, minlength=len(tau))
    below = np.concatenate([[0], mass.cumsum()])
    probs = np.zeros(len(draft))
    levels = np.unique(np.concatenate([tau, [1.0]]))
    for low, high in itertools.pairwise(levels):
        edges = [*np.flatnonzero(tau <= low), len(tau)]
        for a, b in itertools.pairwise(edges):
            pool = (classes >= a) & (classes < b)
            total = draft[pool].sum()
            if total > 0:
                probs[pool] += (high - low) * (below[b] ** k - below[a] ** k) * draft[pool] / total
    return probs


def test_the_claimed_marginal_is_the_true_one_when_some_bins_are_empty():
    """Two edges with no draft mass between them must open together."""
    draft, target = D.zipf(300, seed=1)
    for k in (2, 8):
        made = nested.plan(torch.tensor(draft), torch.tensor(target), k, classes=256)
        assert (torch.bincount(made.class_of, minlength=256) == 0).any()
        claimed = made.winner(torch.tensor(draft)).numpy()
        np.testing.assert_allclose(winner_probs(made, draft, k), claimed, atol=1e-12)


def by_words(plan: nested.NestedPlan, draft: np.ndarray, target: np.ndarray, k: int):
    """P(Y = y) and P(Y in S) by listing every tuple, and every set of open edges, one at a time."""
    classes, tau = plan.class_of.numpy(), plan.activation.numpy()
    winner = winner_probs(plan, draft, k)
    residual = np.maximum(target - winner, 0)
    residual = residual / residual.sum() if residual.sum() > 0 else residual
    output, inside = np.zeros(len(draft)), 0.0
    levels = np.unique(np.concatenate([tau, [1.0]]))
    for drafted in itertools.product(range(len(draft)), repeat=k):
        mass = draft[list(drafted)].prod()
        if mass == 0:
            continue
        probs = np.zeros(len(draft))
        for low, high in itertools.pairwise(levels):
            pools = np.searchsorted(
                np.flatnonzero(tau <= low), classes[list(drafted)], side="right"
            )
            best = [
                token for token, pool in zip(drafted, pools, strict=True) if pool == pools.max()
            ]
            for token in best:
                accept = min(1.0, target[token] / winner[token])
                probs[token] += (high - low) * accept / len(best)
                probs += (high - low) * (1 - accept) * residual / len(best)
        output += mass * probs
        inside += mass * probs[list(set(drafted))].sum()
    return output, inside


def awkward_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    one_hot, spread = np.array([0.0, 1.0, 0.0]), np.array([0.2, 0.3, 0.5])
    return [
        (np.array([1.0]), np.array([1.0])),
        (one_hot, one_hot),
        (one_hot, spread),
        (spread, one_hot),
        (spread, spread),
        (np.array([0.5, 0.5, 0.0, 0.0]), np.array([0.0, 0.0, 0.5, 0.5])),
        (np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.2, 0.4, 0.24, 0.16])),
        (np.full(4, 0.25), np.full(4, 0.25)),
        D.uniform_on_subset(6, 2),
        D.kseq_worst_case(),
        D.five_tokens(),
        (np.array([0.0, 0.3, 0.3, 0.4]), np.array([0.3, 0.0, 0.3, 0.4])),
    ]


@pytest.fixture(params=["tables", "heap"])
def path(request, monkeypatch):
    """Both ways to a plan: tables of C x C, and removal with a heap."""
    monkeypatch.setitem(nested.DENSE_LIMIT, "cpu", 10**6 if request.param == "tables" else 0)
    return request.param


def check_plan(draft: np.ndarray, target: np.ndarray, k: int, classes: int | None) -> float:
    """The claimed marginal is the true one; answers the acceptance."""
    p, q = torch.tensor(draft), torch.tensor(target)
    made = nested.plan(p, q, k, classes)
    claimed = made.winner(p).numpy()
    assert ((made.activation >= 0) & (made.activation <= 1)).all()
    assert (made.activation[..., 0] == 0).all()
    assert (claimed >= 0).all()
    assert claimed.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(winner_probs(made, draft, k), claimed, atol=1e-12)
    return float(np.minimum(claimed, target).sum())


# --- one class per token: the optimum ---


@pytest.mark.parametrize("k", [1, 2, 3, 8, 40])
def test_awkward_pairs_reach_the_optimum(path, k):
    for draft, target in awkward_pairs():
        found = check_plan(draft, target, k, None)
        assert found == pytest.approx(optimal_acceptance(draft, target, k), abs=1e-12)


@given(pair=pairs(max_vocabulary=8), k=st.integers(1, 9))
def test_any_pair_reaches_the_optimum_both_ways(pair, k):
    for limit in (10**6, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(nested.DENSE_LIMIT, "cpu", limit)
            found = check_plan(*pair, k, None)
            assert found == pytest.approx(optimal_acceptance(*pair, k), abs=1e-11)


@pytest.mark.parametrize("seed", range(12))
def test_the_optimum_is_the_program_s(path, seed):
    draft, target = D.dirichlet(2 + seed % 4, 0.5 + seed % 3, seed)
    for k in (1, 2, 3):
        best = solve_lp(draft, target, k).acceptance
        assert check_plan(draft, target, k, None) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_rule_read_aloud_is_the_rule_in_code(path, seed, k):
    """Every tuple and every pool listed: output distribution, acceptance and the rule's own answers
    agree.
    """
    draft, target = D.dirichlet(4, 0.8, seed)
    rule = optimal.Optimal()
    output, inside = by_words(
        nested.plan(torch.tensor(draft), torch.tensor(target), k), draft, target, k
    )
    np.testing.assert_allclose(output, target, atol=1e-12)
    np.testing.assert_allclose(rule.output_distribution(draft, target, k), output, atol=1e-12)
    assert rule.acceptance(draft, target, k) == pytest.approx(inside, abs=1e-12)
    assert inside == pytest.approx(optimal_acceptance(draft, target, k), abs=1e-12)


@given(pair=pairs(max_vocabulary=6), k=st.integers(1, 8), weight=st.floats(1e-3, 1.0))
def test_one_winner_is_best_for_every_weight(pair, k, weight):
    """sum min(r, w q) = min_A [ w q(A) + 1 - p(A)^k ] for every w in (0, 1]."""
    draft, target = pair
    winner = nested.plan(torch.tensor(draft), torch.tensor(target), k).winner(torch.tensor(draft))
    subsets = itertools.chain.from_iterable(
        itertools.combinations(range(len(draft)), size) for size in range(len(draft) + 1)
    )
    cut = min(
        weight * target[list(a)].sum() + 1 - min(draft[list(a)].sum(), 1) ** k for a in subsets
    )
    assert np.minimum(winner.numpy(), weight * target).sum() == pytest.approx(cut, abs=1e-11)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"V={len(case['draft'])} k={case['k']}")
def test_reference_winner(case):
    """On each edge of the concave hull of (R, G) the winner's distribution is a multiple of the
    target.
    """
    p, q = (torch.tensor(np.array(case[side])) for side in ("draft", "target"))
    winner, expected = nested.plan(p, q, case["k"]).winner(p), torch.tensor(case["hull_r"])
    # Among tokens the target never says the winner's distribution is free: none is accepted.
    said = q > 0
    np.testing.assert_allclose(winner[said], np.array(case["hull_r"])[said], atol=1e-9)
    assert float(winner[~said].sum()) == pytest.approx(float(expected[~said].sum()), abs=1e-6)


def test_activation_times_lie_between_the_ends():
    """Blocks are not all pooled or all split: the times are what makes the plan more than a sort."""
    p, q = (torch.tensor(side) for side in D.zipf(200, seed=4))
    tau = nested.plan(p, q, 4).activation
    between = (tau > 1e-6) & (tau < 1 - 1e-6)
    assert between.sum() > 20
    assert len(tau[between].unique()) > 20


# --- two ways to one plan ---


@given(
    pair=pairs(max_vocabulary=30, min_vocabulary=5), k=st.integers(1, 9), classes=st.integers(4, 20)
)
def test_tables_and_heap_make_the_same_plan(pair, k, classes):
    draft, target = pair
    p, q = torch.tensor(draft), torch.tensor(target)
    made = {}
    for limit in (10**6, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(nested.DENSE_LIMIT, "cpu", limit)
            made[limit] = nested.plan(p, q, k, classes)
            assert winner_probs(made[limit], draft, k) == pytest.approx(
                made[limit].winner(p).numpy(), abs=1e-12
            )
    tables, heap = made.values()
    np.testing.assert_array_equal(tables.class_of, heap.class_of)
    np.testing.assert_allclose(
        torch.minimum(tables.winner(p), q).sum(), torch.minimum(heap.winner(p), q).sum(), atol=1e-9
    )


def test_tables_and_heap_agree_on_a_large_vocabulary(monkeypatch):
    p, q = (torch.tensor(side) for side in D.zipf(32_000, seed=1))
    made = []
    for limit in (1024, 0):
        monkeypatch.setitem(nested.DENSE_LIMIT, "cpu", limit)
        made.append(nested.plan(p, q, 8, classes=128))
    np.testing.assert_allclose(made[0].activation, made[1].activation, atol=1e-7)
    np.testing.assert_allclose(made[0].winner(p), made[1].winner(p), atol=1e-9)


@pytest.mark.parametrize(("vocabulary", "k"), [(300, 1), (300, 2), (2000, 8), (5000, 3)])
def test_the_plan_of_one_row_draws_as_the_plan_with_its_times(vocabulary, k):
    p, q = (torch.tensor(side) for side in D.zipf(vocabulary, seed=k))
    if k != 2:  # tokens that one of the two never says
        p[: vocabulary // 9], q[vocabulary // 8 : vocabulary // 6] = 0, 0
        p, q = p / p.sum(), q / q.sum()
    made, row = nested.plan(p, q, k, 256), nested.RowPlan(p, q, k, 256)
    np.testing.assert_allclose(row.winner(p), made.winner(p), atol=1e-13)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        tokens = torch.multinomial(p, k, replacement=True, generator=generator)
        z, ties = torch.rand(2, k, dtype=torch.float64, generator=generator)
        place, slope = row.draw(tuple(tokens.tolist()), float(z[0]), ties.tolist())
        assert place == int(made.draw(tokens, z[:1], ties))
        won = float(made.winner(p)[tokens[place]])
        assert slope * float(p[tokens[place]]) == pytest.approx(won, rel=1e-6)


def test_rows_of_a_binned_vocabulary_follow_the_target():
    """As they are decoded: a plan for each row, in float32."""
    draft, target = (torch.tensor(side).float() for side in D.zipf(300, seed=1))
    tokens = torch.multinomial(draft.expand(3000, -1), 4, replacement=True)
    rows = draft.expand(3000, -1), target.expand(3000, -1), tokens
    chosen = optimal.Optimal(16)._select(*rows, torch.Generator().manual_seed(0))
    assert chi_square(np.bincount(chosen, minlength=300), target.double()).p_value > 1e-6


# --- bins: lossless whatever they are, and nearly optimal ---


@pytest.mark.parametrize("k", [1, 2, 3])
def test_any_number_of_classes_is_lossless(path, k):
    for draft, target in (
        D.dirichlet(6, 0.7, 3),
        (np.array([0.3, 0.3, 0, 0.4]), np.array([0.0, 0.2, 0.5, 0.3])),
    ):
        for classes in range(4, len(draft) + 3):
            rule = optimal.Optimal(classes)
            assert (
                check_plan(draft, target, k, classes)
                <= optimal_acceptance(draft, target, k) + 1e-12
            )
            output = rule.output_distribution(draft, target, k)
            np.testing.assert_allclose(output, target, atol=1e-12)


@given(pair=pairs(max_vocabulary=6), k=st.integers(1, 3), classes=st.integers(4, 8))
def test_bins_are_lossless_on_any_pair(pair, k, classes):
    draft, target = pair
    for limit in (10**6, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(nested.DENSE_LIMIT, "cpu", limit)
            assert (
                check_plan(draft, target, k, classes)
                <= optimal_acceptance(draft, target, k) + 1e-12
            )
            output = optimal.Optimal(classes).output_distribution(draft, target, k)
            np.testing.assert_allclose(output, target, atol=1e-12)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_an_unfinished_iteration_stays_lossless(monkeypatch, steps):
    monkeypatch.setitem(nested.DENSE_LIMIT, "cpu", 10**6)
    monkeypatch.setattr(nested, "DINKELBACH_STEPS", steps)
    for seed in range(5):
        draft, target = D.dirichlet(5, 0.7, seed)
        for k in (2, 4):
            assert (
                check_plan(draft, target, k, None) <= optimal_acceptance(draft, target, k) + 1e-12
            )
            output = optimal.Optimal().output_distribution(draft, target, k)
            np.testing.assert_allclose(output, target, atol=1e-12)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_512_classes_lose_less_than_5e_4_at_32k_tokens(k):
    draft, target = D.zipf(32_000, seed=6)
    found = optimal.Optimal(512).acceptance(draft, target, k)
    best = optimal_acceptance(draft, target, k)
    assert best - 5e-4 < found <= best + 1e-12


def test_special_tokens_have_a_bin_of_their_own():
    """The first is for tokens the target never says, the last for tokens never drafted."""
    draft = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1, 0.0, 0.0], dtype=torch.float64)
    target = torch.tensor([0.0, 0.2, 0.1, 0.2, 0.1, 0.4, 0.0], dtype=torch.float64)
    for classes in (4, 5, 6):
        bins = nested.plan(draft, target, 2, classes).class_of
        assert (bins == 0).tolist() == (target.eq(0) & draft.gt(0)).tolist()
        assert (bins == classes - 1).tolist() == draft.eq(0).tolist()


def test_samples_of_a_binned_vocabulary_follow_the_target():
    """The heap, bins, some of them empty: 60,000 tokens against the target."""
    draft, target = D.zipf(300, seed=1)
    rng = np.random.default_rng(0)
    tokens = rng.choice(300, size=(60_000, 4), p=draft)
    chosen = optimal.Optimal(256).select(draft, target, tokens, 0).token
    assert chi_square(np.bincount(chosen, minlength=300), target).p_value > 1e-6


def test_too_few_classes_are_refused():
    with pytest.raises(ValueError, match="classes: found 3"):
        optimal.Optimal(3)
