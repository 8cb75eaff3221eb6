"""The rival token rules: exact distributions, recorded values, what each is worth, and what they
refuse.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from launches import as_on_a_gpu
from torch._subclasses.fake_tensor import FakeTensorMode

from spectr_lite import transport, verifiers
from spectr_lite.distributions import IID, TopM, WithoutReplacement, probability_of
from spectr_lite.stats import chi_square
from spectr_lite.transport import nested
from spectr_lite.verifiers import coupling, nodes, optimal
from spectr_lite.verifiers.importance import Importance
from spectr_lite.verifiers.recursive import Recursive, residual
from spectr_lite.verifiers.recursive_wor import RecursiveWithoutReplacement

# Each rule with the ways of drafting it is made for.
RULES = [
    ("importance", IID()),
    ("naive", IID()),
    ("naive", WithoutReplacement()),
    ("recursive", IID()),
    ("recursive-wor", WithoutReplacement()),
    ("spechub", TopM(1)),
    ("target-only", IID()),
    ("target-only", WithoutReplacement()),
    ("target-only", TopM(1)),
    ("target-only", TopM(3)),
]


def pairs(count=25, seed=0):
    """Random pairs of 1 to 5 tokens, some with zeros on either side, with a number of drafts."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        vocabulary, k = int(rng.integers(1, 6)), int(rng.integers(1, 4))
        draft, target = rng.dirichlet(np.full(vocabulary, 0.6), size=2)
        if vocabulary > 2 and index % 5 == 0:
            draft[0] = 0
        if vocabulary > 2 and index % 3 == 0:
            target[-1] = 0
        yield draft / draft.sum(), target / target.sum(), k
    yield np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.6, 0.4]), 2  # the draft says one thing only


def total_variation(probs, other):
    return 0.5 * np.abs(np.asarray(probs) - np.asarray(other)).sum()


@pytest.mark.parametrize(("name", "probs"), RULES)
def test_a_rule_is_lossless_counts_its_own_acceptance_and_stays_below_the_optimum(name, probs):
    rule = verifiers.get(name)
    for draft, target, k in pairs():
        k = 2 if name == "spechub" else k
        assert total_variation(rule.output_distribution(draft, target, k, probs), target) < 1e-13
        drafted, mass = probs.tuples(torch.as_tensor(draft), k)
        output = rule._given_drafts(torch.as_tensor(draft), torch.as_tensor(target), drafted)
        inside = torch.zeros(len(drafted), len(draft) + 1, dtype=torch.float64)
        inside.scatter_(-1, drafted % (len(draft) + 1), 1.0)
        by_hand = float(mass @ (output * inside[:, :-1]).sum(-1))
        acceptance = rule.acceptance(draft, target, k, probs)
        assert acceptance == pytest.approx(by_hand, abs=1e-12)
        optimum = transport.optimal_acceptance(draft, target, k, probs)
        assert acceptance <= optimum + 1e-12
        if name == "spechub":
            assert acceptance == pytest.approx(optimum, abs=1e-12)


# Values from an independent implementation.
RECORDED = [
    {
        "draft": [0.6, 0.3, 0.1],
        "target": [0.3, 0.4, 0.3],
        "k": 3,
        "target-only": 0.6249,
        "naive": 0.789,
        "recursive": 0.848,
        "recursive-wor": 1.0,
    },
    {
        "draft": [0.6, 0.3, 0.1],
        "target": [0.3, 0.4, 0.3],
        "k": 1,
        "target-only": 0.33,
        "naive": 0.7,
        "recursive": 0.7,
        "recursive-wor": 0.7,
    },
]


@pytest.mark.parametrize("case", RECORDED)
def test_recorded_acceptance(case):
    for name in ("target-only", "naive", "recursive", "recursive-wor"):
        found = verifiers.get(name).acceptance(case["draft"], case["target"], case["k"])
        assert found == pytest.approx(case[name], abs=1e-12), name


def test_importance_sampling_reaches_the_optimum_with_two_drafts_when_nothing_is_truncated():
    rule = verifiers.get("importance")
    for seed in range(20):
        draft, target = np.random.default_rng(seed).dirichlet(np.full(6, 0.6), size=2)
        optimum = transport.optimal_acceptance(draft, target, 2)
        assert rule.acceptance(draft, target, 2) == pytest.approx(optimum, abs=1e-9)


def test_the_tournament_is_not_optimal_with_three_drafts():
    draft, target = np.random.default_rng(3).dirichlet(np.full(4, 0.6), size=(40, 2)).swapaxes(0, 1)
    short = transport.optimal_acceptance(draft, target, 3) - verifiers.get("importance").acceptance(
        draft, target, 3
    )
    assert short.min() > -1e-9
    assert short.max() > 1e-3


def test_a_cup_of_optimal_matches_between_equals_is_optimal():
    """On an edge of the hull T is linear in R, so T^2 - R is largest at its ends, where T = U^2."""
    draft, target = np.random.default_rng(5).dirichlet(np.full(9, 0.6), size=(30, 2)).swapaxes(0, 1)
    player, q = torch.as_tensor(draft), torch.as_tensor(target)
    for k in (2, 4, 8):
        player = nested.plan(player, q, 2).winner(player)
        best = transport.optimal_acceptance(draft, target, k)
        np.testing.assert_allclose(torch.minimum(player, q).sum(-1), best, atol=1e-12)


def test_truncating_the_tournament_costs_acceptance_and_no_exactness():
    draft, target = np.random.default_rng(4).dirichlet(np.full(6, 0.6), size=2)
    full, cut = Importance(), Importance(truncation=1)
    assert cut.acceptance(draft, target, 2) < full.acceptance(draft, target, 2) - 1e-3
    assert total_variation(cut.output_distribution(draft, target, 2), target) < 1e-13


def test_the_published_pairs_of_spechub_are_the_hub_and_one_draw_of_the_rest():
    draft = np.array([0.2, 0.5, 0.3])
    hub = int(draft.argmax())
    published = np.zeros(3)  # P(the pair is {hub, x})
    for x in (0, 2):
        published[x] += draft[x]  # (x, hub)
        published[x] += draft[hub] * draft[x] / (1 - draft[hub])  # (hub, x)
    drafted, mass = TopM(1).tuples(torch.as_tensor(draft), 2)
    ours = np.zeros(3)
    np.add.at(ours, drafted[:, 1].numpy(), mass.numpy())
    assert (drafted[:, 0] == hub).all()
    np.testing.assert_allclose(ours, published, atol=1e-15)


def test_spechub_with_nothing_beside_the_hub_says_what_the_target_says():
    draft, target = torch.tensor([[0.0, 1.0, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drafted = TopM(1).sample(draft.expand(20_000, -1), 2, generator)
    assert (drafted == torch.tensor([1, -1])).all()
    chosen = verifiers.get("spechub")._select(draft, target, drafted, generator)
    assert chi_square(np.bincount(chosen, minlength=3), target).p_value > 1e-6


@pytest.mark.parametrize("name", ["coupling", "kseq", "naive", "optimal", "recursive"])
def test_a_draft_refused_by_rounding_is_replaced_by_a_token_of_the_target(name, monkeypatch):
    """In float32 the target may lie below the draft at one token, and nowhere above it."""
    for module in (coupling, nodes, optimal):
        monkeypatch.setattr(
            module, "uniform", lambda shape, _: torch.full(shape, 1 - 2**-53).double()
        )
    draft = torch.tensor([0.3, 0.7, 0.0, 0.0])
    target = torch.nextafter(draft, torch.tensor([0.0, 1.0, 0.0, 0.0]) * draft)
    assert target[0] < draft[0] and (target[1:] == draft[1:]).all()
    rule = verifiers.get(name)
    tokens = torch.zeros(3000, rule.only_k or 2, dtype=torch.int64)
    many = draft.expand(3000, -1), target.expand(3000, -1)
    found = rule._select(*many, tokens, torch.Generator().manual_seed(0))
    assert chi_square(np.bincount(found, minlength=2), target[:2]).p_value > 1e-6


# --- dead drafts, sampling, devices ---


@pytest.mark.parametrize("name", ["coupling", "kseq", "optimal", "recursive"])
def test_a_row_without_a_living_draft_says_what_the_target_says(name, rows=8):
    """Few rows are selected one by one. No walk asks a rule about such a row."""
    draft, target = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]], dtype=torch.float64)
    rule, generator = verifiers.get(name), torch.Generator().manual_seed(0)
    tokens = torch.full((rows, rule.only_k or 2), -1)
    many = draft.expand(rows, -1), target.expand(rows, -1)
    found = [rule._select(*many, tokens, generator) for _ in range(4000 // rows)]
    counts = np.bincount(torch.cat(found), minlength=3)
    assert chi_square(counts, target).p_value > 1e-6


@pytest.mark.parametrize("name", ["importance", "naive", "recursive", "target-only"])
def test_dead_drafts_are_as_good_as_absent(name):
    rng = np.random.default_rng(1)
    draft, target = (torch.as_tensor(probs) for probs in rng.dirichlet(np.ones(4), size=2))
    rule = verifiers.get(name)
    tokens = torch.tensor([[2, -1, 0, 0], [-1, 1, -1, 3], [-1, -1, -1, 2]])
    together = rule._given_drafts(draft, target, tokens)
    for row, probs in zip(tokens, together, strict=True):
        alone = rule._given_drafts(draft, target, row[row >= 0])
        torch.testing.assert_close(probs, alone, atol=1e-14, rtol=0)


@pytest.mark.parametrize(("name", "probs"), RULES)
def test_sampling_follows_the_conditional_distribution(name, probs):
    rng = np.random.default_rng(2)
    draft, target = (torch.as_tensor(row) for row in rng.dirichlet(np.ones(4), size=2))
    k, rows = 2, 20_000
    generator = torch.Generator().manual_seed(5)
    tokens = probs.sample(draft, k, generator)
    exact = verifiers.get(name)._given_drafts(draft, target, tokens)
    drawn = verifiers.get(name)._select(
        draft.expand(rows, -1), target.expand(rows, -1), tokens.expand(rows, -1), generator
    )
    seen = torch.bincount(drawn, minlength=4) / rows
    # Five standard deviations of a frequency; a zero must stay a zero.
    assert ((seen - exact).abs() <= 5 * (exact * (1 - exact) / rows).sqrt() + 1e-12).all()


@pytest.mark.parametrize("name", ["naive", "recursive", "recursive-wor", "spechub", "target-only"])
def test_a_rule_reads_no_value_on_the_host(name):
    draft = torch.full((4, 1000), 1e-3)
    tokens = torch.zeros(4, 2, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    with as_on_a_gpu(), FakeTensorMode() as mode:
        fake, drafted = mode.from_tensor(draft), mode.from_tensor(tokens)
        assert verifiers.get(name)._select(fake, fake, drafted, generator).shape == (4,)


def test_float32_at_a_large_vocabulary_keeps_the_residual_sane():
    rng = torch.Generator().manual_seed(0)
    draft, target = torch.randn(2, 3, 20_000, generator=rng).mul(3).softmax(-1)
    wide = Recursive()._acceptance(draft.double(), target.double(), 8, IID())
    torch.testing.assert_close(
        Recursive()._acceptance(draft, target, 8, IID()), wide, atol=1e-5, rtol=0
    )


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "probs"),
    [
        ("recursive", WithoutReplacement()),
        ("recursive-wor", IID()),
        ("importance", TopM(1)),
        ("naive", TopM(2)),
        ("spechub", IID()),
        ("spechub", TopM(2)),
    ],
)
def test_a_rule_refuses_drafts_of_another_distribution(name, probs):
    with pytest.raises(ValueError, match=r"drafting: .*target-only"):
        verifiers.get(name).acceptance([0.5, 0.5], [0.2, 0.8], 2, probs)


def test_counts_and_parameters_are_checked():
    with pytest.raises(ValueError, match="defined for k=2 only, found 3"):
        verifiers.get("spechub").acceptance([0.5, 0.5], [0.2, 0.8], 3)
    with pytest.raises(ValueError, match="truncation: found 0"):
        Importance(truncation=0)


# --- mistakes that look right: each must fail the check that the rules above pass ---


class ForgetsToRemove(RecursiveWithoutReplacement):
    """Drafts without replacement, but the draft keeps the rejected tokens."""

    def _given_drafts(self, draft, target, tokens):
        return Recursive()._given_drafts(draft, target, tokens)


class RemovesFromRepeats(Recursive):
    """Drafts with repeats, but rejected tokens leave the draft."""

    def _given_drafts(self, draft, target, tokens):
        return RecursiveWithoutReplacement()._given_drafts(draft, target, tokens)


class KeepsTheFirstResidual(Recursive):
    """Every draft is coupled with the target itself; only the last draw uses the residual."""

    def _given_drafts(self, draft, target, tokens):
        accept = (probability_of(target, tokens) / probability_of(draft, tokens)).clamp_max(1)
        reached = torch.cumprod(torch.cat([torch.ones_like(accept[:, :1]), 1 - accept], -1), -1)
        probs = reached[:, -1:] * residual(target, draft)
        return probs.scatter_add(-1, tokens, accept * reached[:, :-1])


class TakesTheDraftForTheWinner(Importance):
    """The tournament's winner coupled as if it followed the draft."""

    def _tournament(self, draft, target, k):
        matches, _all_probs = super()._tournament(draft, target, k)
        return matches, np.tile(draft, (k, 1))


@pytest.mark.parametrize(
    "rule",
    [
        ForgetsToRemove(),
        RemovesFromRepeats(),
        KeepsTheFirstResidual(),
        TakesTheDraftForTheWinner(),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_a_wrong_rule_is_caught(rule):
    draft, target = [0.4, 0.25, 0.2, 0.1, 0.05], [0.1, 0.3, 0.1, 0.2, 0.3]
    assert total_variation(rule.output_distribution(draft, target, 3), target) > 1e-3


# --- the recorded cost of a call ---


def test_the_summary_of_the_benchmark_is_made_from_its_records():
    from spectr_experiments import command

    root = command.CHECKOUT
    name, content = command.summary(
        command.experiment("verifiers"),
        [command.run_at(path) for path in (root / "results/benchmark-verifiers").iterdir()],
    )
    shipped = json.loads(content)
    assert shipped == json.loads((root / "spectr_lite/results" / name).read_bytes())
    assert {row["job"] for run in shipped["runs"] for row in run["rows"]} == {"token", "block"}
