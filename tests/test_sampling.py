"""Temperature, top-k and top-p: the distribution that a token is drawn from, and that the text then
follows.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decoding_rules import WRONG, decoding_rules
from tiny_models import make_pair

from spectr_lite.decoding import generate
from spectr_lite.decoding.enumeration import block_distribution, joint_distribution
from spectr_lite.decoding.sampling import Sampling
from spectr_lite.models.markov import MarkovModel, worked_pair
from spectr_lite.stats import chi_square

FALSE_ALARM = 1e-6
SETTINGS = [
    Sampling(0.7),
    Sampling(top_k=1),
    Sampling(top_k=2),
    Sampling(top_k=99),
    Sampling(top_p=0.6),
    Sampling(top_p=1e-6),
    Sampling(top_p=1),
    Sampling(1.3, top_k=3, top_p=0.8),
]


def warped(logits, sampling):
    """What transformers does: three processors in its order, then softmax."""
    process = pytest.importorskip("transformers.generation.logits_process")
    if sampling.temperature != 1:
        logits = process.TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k is not None:
        logits = process.TopKLogitsWarper(sampling.top_k)(None, logits)
    if sampling.top_p is not None:
        logits = process.TopPLogitsWarper(sampling.top_p)(None, logits)
    return logits.softmax(-1)


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distributions_are_those_of_transformers(sampling, dtype):
    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(0), dtype=dtype) * 2
    tied = (logits * 2).round() / 2  # many ties, at the edge of what is kept too
    tied[0] = 0
    logits[1, 5:] = -torch.inf
    torch.testing.assert_close(sampling.probs(logits), warped(logits.clone(), sampling))
    # Which of the tied tokens stay is left open there; how many do is not.
    found, expected = sampling.probs(tied), warped(tied.clone(), sampling)
    torch.testing.assert_close(found.sort(-1).values, expected.sort(-1).values)


def test_ties_by_hand():
    probs = torch.tensor([0.3, 0.2, 0.2, 0.2, 0.1], dtype=torch.float64)
    kept = [(Sampling(top_k=2), [0, 1, 2, 3]), (Sampling(top_p=0.45), [0, 1]),
            (Sampling(top_p=0.65), [0, 1, 2]), (Sampling(top_k=1), [0])]  # fmt: skip
    for sampling, tokens in kept:
        found = sampling.probs(probs.log())
        assert found.nonzero()[:, 0].tolist() == tokens
        torch.testing.assert_close(found[tokens], probs[tokens] / probs[tokens].sum())


def test_low_precision_logits_give_float32_distributions():
    logits = torch.randn(4, 100).to(torch.bfloat16)
    for sampling in SETTINGS:
        probs = sampling.probs(logits)
        assert probs.dtype == torch.float32
        torch.testing.assert_close(probs.sum(-1), torch.ones(4))


def truncated(model, sampling):
    """The Markov chain of the truncated distributions, built with NumPy's sort."""
    rows = []
    for row in model.probs:
        probs = row ** (1 / sampling.temperature)
        probs = probs / probs.sum()
        order = np.argsort(-probs, kind="stable")
        ordered = probs[order]
        least = ordered[min(sampling.top_k or len(probs), len(probs)) - 1]
        share = np.where(ordered < least * (1 - 1e-12), 0, ordered)
        share = (share / share.sum()).cumsum()
        count = 1 + int((share < min(sampling.top_p or 1, share[-1]) - 1e-12).sum())
        kept = np.zeros_like(probs)
        kept[order[:count]] = probs[order[:count]]
        rows.append(kept / kept.sum())
    return MarkovModel(rows[:-1], rows[-1])


def chain(seed):
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(np.full(4, 0.9), size=5)
    return MarkovModel(rows[:-1], rows[-1])


def as_the_loop_sees(model, sampling):
    """prefix -> distribution, from the model's logits through `Sampling`, without the start token's
    id.
    """

    def probs(prefix):
        token = prefix[-1] if prefix else model.start_token
        logits = model(torch.tensor([[token]]))[0, 0]
        return sampling.probs(logits)[: model.start_token].numpy()

    return probs


@pytest.mark.parametrize("sampling", [Sampling(0.6, 3, 0.9), Sampling(1.4, 2)], ids=str)
@pytest.mark.parametrize(("name", "num_drafts"), list(decoding_rules()))
def test_the_block_has_the_truncated_target_distribution(name, num_drafts, sampling):
    target, draft = chain(1), chain(2)
    all_probs = [as_the_loop_sees(model, sampling) for model in (target, draft)]
    expected = joint_distribution(truncated(target, sampling).next_probs, 3, (0,))
    assert (expected == 0).any()
    found = block_distribution(*all_probs, name, num_drafts, 2, context=(0,))
    assert np.abs(found - expected).max() < 1e-12


@pytest.mark.parametrize("sampling", [Sampling(0.6, 2), Sampling(top_p=0.75)], ids=str)
@pytest.mark.parametrize(
    "rule",
    ["kseq", "optimal", "traversal", *WRONG[1:2]],
    ids=["kseq", "optimal", "traversal", "wrong"],
)
def test_the_text_follows_the_truncated_target(rule, sampling):
    target, draft = worked_pair()
    run = generate(target, draft, [[3]] * 8000, verifier=rule, num_drafts=3, draft_length=2,
                   max_new_tokens=3, generator=3, **vars(sampling))  # fmt: skip
    probs = joint_distribution(truncated(target, sampling).next_probs, 3)
    counts = np.zeros_like(probs, dtype=int)
    np.add.at(counts, tuple(np.array(run.tokens).T), 1)
    assert (counts[probs == 0].sum() == 0) and (probs == 0).any()
    p_value = chi_square(counts[probs > 0], probs[probs > 0]).p_value
    assert (p_value > FALSE_ALARM) == isinstance(rule, str)


def test_the_likeliest_token_alone_is_greedy_decoding():
    pair, prompts = make_pair(), [[1, 2, 3], [4]]
    settings = {"num_drafts": 3, "draft_length": 3, "max_new_tokens": 20}
    greedy = generate(*pair, prompts, temperature=0, **settings).tokens
    assert generate(*pair, prompts, top_k=1, **settings).tokens == greedy
    assert generate(*pair, prompts, top_p=1e-9, **settings).tokens == greedy


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"top_k": 0}, ValueError, "top_k: found 0"),
        ({"top_k": 2.5}, TypeError, "top_k: expected a whole number"),
        ({"top_p": 0}, ValueError, "top_p: found 0. Give a number above 0"),
        ({"top_p": 1.01}, ValueError, "top_p: found 1.01"),
        ({"top_p": float("nan")}, ValueError, "top_p: found nan"),
        ({"top_p": "most"}, ValueError, "top_p: found 'most'"),
        ({"temperature": float("inf")}, ValueError, "temperature: found inf"),
        ({"temperature": True}, ValueError, "temperature: found True"),
    ],
)
def test_bad_values_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        generate(*worked_pair(), [[3]], **settings)
