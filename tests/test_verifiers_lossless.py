"""Every registered rule, under every way of drafting it accepts and every number of drafts it takes.

Nothing here names a rule, except where shared reference values exist for it: a rule that is registered
later is tested without a change.
"""

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
from wrong_variants import KNOWN_BIAS

from spectr_lite import distributions as D
from spectr_lite import verifiers
from spectr_lite.check import is_defined
from spectr_lite.distributions import IID, Drafting, TopM, WithoutReplacement
from spectr_lite.stats import chi_square
from spectr_lite.transport import optimal_acceptance

DRAWS = 6_000
FALSE_ALARM = 1e-6  # of each chi-square test; some 300 run, with fixed seeds
CASES = json.loads((Path(__file__).parent / "cases" / "verifiers.json").read_text())
RULES = [name for name in verifiers.names() if isinstance(verifiers.get(name), verifiers.Verifier)]


def accepts(rule: verifiers.Verifier, drafting: Drafting) -> bool:
    try:
        rule._check_drafting(drafting)
    except ValueError:
        return False
    return True


def settings_of(ks: tuple[int, ...]) -> list:
    """(name, distribution, k) for every rule, the distributions it is valid for and the k it takes."""
    all_probs = (IID(), WithoutReplacement(), TopM(1), TopM(2), TopM(9))
    return [
        pytest.param(name, drafting, k, id=f"{name}-{drafting}-{k}")
        for name in RULES
        for drafting, k in itertools.product(all_probs, ks)
        if accepts(verifiers.get(name), drafting) and is_defined(name, k)
    ]


def tensors(draft: np.ndarray, target: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(draft), torch.tensor(target)


def members(rule: verifiers.Verifier, draft, target, k: int, drafting: Drafting) -> float:
    """P(Y in S), summed over every tuple from the distribution of Y given the tuple."""
    pair = D.check_pair(torch.tensor(draft), torch.tensor(target))
    tokens, mass = drafting.tuples(pair.draft, k)
    given_tuple = rule._given_drafts(pair.draft, pair.target, tokens)
    total = 0.0
    for drafted, weight, row in zip(tokens, mass, given_tuple, strict=True):
        inside = [token for token in set(drafted.tolist()) if token >= 0]
        total += float(weight * row[inside].sum())
    return total


# --- exact, by enumeration ---


@pytest.mark.parametrize(("name", "drafting", "k"), settings_of((1, 2, 3, 4)))
@given(pair=pairs(max_vocabulary=4))
def test_lossless_and_never_better_than_the_optimum(name, drafting, k, pair):
    rule, (draft, target) = verifiers.get(name), pair
    output = rule.output_distribution(draft, target, k, drafting=drafting)
    np.testing.assert_allclose(output, target, atol=1e-12)
    acceptance = rule.acceptance(draft, target, k, drafting=drafting)
    assert acceptance == pytest.approx(members(rule, draft, target, k, drafting), abs=1e-12)
    assert acceptance <= optimal_acceptance(draft, target, k, drafting=drafting) + 1e-12


@pytest.mark.parametrize(("name", "drafting", "k"), settings_of((1, 2, 3)))
@given(pair=pairs(max_vocabulary=4))
def test_the_distribution_given_a_tuple_is_a_distribution(name, drafting, k, pair):
    p, q = tensors(*pair)
    tokens, mass = drafting.tuples(p, k)
    given_tuple = verifiers.get(name)._given_drafts(p, q, tokens)
    assert (given_tuple >= 0).all()
    # A tuple of probability 1e-13 may be off by 1: it moves the output by no more than 1e-13.
    np.testing.assert_allclose(mass * given_tuple.sum(-1), mass, atol=1e-12)


# --- what select draws ---


@pytest.mark.parametrize(("name", "drafting", "k"), settings_of((1, 2, 3)))
@pytest.mark.parametrize("seed", [0, 1])
def test_select_follows_the_distribution_given_the_tuple(name, drafting, k, seed):
    rule = verifiers.get(name)
    if seed:
        draft, target = D.dirichlet(6, 0.7, seed)
    else:
        draft, target = np.array([0.5, 0.2, 0.2, 0.1, 0.0]), np.array([0.1, 0.4, 0.0, 0.3, 0.2])
    p, q = tensors(draft, target)
    generator = torch.Generator().manual_seed(seed)
    for drafted in drafting.sample(p.expand(3, -1), k, generator):
        tokens = drafted.expand(DRAWS, -1)
        if (drafted >= 0).all():
            chosen = rule.select(draft, target, tokens.numpy(), generator)
            inside = np.isin(chosen.token, drafted.numpy())
            np.testing.assert_array_equal(chosen.accepted, inside)
            chosen = chosen.token
        else:
            chosen = rule._select(p, q, tokens, generator).numpy()
        expected = rule._given_drafts(p, q, drafted).numpy()
        counts = np.bincount(chosen, minlength=len(draft))
        assert counts[expected < 1e-12].sum() == 0
        if expected.max() < 1 - 1e-4:
            assert chi_square(counts, expected / expected.sum()).p_value > FALSE_ALARM


@pytest.mark.parametrize(("name", "drafting", "k"), settings_of((2,)))
def test_rows_with_the_same_drafts_draw_their_own_numbers(name, drafting, k):
    """A batch of distributions beside one tuple, and one pair beside a batch of tuples."""
    rule = verifiers.get(name)
    draft, target = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.2, 0.1, 0.3, 0.4])
    drafted = torch.tensor([0, 1])
    expected = rule._given_drafts(*tensors(draft, target), drafted).numpy()
    for p, q, tokens in (
        (np.tile(draft, (DRAWS, 1)), target, drafted.numpy()),
        (draft, target, np.tile(drafted.numpy(), (DRAWS, 1))),
    ):
        counts = np.bincount(rule.select(p, q, tokens, 0).token, minlength=4)
        assert chi_square(counts, expected / expected.sum()).p_value > FALSE_ALARM


@pytest.mark.parametrize(("name", "drafting", "k"), settings_of((2, 4)))
def test_a_seed_repeats_the_tokens(name, drafting, k):
    rule = verifiers.get(name)
    draft, target = D.dirichlet(8, seed=3)
    tokens = drafting.sample(
        torch.tensor(draft).expand(500, -1), k, torch.Generator().manual_seed(0)
    )
    if (tokens < 0).any():
        return
    tokens = tokens.numpy()
    first = rule.select(draft, target, tokens, 7).token
    np.testing.assert_array_equal(first, rule.select(draft, target, tokens, 7).token)
    np.testing.assert_array_equal(
        first, rule.select(draft, target, tokens, torch.Generator().manual_seed(7)).token
    )
    generators = [np.random.default_rng(7) for _ in range(2)]
    again = [rule.select(draft, target, tokens, generator).token for generator in generators]
    np.testing.assert_array_equal(*again)
    if rule.name != "target-only" or k > 0:
        assert (first != rule.select(draft, target, tokens, 8).token).any()


# --- batches, kinds, dead drafts ---


@pytest.mark.parametrize(("name", "drafting", "k"), settings_of((1, 2, 3)))
def test_a_batch_is_its_rows(name, drafting, k):
    rule = verifiers.get(name)
    rows = [D.dirichlet(5, 0.6, seed) for seed in range(6)]
    draft, target = (np.stack(side).reshape(2, 3, 5) for side in zip(*rows, strict=True))
    for method in (rule.acceptance, rule.output_distribution):
        batch = method(draft, target, k, drafting=drafting)
        single = [method(p, q, k, drafting=drafting) for p, q in rows]
        np.testing.assert_allclose(batch.reshape(np.shape(single)), single, atol=1e-14)
    p, q = tensors(draft, target)
    tokens = drafting.sample(p, k, torch.Generator().manual_seed(0))
    batch = rule._given_drafts(p, q, tokens).reshape(6, 5)
    for row, (one, other) in enumerate(rows):
        single = rule._given_drafts(*tensors(one, other), tokens.reshape(6, k)[row])
        np.testing.assert_allclose(batch[row], single, atol=1e-14)
    chosen = rule._select(p, q, tokens, torch.Generator().manual_seed(0))
    assert chosen.shape == (2, 3)


@pytest.mark.parametrize(("name", "drafting", "k"), settings_of((2, 3, 4)))
@given(pair=pairs(max_vocabulary=4), data=st.data())
def test_dead_drafts_count_for_nothing(name, drafting, k, pair, data):
    """Rows with different numbers of living drafts, -1 in any column, equal separate calls."""
    rule = verifiers.get(name)
    p, q = tensors(*pair)
    tokens, _ = drafting.tuples(p, k)
    tokens = tokens[
        torch.tensor(data.draw(st.lists(st.integers(0, len(tokens) - 1), min_size=4, max_size=4)))
    ]
    sizes = [size for size in range(1, k + 1) if is_defined(name, size)]
    rows = []
    for row in tokens:
        alive = data.draw(st.permutations(range(k)))[: data.draw(st.sampled_from(sizes))]
        rows.append(torch.where(torch.isin(torch.arange(k), torch.tensor(alive)), row, -1))
    tokens = torch.stack(rows)
    living = (tokens >= 0).sum(-1)
    tokens = tokens[torch.tensor([int(n) in sizes for n in living], dtype=torch.bool)]
    if len(tokens) == 0:
        return
    together = rule._given_drafts(p.expand(len(tokens), -1), q.expand(len(tokens), -1), tokens)
    shared = rule._given_drafts(p, q, tokens)
    np.testing.assert_allclose(shared, together, atol=1e-12)
    for row, drafted in zip(together, tokens, strict=True):
        single = rule._given_drafts(p, q, drafted[drafted >= 0])
        np.testing.assert_allclose(row, single, atol=1e-12)


@pytest.mark.parametrize(("name", "drafting", "k"), settings_of((1, 2)))
def test_lists_arrays_and_tensors_agree(name, drafting, k):
    rule = verifiers.get(name)
    draft, target = D.five_tokens()
    tokens = drafting.sample(
        torch.tensor(draft).expand(50, -1), k, torch.Generator().manual_seed(0)
    )
    if (tokens < 0).any():
        return
    kinds = {
        "list": (draft.tolist(), target.tolist(), tokens.tolist()),
        "array": (draft, target, tokens.numpy()),
        "tensor": (*tensors(draft, target), tokens),
    }
    acceptance = {kind: rule.acceptance(p, q, k) for kind, (p, q, _) in kinds.items()}
    assert isinstance(acceptance["list"], float)
    assert isinstance(acceptance["array"], float)
    assert isinstance(acceptance["tensor"], torch.Tensor)
    assert len({float(value) for value in acceptance.values()}) == 1
    chosen = {kind: rule.select(*values, 3) for kind, values in kinds.items()}
    assert isinstance(chosen["array"].token, np.ndarray)
    assert isinstance(chosen["tensor"].token, torch.Tensor)
    np.testing.assert_array_equal(chosen["list"].token, chosen["array"].token)
    np.testing.assert_array_equal(chosen["tensor"].token.numpy(), chosen["array"].token)
    one = rule.select(draft, target, tokens[0].numpy(), 3)
    assert np.ndim(one.token) == 0


# --- large vocabularies in float32 ---


@pytest.mark.parametrize(("name", "drafting", "k"), settings_of((1, 2, 8)))
def test_a_large_vocabulary_in_float32(name, drafting, k):
    rule = verifiers.get(name)
    vocabulary = 256_000
    draft, target = (torch.tensor(side).float() for side in D.zipf(vocabulary, seed=5))
    generator = torch.Generator().manual_seed(0)
    p, q = (side / side.sum() for side in (draft, target))
    tokens = drafting.sample(p.expand(2, -1), k, generator)
    given_tuple = rule._given_drafts(p, q, tokens)
    assert (given_tuple >= 0).all()
    np.testing.assert_allclose(given_tuple.double().sum(-1), 1, atol=1e-4)
    chosen = rule.select(draft, target, tokens, generator).token
    assert ((chosen >= 0) & (chosen < vocabulary)).all()
    try:
        exact = rule.acceptance(
            draft.double() / draft.double().sum(),
            target.double() / target.double().sum(),
            k,
            drafting=drafting,
        )
    except ValueError as error:
        assert "enumeration" in str(error)
        return
    single = rule.acceptance(draft, target, k, drafting=drafting)
    assert float(single) == pytest.approx(float(exact), abs=1e-5)


# --- reference values ---

FIELDS = {
    "nss": "target-only",
    "naive": "naive",
    "rrs_iid": "recursive",
    "rrsw": "recursive-wor",
    "kseq": "kseq",
    "alpha_star_iid": "optimal",
}


@pytest.mark.parametrize("field", FIELDS)
def test_reference_acceptance(field):
    rule = verifiers.get(FIELDS[field])
    found = [case for case in CASES if case.get(field) is not None]
    assert found
    for case in found:
        value = rule.acceptance(case["draft"], case["target"], case["k"])
        assert value == pytest.approx(case[field], abs=1e-9)


# --- mistakes are seen ---


@pytest.mark.parametrize(("variant", "k", "bias"), KNOWN_BIAS)
def test_wrong_variants_are_biased_by_the_known_amount(variant, k, bias):
    draft, target = D.five_tokens()
    output = variant().output_distribution(draft, target, k)
    assert np.abs(output - target).sum() / 2 == pytest.approx(bias, abs=6e-5)
