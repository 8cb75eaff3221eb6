"""The trigram model against a direct count, on a text, on a drafted tree and in the loop."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from spectr_lite.decoding import generate
from spectr_lite.decoding.enumeration import block_distribution, joint_distribution
from spectr_lite.models.ngram import TrigramModel

VOCABULARY = 4
TEXTS = [[0, 1, 2, 0, 1, 3, 0, 1, 2, 2], [1, 2, 0, 0, 1], [3], []]


def grams(order):
    return Counter(
        tuple(text[i : i + order]) for text in TEXTS for i in range(len(text) - order + 1)
    )


def direct(context):
    """The distribution after `context`, from dictionaries and the formula of the module's docstring."""
    if context is None:
        return np.full(VOCABULARY, 1 / VOCABULARY)
    shorter = direct(context[1:] if context else None)
    counts = grams(len(context) + 1)
    once, twice = (sum(count == n for count in counts.values()) for n in (1, 2))
    discount = once / (once + 2 * twice)
    after = np.array([counts[(*context, token)] for token in range(VOCABULARY)])
    if not after.any():
        return shorter
    left = discount * (after > 0).sum() / after.sum()
    return np.maximum(after - discount, 0) / after.sum() + left * shorter


@pytest.fixture(scope="module")
def model():
    return TrigramModel(TEXTS, VOCABULARY, torch.float64)


def all_probs(logits):
    return logits.exp().numpy()


def test_the_counts_are_those_of_a_dictionary(model):
    contexts = torch.tensor([[u, v] for u in range(VOCABULARY) for v in range(VOCABULARY)])
    found = all_probs(model(contexts))
    for context, (first, second) in zip(contexts.tolist(), found, strict=True):
        np.testing.assert_allclose(first, direct(tuple(context[:1])), atol=1e-14)
        np.testing.assert_allclose(second, direct(tuple(context)), atol=1e-14)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-14)


def test_no_ngram_spans_two_texts():
    together = TrigramModel([[0, 1], [2, 3]], VOCABULARY, torch.float64)
    assert together.bigrams.keys.tolist() == [0, 2]
    assert len(together.trigrams.keys) == 0


def test_on_a_tree_each_branch_sees_its_own_parent(model):
    """Prefix 0 1 in slots 0, 1; two branches 2 0 and 3 0 in slots 2, 3 and 4, 5."""
    cache = model.new_cache(1, 8)
    causal = torch.tensor([[[True, False], [True, True]]])
    model(torch.tensor([[0, 1]]), torch.tensor([[0, 1]]), cache, torch.tensor([[0, 1]]), causal)
    mask = torch.tensor(
        [
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0],
            [1, 1, 0, 0, 1, 0],
            [1, 1, 0, 0, 1, 1],
        ]
    ).bool()
    found = model(
        torch.tensor([[2, 0, 3, 0]]),
        torch.tensor([[2, 3, 2, 3]]),
        cache,
        torch.tensor([[2, 3, 4, 5]]),
        mask[None],
    )
    expected = [direct(context) for context in [(1, 2), (2, 0), (1, 3), (3, 0)]]
    np.testing.assert_allclose(all_probs(found)[0], expected, atol=1e-14)
    # The second branch is accepted and moves up: what follows it reads its tokens.
    cache.move(torch.tensor([[4, 5]]), torch.tensor([[2, 3]]))
    mask = torch.tensor([[[True] * 5]])
    found = model(torch.tensor([[1]]), torch.tensor([[4]]), cache, torch.tensor([[4]]), mask)
    np.testing.assert_allclose(all_probs(found)[0, 0], direct((0, 1)), atol=1e-14)


def next_probs(model):
    return lambda prefix: model(torch.tensor([prefix]))[0, -1].exp().numpy()


@pytest.mark.parametrize("verifier", ["kseq", "optimal", "block"])
def test_one_turn_with_it_as_a_draft_has_the_target_distribution(model, verifier):
    """By enumeration: the target is a trigram model of other texts."""
    target = TrigramModel([[0, 3, 1, 2, 3, 3, 0, 2, 1]], VOCABULARY, torch.float64)
    num_drafts = 1 if verifier == "block" else 2
    found = block_distribution(
        next_probs(target), next_probs(model), verifier, num_drafts, 2, (0, 1)
    )
    np.testing.assert_allclose(found, joint_distribution(next_probs(target), 3, (0, 1)), atol=1e-12)


@pytest.mark.parametrize("num_drafts", [1, 3])
def test_the_loop_with_it_as_a_draft_writes_the_target_distribution(model, num_drafts):
    """Two tokens after a prompt, 20,000 times: Pearson's statistic below its 1e-5 quantile."""
    target = TrigramModel([[0, 3, 1, 2, 3, 3, 0, 2, 1]], VOCABULARY, torch.float64)
    rows = 20_000
    found = generate(
        target,
        model,
        [[0, 1]] * rows,
        num_drafts=num_drafts,
        draft_length=3,
        max_new_tokens=3,
        generator=7,
    )
    expected = rows * joint_distribution(next_probs(target), 3, (0, 1))
    counts = np.zeros_like(expected)
    np.add.at(counts, tuple(np.array(found.tokens).T), 1)
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < 128  # chi-squared, 63 degrees of freedom


def test_the_draft_distributions_of_the_loop_are_its_own(model):
    """With itself as the target, everything is accepted: a way of drafting read off the wrong parent
    would show."""
    found = generate(
        model,
        model,
        [[0, 1], [3, 2, 0]],
        num_drafts=2,
        draft_length=4,
        max_new_tokens=40,
        generator=3,
    )
    assert found.block_efficiency == 5


@pytest.mark.parametrize(
    ("texts", "message"),
    [([], "no token found"), ([[]], "no token found"), ([[0, 4]], r"found ids 0 to 4; .* 0 to 3")],
)
def test_bad_texts(texts, message):
    with pytest.raises(ValueError, match=message):
        TrigramModel(texts, VOCABULARY)


def test_it_never_waits_for_the_device(model):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        cache = model.new_cache(2, 6)
        tokens = mode.from_tensor(torch.zeros(2, 3, dtype=torch.int64))
        mask = mode.from_tensor(torch.ones(2, 3, 6, dtype=torch.bool))
        assert model(tokens, tokens, cache, tokens, mask).shape == (2, 3, VOCABULARY)
