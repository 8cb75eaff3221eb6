"""Verification in three steps: exact at each node, the same walk, no more launches than it may have."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launches import as_on_a_gpu, launches
from prefix_trees import prefix_tree
from strategies import pairs

from spectr_lite import verifiers
from spectr_lite.decoding import loop
from spectr_lite.decoding.greedy import compare
from spectr_lite.decoding.sampling import Sampling
from spectr_lite.distributions import draw, fixed_point
from spectr_lite.verifiers import nodes
from spectr_lite.verifiers.paths import emit

AWKWARD = [
    ([1.0], [1.0]),
    ([0.0, 1.0], [1.0, 0.0]),
    ([1.0, 0.0], [0.5, 0.5]),
    ([0.5, 0.5], [0.0, 1.0]),
    ([0.25, 0.25, 0.5], [0.25, 0.25, 0.5]),
    ([0.2, 0.2, 0.6], [0.4, 0.4, 0.2]),
    ([0.0, 0.5, 0.5], [0.5, 0.5, 0.0]),
]


def chances(rule, parameters, draft, target, tokens) -> torch.Tensor:
    """P(draft i is accepted | none before), (n, k): the largest coin that passes, by bisection."""
    low, high = torch.zeros(tokens.shape).double(), torch.ones(tokens.shape).double()
    for _ in range(60):
        middle = (low + high) / 2
        passed = torch.zeros_like(tokens, dtype=torch.bool)
        for i in range(tokens.shape[-1]):
            coins = torch.full_like(middle, torch.inf)  # so that no other draft passes
            coins[:, i] = middle[:, i]
            found = rule._accepted(parameters, draft, target, tokens, coins)
            passed[:, i] = found == i
        low, high = torch.where(passed, middle, low), torch.where(passed, high, middle)
    return torch.where(tokens >= 0, high, 0.0).round(decimals=15)


def selected(rule, draft, target, tokens) -> torch.Tensor:
    """P(Y = y | tuple), (n, V), from what the three steps ask of a rule at a node."""
    rows = len(tokens)
    draft, target = draft.expand(rows, -1), target.expand(rows, -1)
    parameters = rule._parameters(draft, target, tokens)
    chance = chances(rule, parameters, draft, target, tokens)
    reached = torch.cumprod(1 - chance, -1)
    first = chance * torch.nn.functional.pad(reached[:, :-1], (1, 0), value=1.0)
    left = rule._left(parameters, draft, target)
    total = left.sum(-1, keepdim=True)
    probs = reached[:, -1:] * torch.where(total > 0, left / total, target)
    return probs.scatter_add(-1, tokens.clamp_min(0), first)


def error_of(rule, draft, target, k, dead=0) -> float:
    """Largest deviation from the target, over all tuples of k living drafts and some dead ones."""
    draft, target = (torch.as_tensor(np.asarray(side)).double() for side in (draft, target))
    living = torch.tensor(list(itertools.product(range(len(draft)), repeat=k)))
    mass = draft[living].prod(-1)
    living, mass = living[mass > 0], mass[mass > 0]
    tokens = torch.nn.functional.pad(living, (dead, 0), value=-1)
    with as_on_a_gpu():
        return float((mass @ selected(rule, draft, target, tokens) - target).abs().max())


@pytest.mark.parametrize("name", ["kseq", "recursive"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_every_awkward_node_is_lossless(name, k):
    for draft, target in AWKWARD:
        for dead in (0, 1):
            assert error_of(verifiers.get(name), draft, target, k, dead) < 1e-12


@given(pair=pairs(max_vocabulary=4), k=st.integers(1, 3))
def test_every_node_is_lossless(pair, k):
    for name in ("kseq", "recursive", *(["coupling"] if k == 1 else [])):
        assert error_of(verifiers.get(name), *pair, k) < 1e-12


def test_the_check_sees_another_beta():
    class Wrong(verifiers.get("kseq").__class__):
        def _left(self, parameters, draft, target):
            return (target - draft * parameters[0]).clamp_min(0)  # right at rho* only

    assert error_of(Wrong(rho=1.9), [0.5, 0.3, 0.2], [0.3, 0.3, 0.4], 2) > 1e-3


# --- the walk ---


def walked(rule, draft, target, paths, coins, last_coin):
    """`nodes.in_three_steps` for one row, node by node: (path, accepted, last token)."""
    count, length = paths.shape
    alive = [j for j in range(count) if paths[j, 0] >= 0]
    for depth in range(length):
        path = alive[0]
        tokens = torch.tensor([[int(paths[j, depth]) if j in alive else -1 for j in range(count)]])
        here = draft[path, depth][None], target[path, depth][None]
        parameters = rule._parameters(*here, tokens)
        won = int(rule._accepted(parameters, *here, tokens, coins[depth][None]))
        if won < 0:
            left = rule._left(parameters, *here)
            return path, depth, int(draw(left, here[1], last_coin[None]))
        alive = [j for j in alive if paths[j, depth] == paths[won, depth]]
    return alive[0], length, int(draw(target[alive[0], length], target[0, 0], last_coin))


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("name", ["kseq", "recursive", "optimal"])
def test_the_steps_walk_as_one_would_node_by_node(name, dead):
    rule, ends = verifiers.get(name), set()
    for seed in range(12):
        draft, target, paths = prefix_tree(3, 4, 3, 5, seed, dead)
        generator = torch.Generator().manual_seed(seed)
        with as_on_a_gpu():
            coins = rule._coins((3, 3), 4, generator)
            last = torch.rand(3, dtype=torch.float64, generator=generator)
            block = nodes.in_three_steps(rule, draft, target, paths, coins, last)
            for row in range(3):
                path, accepted, token = walked(
                    rule, *(part[row] for part in (draft, target, paths, coins, last))
                )
                found = emit(paths[row], *map(torch.tensor, (path, accepted, token)))
                assert torch.equal(block.tokens[row], found.tokens)
                assert (int(block.accepted[row]), int(block.path[row])) == (accepted, path)
                ends.add(accepted)
    assert ends == {0, 1, 2, 3}


# --- the draw ---


def test_a_draw_takes_the_token_whose_share_holds_the_coin():
    weights = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.0]).expand(5, -1)
    coins = torch.tensor([0.0, 0.333, 0.334, 0.99999, 1 - 2**-53], dtype=torch.float64)
    assert draw(weights, weights, coins).tolist() == [1, 1, 3, 3, 3]


def test_a_draw_from_nothing_is_one_from_the_other_row():
    empty, other = torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]])
    assert draw(empty, other, torch.tensor([0.7])).tolist() == [1]


def test_sums_do_not_depend_on_the_order():
    weights = torch.rand(50_000, generator=torch.Generator().manual_seed(0)).double() / 25_000
    order = torch.randperm(50_000, generator=torch.Generator().manual_seed(1))
    assert fixed_point(weights).sum() == fixed_point(weights[order]).sum()
    assert float(fixed_point(weights).sum()) * 2.0**-60 == pytest.approx(float(weights.sum()))
    assert weights.cumsum(0)[-1] != weights[order].cumsum(0)[-1]


# --- temperature 0 ---


def test_greedy_verification_compares_tokens():
    logits = torch.full((1, 5, 4), -1.0)  # K = 2, L = 2
    logits[0, [0, 1, 2, 3, 4], [3, 1, 2, 0, 0]] = 1.0  # the target's best: 3; then 1, 2 on path 0
    for drafted, block in (([3, 1], [3, 1, 2]), ([3, 0], [3, 1, -1]), ([2, 1], [3, -1, -1])):
        paths = torch.tensor([[drafted, drafted]])
        found = compare(None, paths, [], logits, None, None)
        assert found[0].tolist() == [block]
        assert found[1].tolist() == [sum(token >= 0 for token in block) - 1]


@pytest.mark.parametrize("bad", [[torch.nan], [torch.inf], [-torch.inf] * 4])
def test_greedy_verification_stops_where_the_target_is_no_distribution(bad):
    logits = torch.full((1, 3, 4), -1.0)
    logits[0, [0, 1, 2], [3, 1, 2]] = 1.0
    logits[0, 1, : len(bad)] = torch.tensor(bad)
    block, accepted, _ = compare(None, torch.tensor([[[3, 1]]]), [], logits, None, None)
    assert block.tolist() == [[3, -1, -1]] and accepted.tolist() == [1]


# --- launches without Triton, at K = L = 8 and V = 49,152 ---


@pytest.mark.parametrize(
    ("name", "most"), [("kseq", 400), ("recursive", 400), ("optimal", 600), ("optimal-block", 800)]
)
def test_a_turn_is_verified_in_so_many_launches_of_torch(name, most):
    rule = verifiers.get(name)
    assert 50 < len(launches(loop.verify_paths, rule, Sampling())) <= most


def test_greedy_verification_takes_ten_launches():
    names = launches(loop.selection(None, 8, Sampling(0), torch.device("cuda")), None, Sampling(0))
    assert 5 < len(names) <= 10, names
