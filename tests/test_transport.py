"""The program, the cut, and the formula that needs neither: they must agree everywhere."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import pairs

from spectr_lite import distributions as D
from spectr_lite import transport
from spectr_lite.distributions import IID, TopM, WithoutReplacement, drafting
from spectr_lite.transport import (
    lp_bytes,
    lp_size,
    optimal_acceptance,
    program,
    solve_lp,
    worst_set,
)

CASES = Path(__file__).parent / "cases"
KSEQ = json.loads((CASES / "kseq.json").read_text())
VERIFIERS = json.loads((CASES / "verifiers.json").read_text())


def fractions(values: list[str]) -> np.ndarray:
    return np.array([float(Fraction(value)) for value in values])


def awkward_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    one_hot = np.array([0.0, 1.0, 0.0])
    spread = np.array([0.2, 0.3, 0.5])
    return [
        (np.array([1.0]), np.array([1.0])),
        (one_hot, one_hot),
        (one_hot, spread),
        (spread, one_hot),
        (spread, spread),
        (np.array([0.5, 0.5, 0, 0]), np.array([0, 0, 0.5, 0.5])),
        (np.array([0.5, 0.5, 0.0]), np.array([0, 0.5, 0.5])),
        (np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.2, 0.4, 0.24, 0.16]) / 1.0),
        (np.array([0.25] * 4), np.array([0.25] * 4)),
        (np.array([1 - 1e-9, 1e-9]), np.array([1e-9, 1 - 1e-9])),
        *(D.uniform_on_subset(4, support) for support in (1, 2, 4)),
        D.kseq_worst_case(),
        D.five_tokens(),
    ]


def random_pairs(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        vocabulary = int(rng.integers(2, 6))
        draft, target = rng.dirichlet(np.full(vocabulary, rng.choice([0.3, 1.0, 5.0])), size=2)
        if rng.random() < 0.3:
            draft[rng.integers(vocabulary)] = 0
        if rng.random() < 0.3:
            target[rng.integers(vocabulary)] = 0
        made.append((draft / draft.sum(), target / target.sum()))
    return made


def check_result(result, draft, target, k, drafting) -> None:
    """The plan has the right marginals, and it and its cut are worth what is claimed."""
    tokens, mass = drafting.tuples(torch.tensor(draft), k)
    drawn = np.zeros((len(draft),) * k)
    drawn[tuple(tokens.numpy().T)] = mass
    assert (result.plan >= 0).all()
    np.testing.assert_allclose(result.plan.sum(-1), drawn, atol=1e-9)
    np.testing.assert_allclose(result.plan.sum(tuple(range(k))), target, atol=1e-9)
    inside = sum(
        result.plan[x][list(set(x))].sum() for x in itertools.product(range(len(draft)), repeat=k)
    )
    assert inside == pytest.approx(result.acceptance, abs=1e-9)
    within = np.isin(tokens.numpy(), result.cut).all(-1)
    cut = 1 - mass.numpy()[within].sum() + target[list(result.cut)].sum()
    assert cut == pytest.approx(result.acceptance, abs=1e-9)


def possible(draft: np.ndarray, k: int, drafting) -> bool:
    return bool((drafting.tuples(torch.tensor(draft), k)[0] >= 0).all())


# --- the program against the formula: more than 500 fixed instances, and those hypothesis makes ---


@pytest.mark.parametrize("formulation", ["reduced", "literal"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_awkward_pairs(formulation, k):
    for draft, target in awkward_pairs():
        result = solve_lp(draft, target, k, formulation)
        assert result.acceptance == pytest.approx(optimal_acceptance(draft, target, k), abs=1e-9)
        check_result(result, draft, target, k, IID())


@pytest.mark.parametrize(("formulation", "count"), [("reduced", 150), ("literal", 100)])
def test_random_pairs(formulation, count):
    for index, (draft, target) in enumerate(random_pairs(count, seed=1)):
        k = 1 + index % (4 if formulation == "reduced" and len(draft) < 5 else 3)
        result = solve_lp(draft, target, k, formulation)
        assert result.acceptance == pytest.approx(optimal_acceptance(draft, target, k), abs=1e-9)
        check_result(result, draft, target, k, IID())


@pytest.mark.parametrize("drafting", [WithoutReplacement(), TopM(1), TopM(2), TopM(7)], ids=str)
def test_other_draft_distributions(drafting):
    solved = 0
    for index, (draft, target) in enumerate([*awkward_pairs(), *random_pairs(40, seed=2)]):
        k = 1 + index % 3
        if not possible(draft, k, drafting):
            continue
        result = solve_lp(draft, target, k, drafting=drafting)
        best = optimal_acceptance(draft, target, k, drafting=drafting)
        assert result.acceptance == pytest.approx(best, abs=1e-9)
        check_result(result, draft, target, k, drafting)
        solved += 1
    assert solved >= 35


def test_probabilities_below_the_solver_s_own_tolerance():
    draft = np.array([7.72814657e-12, 1.0 - 7.495967567e-11, 6.72315291e-11])
    target = np.array([4.31892131e-11, 0.992782973 - 4.31892131e-11, 0.007217027])
    best = optimal_acceptance(draft, target, 2)
    for formulation in ("reduced", "literal"):
        assert solve_lp(draft, target, 2, formulation).acceptance == pytest.approx(best, abs=1e-9)


@given(pair=pairs(max_vocabulary=4), k=st.integers(1, 3))
def test_any_pair(pair, k):
    best = optimal_acceptance(*pair, k)
    assert solve_lp(*pair, k).acceptance == pytest.approx(best, abs=1e-9)
    assert solve_lp(*pair, k, "literal").acceptance == pytest.approx(best, abs=1e-9)


# --- the formula against every set, with no order and no solver ---


@given(pair=pairs(max_vocabulary=5), k=st.integers(1, 9))
@pytest.mark.parametrize("drafting", [IID(), WithoutReplacement(), TopM(1), TopM(3)], ids=str)
def test_no_set_is_worse_than_the_worst_prefix(drafting, pair, k):
    """k > V included."""
    draft, target = pair
    k = min(k, 5) if drafting == IID() else k
    tokens, mass = drafting.tuples(torch.tensor(draft), k)
    tokens, mass = tokens.numpy(), mass.numpy()
    worst = 0.0
    for size in range(1, len(draft) + 1):
        for chosen in itertools.combinations(range(len(draft)), size):
            inside = mass[np.isin(tokens, [*chosen, -1]).all(-1)].sum()
            worst = max(worst, inside - target[list(chosen)].sum())
    assert optimal_acceptance(draft, target, k, drafting=drafting) == pytest.approx(
        1 - worst, abs=1e-11
    )


@given(pair=pairs(max_vocabulary=7), k=st.integers(1, 12))
def test_the_worst_set_proves_the_optimum(pair, k):
    draft, target = pair
    chosen = list(worst_set(draft, target, k))
    bound = 1 - draft[chosen].sum() ** k + target[chosen].sum()
    assert min(bound, 1.0) == pytest.approx(optimal_acceptance(draft, target, k), abs=1e-11)


@given(pair=pairs(max_vocabulary=7))
def test_more_drafts_and_fewer_repeats_never_hurt(pair):
    values = [optimal_acceptance(*pair, k) for k in (1, 2, 3, 5, 8, 50)]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(values))
    assert values[0] == pytest.approx(np.minimum(*pair).sum(), abs=1e-12)
    for k, value in ((1, values[0]), (2, values[1]), (5, values[3])):
        assert optimal_acceptance(*pair, k, drafting=WithoutReplacement()) >= value - 1e-10


def test_many_drafts_reach_all_the_target_can_share():
    draft, target = np.array([0.7, 0.3 - 1e-6, 1e-6, 0.0]), np.array([0.1, 0.2, 0.3, 0.4])
    assert optimal_acceptance(draft, target, 10**9) == pytest.approx(0.6, abs=1e-12)
    # 1 - 1e-6 to the millionth is 1/e: the digits are those of the tail, not of the sum.
    expected = 1 - (np.exp(1e6 * np.log1p(-1e-6)) - 0.3)
    assert optimal_acceptance(draft, target, 10**6) == pytest.approx(min(expected, 0.6), abs=1e-12)


def test_batches_and_kinds():
    rows = [D.dirichlet(6, seed=seed) for seed in range(4)]
    draft, target = (np.stack(side).reshape(2, 2, 6) for side in zip(*rows, strict=True))
    for way in (IID(), WithoutReplacement(), TopM(2)):
        batch = optimal_acceptance(draft, target, 3, drafting=way)
        single = [optimal_acceptance(p, q, 3, drafting=way) for p, q in rows]
        np.testing.assert_allclose(batch.ravel(), single, atol=1e-14)
        tensors = optimal_acceptance(torch.tensor(draft), torch.tensor(target), 3, drafting=way)
        np.testing.assert_allclose(tensors.numpy(), batch, atol=1e-14)
    lists = (side.tolist() for side in rows[0])
    assert optimal_acceptance(*lists, 3) == optimal_acceptance(*rows[0], 3)


# --- shared reference values ---


@pytest.mark.parametrize("case", KSEQ, ids=lambda case: f"{case['case']} k={case['k']}")
def test_reference_optimum(case):
    draft, target, k = fractions(case["p"]), fractions(case["q"]), case["k"]
    best = optimal_acceptance(draft, target, k)
    assert best == pytest.approx(case["otm_opt"], abs=1e-9)
    if len(draft) ** (k + 1) < 5000:
        assert solve_lp(draft, target, k, "literal").acceptance == pytest.approx(
            case["lp_full"], abs=1e-8
        )
    bound = np.minimum(target, 1 - (1 - draft) ** k).sum()
    assert bound == pytest.approx(case["upper_sum_min_q_1m1mp_k"], abs=1e-12)
    assert best <= bound + 1e-12
    # The worst set need not be unique; the reference's must be worth as much as ours.
    for chosen in (case["argmax_A"], list(worst_set(draft, target, k))):
        value = 1 - draft[chosen].sum() ** k + target[chosen].sum()
        assert value == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("index", range(len(VERIFIERS)))
def test_reference_optimum_under_every_distribution(index):
    case = VERIFIERS[index]
    draft, target, k = np.array(case["draft"]), np.array(case["target"]), case["k"]
    best = optimal_acceptance(draft, target, k)
    assert best == pytest.approx(case["alpha_star_iid"], abs=1e-9)
    chosen = list(case["argmax_set"])
    assert 1 - draft[chosen].sum() ** k + target[chosen].sum() == pytest.approx(best, abs=1e-9)
    if case.get("lp_iid") is not None:
        assert solve_lp(draft, target, k).acceptance == pytest.approx(case["lp_iid"], abs=1e-9)
    if case.get("alpha_star_wor") is not None:
        value = optimal_acceptance(draft, target, k, drafting=WithoutReplacement())
        assert value == pytest.approx(case["alpha_star_wor"], abs=1e-9)
    for m, expected in (case.get("hybrid") or {}).items():
        drafting = TopM(int(m)) if int(m) else IID()
        value = optimal_acceptance(draft, target, k, drafting=drafting)
        assert value == pytest.approx(expected, abs=1e-9)


# --- what is refused ---


def test_sizes_count_the_variables():
    draft, target = D.five_tokens()
    for k in (1, 2, 3):
        for formulation in ("reduced", "literal"):
            result = solve_lp(draft, target, k, formulation)
            assert result.variables == lp_size(5, k, formulation)
    assert lp_size(50, 2, "literal") == 125_000
    assert lp_size(50, 2) == 50 + 2 * 1225


def test_a_program_too_large_is_refused_with_its_size():
    draft, target = D.zipf(50)
    with pytest.raises(
        ValueError, match=r"V=50 and k=4.*312,500,000 variables.*GiB.*limit is 4 GiB"
    ):
        solve_lp(draft, target, 4, "literal")
    assert lp_bytes(50, 4, "literal") > program.LP_BYTES_LIMIT
    with pytest.raises(ValueError, match="GiB"):
        solve_lp(draft, target, 7)
    with pytest.raises(ValueError, match=r"about 10\^\d+ GiB"):
        solve_lp(draft, target, 10_000, "literal")
    with pytest.raises(ValueError, match=r"a plan of 101 axes; .* 64 axes"):
        solve_lp([1.0], [1.0], 100)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, "k: found 0"),
        ({"k": 2.0}, TypeError, r"k: expected a whole number, found 2\.0"),
        ({"k": True}, TypeError, "k: expected a whole number, found True"),
        ({"formulation": "dual"}, ValueError, "formulation: found 'dual'"),
        ({"draft": np.full((2, 5), 0.2)}, ValueError, r"draft: shape \(2, 5\) is a batch"),
        ({"draft": np.full(4, 0.25)}, ValueError, "vocabularies of 4 and 5"),
    ],
)
def test_bad_arguments(arguments, error, message):
    draft, target = D.five_tokens()
    with pytest.raises(error, match=message):
        solve_lp(**{"draft": draft, "target": target, "k": 2, **arguments})


def test_a_distribution_that_runs_out_of_tokens_has_no_plan():
    with pytest.raises(ValueError, match=r"k: under .* fewer than 3 tokens"):
        solve_lp(*D.bernoulli(0.3, 0.6), 3, drafting=WithoutReplacement())
    assert optimal_acceptance(*D.bernoulli(0.3, 0.6), 3, drafting=WithoutReplacement()) == 1


def test_worst_set_wants_one_pair():
    with pytest.raises(ValueError, match=r"draft: .*batch"):
        worst_set(np.full((2, 3), 1 / 3), np.full((2, 3), 1 / 3), 2)


def test_bytes_alone_limit_the_program():
    """More tuples than an enumeration of distributions may list, and still far from the limit in
    bytes.
    """
    draft, target = D.zipf(180)
    assert drafting.ENUMERATION_LIMIT < 180**3 and transport.lp_bytes(180, 2) < 2**28
    found = transport.solve_lp(draft, target, 2)
    assert found.acceptance == pytest.approx(
        transport.optimal_acceptance(draft, target, 2), abs=1e-9
    )
