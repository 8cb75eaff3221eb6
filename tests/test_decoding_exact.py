"""Theorem 2 by enumeration: one turn of the loop has the target distribution; known block
efficiencies.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from decoding_rules import WRONG, decoding_rules
from wrong_variants import StaleCount

from spectr_lite import verifiers
from spectr_lite.decoding import enumeration
from spectr_lite.decoding.enumeration import block_distribution, expected_tokens, joint_distribution
from spectr_lite.models.markov import MarkovModel, worked_pair


def context_free(probs):
    return lambda prefix: probs


def random_chain(vocabulary, seed):
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(np.full(vocabulary, 0.7), size=vocabulary + 1)
    return MarkovModel(rows[:-1], rows[-1])


def total_variation(probs, other):
    return 0.5 * np.abs(probs - other).sum()


# --- published and reference values ---


# K = 1, 2 from an independent enumeration; K = 3, 4 from this one, kept so that they cannot move.
CONTEXT_FREE = {
    1: [1.70000000, 2.19000000, 2.53300000, 2.77310000],
    2: [1.79135529, 2.36719204, 2.77552199, 3.06260943],
    3: [1.85851861, 2.50293548, 2.96498077, 3.29109056],
    4: [1.90600717, 2.60426314, 3.10993535, 3.46811075],
}
MARKOV = {
    1: [1.70000000, 2.19000000, 2.47400000, 2.63670000],
    2: [1.84000000, 2.45843739, 2.82493458, 3.03884151],
    3: [1.87500000, 2.53648268, 2.93849951, 3.17718671],
    4: [1.90392617, 2.60176445, 3.03512092, 3.29627951],
}


@pytest.mark.parametrize("num_drafts", CONTEXT_FREE)
def test_block_efficiency_of_kseq_without_context(num_drafts):
    draft, target = context_free([0.2, 0.3, 0.5]), context_free([0.5, 0.3, 0.2])
    found = [expected_tokens(target, draft, "kseq", num_drafts, length) for length in (1, 2, 3, 4)]
    np.testing.assert_allclose(found, CONTEXT_FREE[num_drafts], rtol=0, atol=1e-8)


@pytest.mark.parametrize("num_drafts", MARKOV)
def test_block_efficiency_of_kseq_on_the_worked_chain(num_drafts):
    target, draft = worked_pair()
    found = [
        expected_tokens(target.next_probs, draft.next_probs, "kseq", num_drafts, length)
        for length in (1, 2, 3, 4)
    ]
    np.testing.assert_allclose(found, MARKOV[num_drafts], rtol=0, atol=1e-8)


def test_limits_of_block_efficiency():
    probs, other = context_free([0.25, 0.75, 0.0]), context_free([0.0, 0.0, 1.0])
    assert expected_tokens(probs, probs, "kseq", 2, 3) == pytest.approx(4, abs=1e-12)
    assert expected_tokens(probs, other, "kseq", 2, 3) == pytest.approx(1, abs=1e-12)
    assert expected_tokens(probs, other, "kseq", 0, 3) == 1


# --- losslessness, for every registered rule ---


@pytest.mark.parametrize(("name", "num_drafts"), list(decoding_rules()))
@pytest.mark.parametrize("vocabulary", [2, 3])
def test_block_has_the_target_distribution(name, num_drafts, vocabulary):
    target, draft = random_chain(vocabulary, seed=1), random_chain(vocabulary, seed=2)
    for context in ((), (1,)):
        for length in (1, 2, 3):
            found = block_distribution(
                target.next_probs, draft.next_probs, name, num_drafts, length, context=context
            )
            expected = joint_distribution(target.next_probs, length + 1, context)
            assert np.abs(found - expected).max() < 1e-12


@pytest.mark.parametrize(("name", "num_drafts"), list(decoding_rules()))
def test_zero_probabilities_and_equal_models_stay_lossless(name, num_drafts):
    draft = MarkovModel([[0, 0.5, 0.5], [1, 0, 0], [0.2, 0.3, 0.5]], [0.5, 0, 0.5])
    target = MarkovModel([[0.5, 0, 0.5], [1, 0, 0], [0, 1, 0]], [0, 0.5, 0.5])
    for small in (draft, target):
        found = block_distribution(target.next_probs, small.next_probs, name, num_drafts, 2)
        assert np.abs(found - joint_distribution(target.next_probs, 3)).max() < 1e-12


def test_a_model_may_look_at_its_whole_context():
    def target(prefix):
        return np.array([1 + sum(prefix), 1 + len(prefix)]) / (2 + sum(prefix) + len(prefix))

    def draft(prefix):
        return np.array([0.3, 0.7]) if prefix.count(0) % 2 else np.array([0.6, 0.4])

    found = block_distribution(target, draft, "kseq", 3, 3, context=(1, 0))
    assert np.abs(found - joint_distribution(target, 4, (1, 0))).max() < 1e-12


# --- the recursion itself, against Algorithm 3 run on every table of drafts ---


def literal_algorithm(target, draft, rule, num_drafts, draft_length):
    """Block distribution and expected tokens, by listing all V^(K L) drafted tables and walking
    each one.
    """
    vocabulary = len(target(()))
    probs = np.zeros((vocabulary,) * (draft_length + 1))
    expected = 0.0
    for flat in itertools.product(range(vocabulary), repeat=num_drafts * draft_length):
        table = np.array(flat).reshape(num_drafts, draft_length)
        mass = np.prod(
            [draft(tuple(row[:i]))[row[i]] for row in table for i in range(draft_length)]
        )

        def walk(prefix, alive, mass, table=table):
            nonlocal expected
            depth = len(prefix)
            if depth == draft_length or not alive.any():
                expected += mass * alive.any()
                probs[prefix] += mass * joint_distribution(target, draft_length + 1 - depth, prefix)
                return
            expected += mass
            tokens = torch.from_numpy(np.where(alive, table[:, depth], -1))
            all_probs = (torch.from_numpy(model(prefix)) for model in (draft, target))
            for y, chance in enumerate(rule._given_drafts(*all_probs, tokens).tolist()):
                if chance:
                    walk((*prefix, y), alive & (table[:, depth] == y), mass * chance)

        walk((), np.ones(num_drafts, bool), mass)
    return probs, expected


@pytest.mark.parametrize(("vocabulary", "num_drafts"), [(3, 2), (2, 3)])
@pytest.mark.parametrize("rule", [verifiers.get("kseq"), StaleCount()], ids=["kseq", "wrong"])
def test_recursion_equals_the_literal_algorithm(vocabulary, num_drafts, rule):
    target, draft = random_chain(vocabulary, 3).next_probs, random_chain(vocabulary, 4).next_probs
    probs, expected = literal_algorithm(target, draft, rule, num_drafts, 2)
    assert np.abs(block_distribution(target, draft, rule, num_drafts, 2) - probs).max() < 1e-14
    assert expected_tokens(target, draft, rule, num_drafts, 2) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("num_drafts", [1, 2])
def test_recursion_equals_the_listing_of_all_paths(num_drafts):
    target, draft = random_chain(3, 5).next_probs, random_chain(3, 6).next_probs
    rule = verifiers.get("kseq")
    probs, accepted = enumeration.path_block_distribution(target, draft, rule, num_drafts, 3)
    assert np.abs(block_distribution(target, draft, rule, num_drafts, 3) - probs).max() < 1e-14
    assert expected_tokens(target, draft, rule, num_drafts, 3) == pytest.approx(1 + accepted)


def test_block_verification_accepts_more_than_token_verification():
    """The known values 10/9 and 11/9 accepted tokens (arXiv 2403.10444)."""
    target, draft = context_free([1 / 3, 2 / 3]), context_free([2 / 3, 1 / 3])
    assert expected_tokens(target, draft, "coupling", 1, 2) == pytest.approx(19 / 9, abs=1e-12)
    assert expected_tokens(target, draft, "block", 1, 2) == pytest.approx(20 / 9, abs=1e-12)


# --- wrong variants: what these tests would say of a biased rule ---


@pytest.mark.parametrize("rule", WRONG, ids=lambda rule: type(rule).__name__)
def test_block_distribution_catches_wrong_variants(rule):
    target, draft = worked_pair()
    found = block_distribution(target.next_probs, draft.next_probs, rule, 3, 2)
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert total_variation(found, joint_distribution(target.next_probs, 3)) > 1e-3


def test_parameters_for_all_drafts_are_right_only_until_one_dies():
    """Its first token is exact, so a test of one step at k = K cannot see this error."""
    target, draft = worked_pair()
    found = block_distribution(target.next_probs, draft.next_probs, StaleCount(), 3, 2)
    expected = joint_distribution(target.next_probs, 3)
    assert np.abs(found.sum((1, 2)) - expected.sum((1, 2))).max() < 1e-12
    assert total_variation(found.sum(2), expected.sum(2)) > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_drafts": -1, "draft_length": 2}, "num_drafts: found -1"),
        ({"num_drafts": 2, "draft_length": 0}, "draft_length: found 0"),
    ],
)
def test_settings_are_checked(settings, message):
    target, draft = worked_pair()
    with pytest.raises(ValueError, match=message):
        expected_tokens(target.next_probs, draft.next_probs, "kseq", **settings)


@pytest.mark.parametrize(
    ("rule", "settings", "message"),
    [
        ("coupling", (2, 2), "k: 'coupling' is defined for k=1 only, found 2"),
        ("spechub", (2, 2), "drafting: 'spechub' is not lossless for drafts drawn by IID"),
        ("traversal", (8, 4), "k: enumeration needs .* tuples x 3 tokens"),
    ],
)
def test_what_cannot_be_enumerated_is_refused(rule, settings, message):
    target, draft = worked_pair()
    with pytest.raises(ValueError, match=message):
        expected_tokens(target.next_probs, draft.next_probs, rule, *settings)


@pytest.mark.parametrize("row", [[np.nan, 1.0], [0.5, 0.4], [0.0, 0.0], [-0.5, 1.5]], ids=str)
@pytest.mark.parametrize("rule", ["kseq", "optimal-block"])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_model_must_give_distributions_at_every_depth(rule, depth, row):
    """After the last drafted token too, where no rule looks."""

    def sound(prefix):
        return [0.3, 0.7]

    def broken(prefix):
        return row if len(prefix) == depth else [0.3, 0.7]

    with pytest.raises(ValueError, match=r"row 0 sums to|entry "):
        block_distribution(broken, sound, rule, 2, 2)
    if depth < 2:
        with pytest.raises(ValueError, match=r"row 0 sums to|entry "):
            block_distribution(sound, broken, rule, 2, 2)
