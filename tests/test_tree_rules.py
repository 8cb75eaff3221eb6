"""Rules for whole paths: exact distributions by enumeration, known values, limits, mistakes,
shapes, devices.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from spectr_lite import transport, verifiers
from spectr_lite.decoding.enumeration import path_block_distribution, probs_by_prefix
from spectr_lite.distributions import IID, five_tokens, probability_of
from spectr_lite.models.markov import worked_pair
from spectr_lite.transport import nested
from spectr_lite.verifiers import paths as walk
from spectr_lite.verifiers.base import TreeVerifier, Verifier
from spectr_lite.verifiers.block import BlockVerification
from spectr_lite.verifiers.optimal_block import OptimalBlock
from spectr_lite.verifiers.paths import BlockGivenPaths, block_coins
from spectr_lite.verifiers.traversal import Traversal

PATH_RULES = ("block", "traversal", "multipath-block", "optimal-block")
SETTINGS = [
    (3, 1, 3),
    (3, 2, 1),
    (3, 2, 2),
    (2, 2, 3),
    (2, 3, 2),
    (2, 3, 3),
    (3, 3, 2),
    (3, 2, 3),
    (3, 3, 3),
]


def context_free(probs):
    return lambda prefix: np.asarray(probs)


def random_model(vocabulary, seed, zeros=False):
    """Distributions that depend on the whole context, without any structure; perhaps with
    impossible tokens.
    """

    def probs(prefix):
        rng = np.random.default_rng([seed, *(int(token) + 1 for token in prefix)])
        row = rng.dirichlet(np.full(vocabulary, 0.7))
        if zeros and rng.random() < 0.5:
            row[rng.integers(vocabulary)] = 0
        return row / row.sum()

    return probs


def joint_distribution(model, length):
    """The distribution of the next `length` tokens, (V,) * length."""
    probs = np.ones(())
    for table in probs_by_prefix(model, length - 1):
        probs = probs[..., None] * table
    return probs


def total_variation(probs, other):
    return 0.5 * np.abs(probs - other).sum()


def iid_rules():
    for name in verifiers.names():
        if IID in verifiers.get(name).valid_for:
            yield name


def takes(name, k):
    try:
        verifiers.get(name).check_drafts(k)
    except ValueError:
        return False
    return True


# --- exactness ---


@pytest.mark.parametrize(
    ("name", "vocabulary", "length", "k"),
    [(name, *size) for name in iid_rules() for size in SETTINGS if takes(name, size[-1])],
)
def test_the_finished_block_follows_the_target(name, vocabulary, length, k):
    # Every rule on one pair; the path rules on several, with impossible tokens on either side.
    for seed in range(3) if name in PATH_RULES else range(1):
        target = random_model(vocabulary, seed, zeros=seed == 1)
        draft = random_model(vocabulary, 100 + seed, zeros=seed > 0)
        probs, accepted = path_block_distribution(target, draft, verifiers.get(name), k, length)
        assert total_variation(probs, joint_distribution(target, length + 1)) < 1e-12
        assert 0 <= accepted <= length


@pytest.mark.parametrize("name", list(iid_rules()))
def test_the_finished_block_follows_the_target_on_the_worked_chain(name):
    target, draft = worked_pair()
    k = 2 if takes(name, 2) else 1
    probs, _ = path_block_distribution(
        target.next_probs, draft.next_probs, verifiers.get(name), k, 2
    )
    assert total_variation(probs, joint_distribution(target.next_probs, 3)) < 1e-12


# --- known values ---


def test_block_verification_against_token_wise_verification():
    target, draft = context_free([1 / 3, 2 / 3]), context_free([2 / 3, 1 / 3])
    _, token_wise = path_block_distribution(target, draft, verifiers.get("coupling"), 1, 2)
    _, block = path_block_distribution(target, draft, verifiers.get("block"), 1, 2)
    assert token_wise == pytest.approx(10 / 9, abs=1e-14)
    assert block == pytest.approx(11 / 9, abs=1e-14)


# Tokens emitted in one turn by K-SEQ, from independent enumerations.
CONTEXT_FREE = {1: [1.7, 2.19, 2.533], 2: [1.79135529, 2.36719204, 2.77552199]}
MARKOV = {1: [1.7, 2.19, 2.474], 2: [1.84, 2.45843739, 2.82493458], 3: [1.875, 2.53648268]}


@pytest.mark.parametrize("k", CONTEXT_FREE)
def test_the_walk_of_k_seq_without_context(k):
    target, draft = context_free([0.5, 0.3, 0.2]), context_free([0.2, 0.3, 0.5])
    for length, tokens in enumerate(CONTEXT_FREE[k], start=1):
        _, accepted = path_block_distribution(target, draft, verifiers.get("kseq"), k, length)
        assert 1 + accepted == pytest.approx(tokens, abs=1e-8)


@pytest.mark.parametrize("k", MARKOV)
def test_the_walk_of_k_seq_on_the_worked_chain(k):
    target, draft = worked_pair()
    for length, tokens in enumerate(MARKOV[k], start=1):
        _, accepted = path_block_distribution(
            target.next_probs, draft.next_probs, verifiers.get("kseq"), k, length
        )
        assert 1 + accepted == pytest.approx(tokens, abs=1e-8)


def test_greedy_multi_path_accepts_what_an_independent_implementation_recorded():
    target, draft = context_free([0.3, 0.4, 0.3]), context_free([0.6, 0.3, 0.1])
    for k, recorded in ((1, 0.7), (3, 0.887)):
        _, accepted = path_block_distribution(target, draft, verifiers.get("multipath-block"), k, 1)
        assert accepted == pytest.approx(recorded, abs=1e-12)


def test_the_order_of_the_rules_on_six_models():
    names = ("traversal", "recursive", "kseq", "multipath-block", "optimal", "optimal-block")
    mean = {
        name: np.mean(
            [
                path_block_distribution(
                    random_model(3, s), random_model(3, s + 50), verifiers.get(name), 2, 2
                )[1]
                for s in range(6)
            ]
        )
        for name in names
    }
    assert mean["recursive"] < mean["kseq"] < mean["optimal"] < mean["optimal-block"]
    assert max(mean["traversal"], mean["multipath-block"]) < mean["optimal-block"]


# --- limits ---


@pytest.mark.parametrize("name", ["traversal", "multipath-block", "optimal-block"])
def test_one_path_is_block_verification(name):
    target, draft = random_model(3, 1), random_model(3, 2)
    expected, accepted = path_block_distribution(target, draft, verifiers.get("block"), 1, 3)
    probs, found = path_block_distribution(target, draft, verifiers.get(name), 1, 3)
    assert found == pytest.approx(accepted, abs=1e-12)
    np.testing.assert_allclose(probs, expected, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "token_rule", "k"), [("block", "coupling", 1), ("optimal-block", "optimal", 3)]
)
def test_one_token_is_the_token_rule(name, token_rule, k):
    rng = np.random.default_rng(0)
    draft, target = (torch.as_tensor(row) for row in rng.dirichlet(np.ones(3), size=2))
    tokens, _ = IID().tuples(draft, k)
    torch.testing.assert_close(
        verifiers.get(name)._given_drafts(draft, target, tokens),
        verifiers.get(token_rule)._given_drafts(draft, target, tokens),
        atol=1e-13,
        rtol=0,
    )


def test_one_token_of_traversal_is_recursive_rejection_without_repeats():
    rng = np.random.default_rng(4)
    draft, target = (torch.as_tensor(row) for row in rng.dirichlet(np.ones(4), size=2))
    tokens = torch.tensor([[2, 0, 2, 1]])
    without_repeats = torch.tensor([[2, 0, 1]])
    torch.testing.assert_close(
        verifiers.get("traversal")._given_drafts(draft, target, tokens),
        verifiers.get("recursive-wor")._given_drafts(draft, target, without_repeats),
        atol=1e-13,
        rtol=0,
    )


def test_equal_models_accept_everything_and_disjoint_ones_nothing():
    probs, other = context_free([0.25, 0.75, 0.0]), context_free([0.0, 0.0, 1.0])
    for name in PATH_RULES:
        k = 2 if takes(name, 2) else 1
        if name != "multipath-block":
            assert path_block_distribution(probs, probs, verifiers.get(name), k, 2)[
                1
            ] == pytest.approx(2, abs=1e-12)
        assert path_block_distribution(probs, other, verifiers.get(name), k, 2)[1] == pytest.approx(
            0, abs=1e-12
        )


def test_greedy_multi_path_loses_by_ranking_tokens_that_are_equally_good():
    probs = context_free([0.25, 0.75])
    rule = verifiers.get("multipath-block")
    assert path_block_distribution(probs, probs, rule, 1, 2)[1] == pytest.approx(2, abs=1e-12)
    assert (
        path_block_distribution(probs, probs, rule, 2, 2)[1] < 1.7
    )  # the second path makes it worse


def test_the_optimal_marginal_is_best_for_every_weight():
    rng = np.random.default_rng(7)
    subsets = list(itertools.product((0, 1), repeat=5))
    for k in (2, 3):
        draft, target = rng.dirichlet(np.full(5, 0.7), size=2)
        winner = nested.plan(torch.as_tensor(draft), torch.as_tensor(target), k)
        winner = winner.winner(torch.as_tensor(draft)).numpy()
        for weight in (0.1, 0.5, 0.9, 1.0):
            best = min(weight * target @ s + 1 - (draft @ s) ** k for s in np.array(subsets))
            assert np.minimum(winner, weight * target).sum() == pytest.approx(best, abs=1e-12)
    assert np.minimum(winner, target).sum() == pytest.approx(
        transport.optimal_acceptance(draft, target, k), abs=1e-12
    )


# --- the batched methods against the exact distribution ---


def drawn_tree(rows, k, length, vocabulary=3, seed=0):
    """K paths drawn from a random draft, and the distributions at their nodes, as torch tensors."""
    target, draft = random_model(vocabulary, 11), random_model(vocabulary, 12)
    rng = np.random.default_rng(seed)
    paths = np.zeros((rows, k, length), dtype=np.int64)
    for index in np.ndindex(rows, k):
        for i in range(length):
            paths[index][i] = rng.choice(vocabulary, p=draft(tuple(paths[index][:i])))
    all_probs = [
        [[model(tuple(path[:i])) for i in range(last)] for path in paths.reshape(-1, length)]
        for model, last in ((draft, length), (target, length + 1))
    ]
    tables = [torch.as_tensor(np.array(probs)).view(rows, k, -1, vocabulary) for probs in all_probs]
    return *tables, torch.as_tensor(paths)


THREE_STEPS = ("coupling", "kseq", "recursive", "optimal", "optimal-block")


@pytest.mark.parametrize(
    ("name", "device"),
    [*((name, "cpu") for name in iid_rules()), *((name, "gpu") for name in THREE_STEPS)],
)
def test_a_drawn_block_follows_the_exact_distribution(name, device, monkeypatch):
    if device == "gpu":  # what it does there, here
        monkeypatch.setitem(nested.DENSE_LIMIT, "cpu", 1024)
        monkeypatch.setattr(walk, "SYNC_IS_FREE", set())
    k, length, copies = (2 if takes(name, 2) else 1), 2, 20_000 if device == "cpu" else 4_000
    draft_probs, target_probs, paths = drawn_tree(3, k, length)
    rule = verifiers.get(name)
    exact = rule._given_paths(draft_probs, target_probs, paths)
    torch.testing.assert_close(exact.stop.sum((-1, -2)), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(exact.extra.sum(-1)[exact.stop > 0], exact.stop[exact.stop > 0] ** 0)
    generator = torch.Generator().manual_seed(3)
    for row in range(3):
        expected: dict[tuple[int, ...], float] = {}
        for j, i in itertools.product(range(k), range(length + 1)):
            for token in range(3):
                block = (*paths[row, j, :i].tolist(), token, *[-1] * (length - i))
                mass = float(exact.stop[row, j, i] * exact.extra[row, j, i, token])
                expected[block] = expected.get(block, 0.0) + mass
        all_probs = (draft_probs[row], target_probs[row], paths[row])
        drawn = rule._verify(*(part.expand(copies, *part.shape) for part in all_probs), generator)
        blocks, counts = drawn.tokens.unique(dim=0, return_counts=True)
        seen = {
            tuple(block): count / copies
            for block, count in zip(blocks.tolist(), counts.tolist(), strict=True)
        }
        assert set(seen) <= {block for block, mass in expected.items() if mass > 0}
        for block, mass in expected.items():
            spread = (mass * (1 - mass) / copies) ** 0.5
            assert abs(seen.get(block, 0.0) - mass) <= 5 * spread + 1e-9
        length_of = (drawn.tokens >= 0).sum(-1) - 1
        assert torch.equal(drawn.accepted, length_of)
        kept = paths[row][drawn.path]
        same = (kept == drawn.tokens[:, :-1]) | (
            torch.arange(length) >= drawn.accepted.unsqueeze(-1)
        )
        assert same.all()


@pytest.mark.parametrize("name", ["traversal", "multipath-block", "optimal-block", "kseq"])
def test_dead_paths_are_as_good_as_absent(name):
    draft_probs, target_probs, paths = drawn_tree(6, 3, 2)
    paths[:, 1] = -1
    rule = verifiers.get(name)
    probs = rule._given_paths(draft_probs, target_probs, paths)
    keep = torch.tensor([0, 2])
    alone = rule._given_paths(draft_probs[:, keep], target_probs[:, keep], paths[:, keep])
    torch.testing.assert_close(probs.stop[:, keep], alone.stop, atol=1e-13, rtol=0)
    assert (probs.stop[:, 1] == 0).all()
    held = alone.stop > 0
    torch.testing.assert_close(probs.extra[:, keep][held], alone.extra[held], atol=1e-13, rtol=0)


@pytest.mark.parametrize("name", ["recursive", "kseq", "optimal", *PATH_RULES])
def test_a_rule_reads_no_value_on_the_host(name, monkeypatch):
    monkeypatch.setitem(nested.DENSE_LIMIT, "cpu", 1024)  # the path a GPU takes
    monkeypatch.setattr(walk, "SYNC_IS_FREE", set())
    k = 4 if takes(name, 4) else 1
    draft_probs, target_probs = (
        torch.full((2, k, 3, 900), 1 / 900),
        torch.full((2, k, 4, 900), 1 / 900),
    )
    paths, generator = torch.zeros(2, k, 3, dtype=torch.int64), torch.Generator().manual_seed(0)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(part) for part in (draft_probs, target_probs, paths)]
        block = verifiers.get(name)._verify(*fake, generator)
    assert block.tokens.shape == (2, 4)


@pytest.mark.parametrize("name", PATH_RULES)
def test_float32_and_a_long_path_stay_finite(name):
    generator = torch.Generator().manual_seed(1)
    k = 4 if takes(name, 4) else 1
    all_probs = torch.randn(2, 2, 1, 9, 500, generator=generator).mul(3).softmax(-1)
    draft_probs, target_probs = all_probs.expand(2, 2, k, 9, 500)  # they depend on the depth alone
    draft_probs = draft_probs[..., :8, :]
    paths = draft_probs.flatten(0, 2).multinomial(1, generator=generator).view(2, k, 8)
    probs = verifiers.get(name)._given_paths(draft_probs, target_probs, paths)
    assert probs.stop.isfinite().all() and probs.extra.isfinite().all()
    torch.testing.assert_close(
        probs.stop.double().sum((-1, -2)), torch.ones(2).double(), rtol=1e-4, atol=0
    )


# --- the public method ---


def test_verify_tree_takes_numpy_and_answers_in_kind():
    draft_probs, target_probs, paths = (part.numpy() for part in drawn_tree(4, 2, 3))
    block = verifiers.get("optimal-block").verify_tree(draft_probs, target_probs, paths, 0)
    assert isinstance(block.tokens, np.ndarray)
    assert block.tokens.shape == (4, 4)
    assert (block.accepted <= 3).all()


def test_verify_tree_refuses_what_does_not_fit():
    draft_probs, target_probs, paths = drawn_tree(4, 2, 3)
    rule = verifiers.get("kseq")
    with pytest.raises(ValueError, match="paths, draft_probs, target_probs: shapes"):
        rule.verify_tree(draft_probs, target_probs[..., :3, :], paths)
    with pytest.raises(ValueError, match="found id"):
        rule.verify_tree(draft_probs, target_probs, paths + 3)
    with pytest.raises(ValueError, match="row"):
        rule.verify_tree(draft_probs * 2, target_probs, paths)
    with pytest.raises(ValueError, match="defined for k=1 only, found 2"):
        verifiers.get("block").verify_tree(draft_probs, target_probs, paths)
    for name in ("recursive-wor", "spechub"):
        with pytest.raises(ValueError, match="not lossless for drafts drawn by IID"):
            verifiers.get(name).verify_tree(draft_probs, target_probs, paths)


# --- mistakes that look right: each must fail the check that the rules above pass ---


class StopsAtTheFirstFailure(BlockVerification):
    """Block verification from the root down, ending at the first coin that fails."""

    def _given_paths(self, draft_probs, target_probs, paths):
        coin, extra = block_coins(draft_probs[:, 0], target_probs[:, 0], paths[:, 0])
        fails = torch.nn.functional.pad(1 - coin[:, 1:], (0, 1), value=1.0)
        stop = torch.cumprod(coin, -1) * fails
        return BlockGivenPaths(stop.unsqueeze(1), extra.unsqueeze(1))


class TakesTheDraftForTheSelection(OptimalBlock):
    """Optimal selection, then block verification as if the path followed the draft."""

    def _given_paths(self, draft_probs, target_probs, paths):
        probs = super()._given_paths(draft_probs, target_probs, paths)
        chosen = probs.stop.sum(-1, keepdim=True)
        single = [
            BlockVerification()._given_paths(
                draft_probs[:, j : j + 1], target_probs[:, j : j + 1], paths[:, j : j + 1]
            )
            for j in range(paths.shape[-2])
        ]
        stop = torch.cat([part.stop for part in single], -2)
        return BlockGivenPaths(chosen * stop, torch.cat([part.extra for part in single], -3))


class KeepsDeletedTokens(Traversal):
    """Traversal that leaves a deleted token in the draft of its parent."""

    def _delete(self, i, leaf, token, weight, target, draft):
        super()._delete(i, leaf, torch.full_like(token, -1), weight, target, draft)


class RanksTiesInTwoWays(Verifier):
    """Greedy selection with target/draft capped at 1: ties go to the first draft, while the distribution
    of the selected token is worked out as if they went to the higher id."""

    def _given_drafts(self, draft, target, tokens):
        ratio = (target / draft).clamp_max(1)
        order, k = ratio.argsort(dim=-1, stable=True), tokens.shape[-1]
        above = draft.gather(-1, order).cumsum(-1)
        below = above - draft.gather(-1, order)
        skewed = torch.zeros_like(draft).scatter(-1, order, above**k - below**k)
        first = probability_of(ratio, tokens).argmax(-1, keepdim=True)
        chosen = tokens.gather(-1, first)
        accept = (probability_of(target, chosen) / probability_of(skewed, chosen)).clamp_max(1)
        left = (target - skewed).clamp_min(0)
        return ((1 - accept) * left / left.sum(-1, keepdim=True)).scatter_add(-1, chosen, accept)


@pytest.mark.parametrize(
    ("rule", "k", "length"),
    [
        (StopsAtTheFirstFailure(), 1, 2),
        (TakesTheDraftForTheSelection(), 2, 2),
        (KeepsDeletedTokens(), 2, 2),
        (RanksTiesInTwoWays(), 2, 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Verifier) else None,
)
def test_a_wrong_rule_is_caught(rule, k, length):
    draft, target = (context_free(probs) for probs in five_tokens())
    if isinstance(rule, TreeVerifier):
        target, draft = random_model(3, 1), random_model(3, 2)
    probs, _ = path_block_distribution(target, draft, rule, k, length)
    assert probs.sum() == pytest.approx(1, abs=1e-9)
    assert total_variation(probs, joint_distribution(target, length + 1)) > 1e-3
