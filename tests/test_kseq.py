"""K-SEQ: rho*, which side of it is safe, how good it is, and what large k and large V do to it."""

from __future__ import annotations

import json
from fractions import Fraction
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import pairs

from spectr_lite import distributions as D
from spectr_lite import verifiers
from spectr_lite.transport import optimal_acceptance
from spectr_lite.verifiers import kseq
from spectr_lite.verifiers.kseq import (
    KSeq,
    acceptance_of_any,
    acceptance_of_one,
    bisected_rho,
    guarantee,
    optimal_rho,
    residual,
    stepped_rho,
)

CASES = Path(__file__).parent / "cases"
KSEQ = json.loads((CASES / "kseq.json").read_text())
VERIFIERS = json.loads((CASES / "verifiers.json").read_text())

FLAT = 1e-10  # of acceptance, where p_acc is 1 but for (1 - beta)^k and many rho give it


def excess(draft: torch.Tensor, target: torch.Tensor, rho: torch.Tensor, k: float) -> torch.Tensor:
    """h(rho) = p_acc - rho beta: positive where the residual would have negative mass."""
    beta = acceptance_of_one(draft, target, rho)
    return acceptance_of_any(beta, k) - rho * beta


def signed_residual(draft, target, rho, k) -> torch.Tensor:
    """The residual before anything is clamped."""
    beta = acceptance_of_one(draft, target, rho)
    kept = torch.minimum(draft, target / rho.unsqueeze(-1))
    return target - kept * (acceptance_of_any(beta, k) / beta).unsqueeze(-1)


def fractions(values: list[str]) -> np.ndarray:
    return np.array([float(Fraction(value)) for value in values])


# --- shared reference values ---


@pytest.mark.parametrize("case", KSEQ, ids=lambda case: f"{case['case']} k={case['k']}")
def test_reference_values(case):
    draft, target, k = fractions(case["p"]), fractions(case["q"]), case["k"]
    p, q = torch.tensor(draft), torch.tensor(target)
    rho = optimal_rho(p, q, k)
    beta = acceptance_of_one(p, q, rho)
    assert float(rho) == pytest.approx(case["rho_star"], abs=1e-9)
    assert float(beta) == pytest.approx(case["beta"], abs=1e-9)
    assert float(acceptance_of_any(beta, k)) == pytest.approx(case["kseq_accept"], abs=1e-9)
    rule = KSeq()
    assert rule.acceptance(draft, target, k) == pytest.approx(case["kseq_accept"], abs=1e-9)
    by_enumeration = float(verifiers.Verifier._acceptance(rule, p, q, k, D.IID()))
    assert by_enumeration == pytest.approx(case["kseq_membership_at_rho_star"], abs=1e-9)
    if case["residual"] is not None:
        left = residual(p, q, rho, k)
        np.testing.assert_allclose(left / left.sum(), case["residual"], atol=1e-8)
    if case["best_membership"] is not None:
        best = KSeq(rho=case["best_membership_rho"])
        value = best.acceptance(draft, target, k)
        assert value == pytest.approx(case["best_membership"], abs=1e-8)
        by_enumeration = float(verifiers.Verifier._acceptance(best, p, q, k, D.IID()))
        assert by_enumeration == pytest.approx(case["best_membership"], abs=1e-8)
        np.testing.assert_allclose(best.output_distribution(draft, target, k), target, atol=1e-12)
        beyond = [KSeq(rho=float(rho + step * (k - rho))) for step in np.linspace(0, 1, 41)]
        assert all(
            other.acceptance(draft, target, k) <= case["best_membership"] + 1e-8 for other in beyond
        )


@pytest.mark.parametrize("index", range(len(VERIFIERS)))
def test_more_reference_values(index):
    case = VERIFIERS[index]
    p, q = (torch.tensor(np.array(case[side])) for side in ("draft", "target"))
    # With equal distributions p_acc is 1 to rounding over a range of rho; the reference stops within it.
    loose = 1e-5 if case["kseq"] > 1 - 1e-12 else 1e-8
    assert float(optimal_rho(p, q, case["k"])) == pytest.approx(case["kseq_rho"], abs=loose)
    value = KSeq().acceptance(case["draft"], case["target"], case["k"])
    assert value == pytest.approx(case["kseq"], abs=1e-9)


# --- rho* ---


@given(pair=pairs(max_vocabulary=7), k=st.integers(1, 12))
def test_the_root_is_found_and_lies_on_the_safe_side(pair, k):
    p, q = (torch.tensor(side) for side in pair)
    rho = optimal_rho(p, q, k)
    assert 1 <= rho <= k
    assert abs(float(excess(p, q, rho, k))) < FLAT or float(rho) == 1.0
    assert float(excess(p, q, rho, k)) < 1e-12
    beta = acceptance_of_one(p, q, rho)
    if beta > 1e-9:
        assert float(acceptance_of_any(beta, k)) == pytest.approx(
            float(acceptance_of_any(acceptance_of_one(p, q, bisected_rho(p, q, k)), k)), abs=FLAT
        )
        assert float(signed_residual(p, q, rho, k).min()) > -1e-12


@given(seed=st.integers(0, 10**6), vocabulary=st.integers(2, 40), k=st.integers(2, 16))
def test_exact_and_bisected_rho_agree(seed, vocabulary, k):
    p, q = (torch.tensor(side) for side in D.dirichlet(vocabulary, 1.0, seed))
    exact, bisected = optimal_rho(p, q, k), bisected_rho(p, q, k)
    reached = [acceptance_of_any(acceptance_of_one(p, q, rho), k) for rho in (exact, bisected)]
    assert float(reached[0]) == pytest.approx(float(reached[1]), abs=FLAT)
    if reached[0] < 0.999:  # beyond, p_acc is so flat that many rho give it to the last digit
        assert float(exact) == pytest.approx(float(bisected), abs=1e-12 * k)


# --- the rho of a GPU: the next step of a grid ---


def most_lost(k: float) -> float:
    """What a step of the grid may cost of p_acc."""
    return (1 - 1 / k) ** (k - 1) * np.log(k) / kseq.STEPS


@given(pair=pairs(max_vocabulary=7), k=st.integers(2, 80))
@example(pair=(np.array([1e-5, 1 - 1e-5]), np.array([3e-5, 1 - 3e-5])), k=3)  # in float32: unsafe
def test_a_step_above_the_root_is_safe_and_costs_no_more_than_its_bound(pair, k):
    p, q = (torch.tensor(side) for side in pair)
    rho, best = stepped_rho(p, q, k), optimal_rho(p, q, k)
    assert float(excess(p, q, rho, k)) < 1e-13
    assert float(signed_residual(p, q, rho, k).nan_to_num(0.0).min()) > -1e-15
    if (
        acceptance_of_one(p, q, best) > 1e-9
        and acceptance_of_any(acceptance_of_one(p, q, best), k) < 1 - 1e-9
    ):
        assert 1 - 1e-9 <= float(rho / best) <= k ** (1 / kseq.STEPS) + 1e-9
    lost = acceptance_of_any(acceptance_of_one(p, q, best), k) - acceptance_of_any(
        acceptance_of_one(p, q, rho), k
    )
    assert -1e-12 <= float(lost) <= most_lost(k) + 1e-12


# Pairs of nearly equal distributions: Newton's method, stopped after ten steps, stays far above rho*.
CLOSE = ([.509529, .070821, .136922, .046087, .044549, .192092],
         [.514442, .070185, .136993, .046328, .044085, .187967])  # fmt: skip


@pytest.mark.parametrize("k", [2, 8, 64])
def test_a_step_above_the_root_is_close_where_newton_is_slow(k):
    p, q = (torch.tensor(np.array(side)) for side in CLOSE)
    lost = acceptance_of_any(acceptance_of_one(p, q, optimal_rho(p, q, k)), k) - acceptance_of_any(
        acceptance_of_one(p, q, stepped_rho(p, q, k)), k
    )
    assert -1e-12 <= float(lost) < 5e-5


@pytest.mark.parametrize("name", ["drop6", "drop3"])
def test_a_step_above_the_root_costs_little_on_recorded_distributions(name):
    """SmolLM2-135M and a draft cut out of it, after four prompts."""
    with np.load(resources.files("spectr_lite") / "results" / "next-token-laws.npz") as recorded:
        p, q = (torch.tensor(recorded[side][:4]).double().softmax(-1) for side in (name, "target"))
    for k in (2, 8):
        best, found = (
            acceptance_of_any(acceptance_of_one(p, q, rho(p, q, k)), k)
            for rho in (optimal_rho, stepped_rho)
        )
        assert (best - found).max() < most_lost(k) + 1e-9
        assert (best - found).min() > -1e-9


@pytest.mark.parametrize("vocabulary", [1_000, 50_000, 150_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_law_at_the_rho_of_a_gpu_is_the_target(vocabulary, dtype):
    """c min(draft, target / rho) + residual = target, and the residual weighs what the tests leave."""
    counts = torch.tensor([1, 2, 4, 8])
    for pair in (D.zipf(vocabulary, seed=3), D.tempered(D.zipf(vocabulary, seed=4)[0], 1.4, 1.0)):
        p, q = (torch.tensor(side).to(dtype).expand(4, -1) for side in pair)
        rho = stepped_rho(p, q, counts)
        left, beta = residual(p, q, rho, counts), acceptance_of_one(p, q, rho)
        passed = acceptance_of_any(beta, counts)
        kept = torch.minimum(p, q / rho.unsqueeze(-1)) * (passed / beta).unsqueeze(-1)
        torch.testing.assert_close(kept + left, q.double(), atol=1e-16, rtol=1e-14)
        torch.testing.assert_close(left.sum(-1), q.double().sum(-1) - passed, atol=1e-12, rtol=0)
        exact = optimal_rho(p.double(), q.double(), counts)
        best = acceptance_of_any(acceptance_of_one(p, q, exact), counts)
        assert float((best - passed).max()) < 5e-5


@pytest.mark.parametrize(("find", "most"), [(optimal_rho, 1e-12), (stepped_rho, 5e-5)])
def test_both_searches_on_pairs_that_are_hard_for_newton(find, most):
    """Of nearly equal pairs Newton's step may lead away from the root."""
    generator = np.random.default_rng(0)
    for concentration, share in ((0.3, 1), (1.0, 0.03)):
        p, q = torch.from_numpy(generator.dirichlet(np.full(6, concentration), size=(2, 5000)))
        q = (1 - share) * p + share * q
        for k in (8, 16, 64):
            found, best = (
                acceptance_of_any(acceptance_of_one(p, q, rho), k)
                for rho in (find(p, q, k), bisected_rho(p, q, k))
            )
            assert float((best - found).max()) < most


def test_each_row_has_its_own_number_of_drafts():
    p, q = (torch.tensor(side) for side in D.five_tokens())
    counts = torch.tensor([[1, 2], [5, 8]])
    together = optimal_rho(p, q, counts)
    for index in np.ndindex(2, 2):
        assert together[index] == pytest.approx(float(optimal_rho(p, q, int(counts[index]))))
    batch = optimal_rho(p.expand(2, 2, -1), q.expand(2, 2, -1), counts)
    np.testing.assert_allclose(batch, together, atol=1e-15)


@pytest.mark.parametrize("vocabulary", [6, 32_000, 256_000])
@pytest.mark.parametrize("k", [2, 8, 64])
def test_sums_in_float32_leave_the_root_inside_the_bracket(vocabulary, k):
    """And what is found there in float64 is safe, and costs no more than rounding."""
    for pair in (D.zipf(vocabulary, seed=3), D.tempered(D.zipf(vocabulary, seed=4)[0], 1.4, 1.0)):
        p, q = (torch.tensor(side).float() for side in pair)
        exact = float(optimal_rho(p, q, k))
        whole = 1.0, float(k)
        low, high = kseq.narrowed(
            lambda rho, p=p, q=q: float(torch.minimum(p * rho, q).sum()),
            k,
            whole,
            kseq.SINGLE,
            lambda *_: False,
        )
        assert low <= exact <= high and (vocabulary == 6 or high < low * 1.01)
        end = kseq.narrowed(
            partial(kseq.covered, p, q), k, (low, high), 0.0, lambda a, b: b - a <= 1e-6 * b
        )[1]
        assert (
            -3e-6
            < float(excess(p.double(), q.double(), torch.tensor(end, dtype=torch.float64), k))
            < 1e-12
        )
        for rho in (1 + (k - 1) / 3, exact, (k + exact) / 2):  # how wrong such a sum may be
            wide = torch.minimum(rho * p.double(), q.double()).sum()
            assert abs(torch.minimum(p * rho, q).sum() / wide - 1) < kseq.SINGLE / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_law_of_a_row_in_a_large_vocabulary_is_the_target(dtype, monkeypatch):
    """What is left after all refusals, and what the tests keep at the same rho."""
    p, q = (torch.tensor(side).to(dtype) for side in D.zipf(256_000, seed=3))
    p, q = p / p.double().sum().to(dtype), q / q.double().sum().to(dtype)
    seen = []
    search = kseq.narrowed
    monkeypatch.setattr(kseq, "narrowed", lambda *given: seen.append(search(*given)) or seen[-1])
    for k in (2, 8):
        last = (tuple([0] * k), tuple([1.0] * k), tuple([0.0] * k))
        token, left = KSeq()._row(p, q, last, [0.5] * k)
        rho, wide, goal = seen[-1][1], p.double(), q.double()
        once = torch.minimum(wide, goal / rho)
        passed = 1 - (1 - once.sum()) ** k
        law = once / once.sum() * passed + (1 - passed) * left.double() / left.double().sum()
        assert token == -1 and (law - goal).abs().sum() / 2 < 3e-7


def test_a_row_decides_as_at_its_last_discount():
    """However early the decision: every coin gives the draft that the whole search gives."""
    p, q = (torch.tensor(side).float() for side in D.zipf(500, seed=5))
    generator = torch.Generator().manual_seed(0)
    for k in (2, 5):
        rho = float(optimal_rho(p, q, k))
        for _ in range(300):
            tokens = torch.multinomial(p, k, replacement=True, generator=generator)
            coins = torch.rand(k, generator=generator).double()
            passed = (coins * rho * p[tokens] < q[tokens]).nonzero()[:, 0].tolist()
            drafts = tuple(map(tuple, (tokens.tolist(), p[tokens].tolist(), q[tokens].tolist())))
            found, left = KSeq()._row(p, q, drafts, coins.tolist())
            assert found == (int(tokens[passed[0]]) if passed else -1)
            assert (left is None) == bool(passed)


def test_the_upper_end_of_the_bracket_is_safe_and_the_lower_end_is_not():
    """V = 32k, k = 8: what ten halvings leave of the lower end's bias, and what they do not."""
    k, halvings = 8, 10
    p, q = (torch.tensor(side) for side in D.zipf(32_000, seed=1))
    upper = bisected_rho(p, q, k, halvings)
    lower = upper - (k - 1) / 2**halvings
    assert lower < optimal_rho(p, q, k) <= upper
    assert float(signed_residual(p, q, upper, k).min()) >= 0
    negative = -float(signed_residual(p, q, lower, k).clamp_max(0).sum())
    assert 1e-5 < negative < 1e-2
    exact = signed_residual(p, q, optimal_rho(p, q, k), k)
    assert float(exact.min()) > -1e-16
    assert float(residual(p, q, upper, k).sum()) == pytest.approx(
        1 - float(acceptance_of_any(acceptance_of_one(p, q, upper), k)), abs=1e-12
    )


# --- how good it is ---


@given(pair=pairs(max_vocabulary=6), k=st.integers(1, 9))
def test_the_guarantee_holds(pair, k):
    draft, target = pair
    bound = float(guarantee(torch.tensor(draft), torch.tensor(target), k))
    optimum = optimal_acceptance(draft, target, k)
    assert KSeq().acceptance(draft, target, k) >= bound - 1e-12
    assert bound >= (1 - np.exp(-1)) * optimum - 1e-12


def test_eight_ninths_is_the_worst_known_for_two_drafts():
    draft, target = D.kseq_worst_case()
    assert KSeq().acceptance(draft, target, 2) == pytest.approx(8 / 9, abs=1e-12)
    assert optimal_acceptance(draft, target, 2) == pytest.approx(1, abs=1e-12)
    for seed in range(100):
        draft, target = D.dirichlet(2 + seed % 4, 1.0, seed)
        ratio = KSeq().acceptance(draft, target, 2) / optimal_acceptance(draft, target, 2)
        assert ratio >= 8 / 9 - 1e-12


def test_a_larger_rho_can_hit_a_draft_by_its_residual():
    draft, target = D.kseq_worst_case()
    assert KSeq(rho=4 / 3).acceptance(draft, target, 2) == pytest.approx(0.88888889, abs=5e-9)
    assert KSeq(rho=5 / 3).acceptance(draft, target, 2) == pytest.approx(0.91111111, abs=5e-9)
    np.testing.assert_allclose(
        KSeq(rho=5 / 3).output_distribution(draft, target, 2), target, atol=1e-12
    )


@pytest.mark.parametrize("k", [1, 2, 3, 8, 100])
def test_where_it_is_optimal(k):
    one_hot, spread = np.array([0.0, 1.0, 0.0]), np.array([0.2, 0.3, 0.5])
    for draft, target in (
        (spread, spread),
        (one_hot, spread),
        (spread, one_hot),
        (one_hot, one_hot),
        D.uniform_on_subset(6, 2),
    ):
        assert KSeq().acceptance(draft, target, k) == pytest.approx(
            optimal_acceptance(draft, target, k), abs=1e-12
        )
    draft, target = D.five_tokens()
    assert KSeq().acceptance(draft, target, 1) == pytest.approx(0.6, abs=1e-12)


# --- extremes ---


@pytest.mark.parametrize("k", [1_000, 30_000, 10**6])
@pytest.mark.parametrize("vocabulary", [3, 1000])
def test_very_many_drafts(vocabulary, k):
    draft, target = D.zipf(vocabulary, mismatch=2.0, seed=2)
    p, q = torch.tensor(draft), torch.tensor(target)
    rho = optimal_rho(p, q, k)
    assert torch.isfinite(rho)
    assert 1 <= rho <= k
    # Once p_acc rounds to 1 many rho will do; bisection may stop at a larger one.
    by_bisection = acceptance_of_one(p, q, bisected_rho(p, q, k, 100))
    found = acceptance_of_any(acceptance_of_one(p, q, rho), k)
    assert float(found) == pytest.approx(float(acceptance_of_any(by_bisection, k)), abs=1e-12)
    assert float(signed_residual(p, q, rho, k).min()) > -1e-12
    acceptance = KSeq().acceptance(draft, target, k)
    assert KSeq().acceptance(draft, target, k // 2) - 1e-12 <= acceptance <= 1
    assert acceptance <= optimal_acceptance(draft, target, k) + 1e-12
    assert acceptance >= float(guarantee(p, q, k)) - 1e-12


def test_a_tiny_overlap_keeps_its_digits():
    """beta = 1e-12: 1 - (1 - beta)^k computed as written would be 1.00009e-12 k."""
    draft = np.array([1 - 1e-12, 1e-12, 0.0])
    target = np.array([0.0, 0.5, 0.5])
    assert KSeq().acceptance(draft, target, 1) == pytest.approx(1e-12, rel=1e-9)
    assert KSeq().acceptance(draft, target, 1000) == pytest.approx(1e-9, rel=1e-6)


def test_a_token_the_target_never_says_is_never_selected():
    draft, target = np.array([0.9, 0.1, 0.0]), np.array([0.0, 0.2, 0.8])
    tokens = np.zeros((50_000, 3), dtype=int)
    assert (KSeq().select(draft, target, tokens, 0).token != 0).all()
    assert not KSeq().select(draft, target, tokens, 0).accepted.any()
