"""Temperature, top-k and top-p: the distribution that a token is drawn from, and that the text then
follows.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decoding_rules import WRONG, decoding_rules
from tiny_models import make_pair

from spectr_lite import verifiers
from spectr_lite.decoding import generate
from spectr_lite.decoding.enumeration import block_distribution, joint_distribution
from spectr_lite.decoding.sampling import Sampling
from spectr_lite.models.markov import MarkovModel, worked_pair
from spectr_lite.stats import chi_square
from spectr_lite.verifiers import kseq

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


TINY = [1e-30, 1e-38, 1e-45, 5e-324]


@pytest.mark.parametrize("temperature", TINY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_tiny_temperature_is_the_limit_of_small_ones(temperature, dtype):
    """All mass on the likeliest token; what ties with it, as 16 bits often do, has an equal share."""
    logits = torch.randn(30, 50, generator=torch.Generator().manual_seed(0)) * 1e4
    logits[:, 7:30] = -torch.inf
    logits[10:20, 3] = logits[10:20, 5] = 4e4
    logits[20:] = logits[20:] / 1e8 - 3e4
    logits = logits.to(dtype)
    likeliest = logits == logits.amax(-1, keepdim=True)
    expected = likeliest.double() / likeliest.sum(-1, keepdim=True)
    for more in ({}, {"top_k": 3}, {"top_p": 1}):
        found = Sampling(temperature, **more).probs(logits)
        assert (found.double() - expected).abs().max() < 1e-7
    greedy = Sampling(0).probs(logits)
    assert (greedy.argmax(-1) == logits.argmax(-1)).all() and (greedy.sum(-1) == 1).all()
    assert ((greedy == 0) | (greedy == 1)).all()


@pytest.mark.parametrize("temperature", [1e38, 1e308, 10**400])
def test_a_huge_temperature_levels_all_tokens_that_may_be_said(temperature):
    logits = torch.tensor([3e38, -3e38, 0.0, -torch.inf])
    for dtype in (torch.float32, torch.float64):
        found = Sampling(temperature).probs(logits.to(dtype))
        assert found[3] == 0 and found[2] > 0.005
        small = Sampling(temperature).probs(
            logits.clamp(-1e4, 1e4).where(logits.isfinite(), logits)
        )
        torch.testing.assert_close(small, torch.tensor([1, 1, 1, 0.0]) / 3)


def test_decoding_at_a_tiny_temperature_is_greedy():
    pair, prompts = make_pair(dtype=torch.float32), [[1, 2, 3], [4]]
    settings = {"num_drafts": 2, "draft_length": 3, "max_new_tokens": 10}
    greedy = generate(*pair, prompts, temperature=0, **settings).tokens
    for temperature in TINY:
        for rule in ("kseq", "optimal-block"):
            found = generate(*pair, prompts, temperature=temperature, verifier=rule, **settings)
            assert found.tokens == greedy


@pytest.mark.parametrize(
    "sampling", [*SETTINGS, Sampling(0), Sampling(1e-45), Sampling(1e300)], ids=str
)
def test_logits_that_are_no_distribution_are_told_apart(sampling):
    nan, inf = float("nan"), float("inf")
    bad = [[nan, 0, 1], [0, nan, -inf], [nan, nan, nan], [0, inf, 0], [inf, inf, nan], [-inf] * 3]
    good = [[0.0, 1, 2], [-inf, 3, -inf], [-1e38, 0, 1e38]]
    for dtype in (torch.float16, torch.float32, torch.float64):
        rows = torch.tensor([*bad, *good], dtype=torch.float64).clamp(-inf, inf).to(dtype)
        if dtype == torch.float16:
            rows[-1] = torch.tensor([-6e4, 0, 6e4])
        probs = sampling.probs(rows)
        assert probs[: len(bad)].isnan().all() and not probs[len(bad) :].isnan().any()
        filled, missing = sampling.probs_or_uniform(rows)
        assert missing.tolist() == [True] * len(bad) + [False] * len(good)
        torch.testing.assert_close(filled[: len(bad)], torch.full_like(filled[: len(bad)], 1 / 3))
        assert (filled[len(bad) :] == probs[len(bad) :]).all()


# --- precision, at the size of a real vocabulary ---


def real_logits(seed, noise):
    """(draft, target) in float32, 256,000 tokens: N(0, 6), and the same plus N(0, noise)."""
    generator = torch.Generator().manual_seed(seed)
    draft, other = (
        6 * torch.randn(256_000, generator=generator),
        torch.randn(256_000, generator=generator),
    )
    return draft, draft + noise * other


def refused(rule, draft, target, k):
    """(chance, law) if every draft is refused, and the law of the token that the rule selects.

    The drafts are drawn in float64 from what the rule is shown, as `sample` draws them.
    """
    drawn = draft.double() / draft.double().sum()
    if rule == "kseq":
        rho = kseq.optimal_rho(draft, target, k)
        once = drawn * (target.double() / (rho * draft.double())).clamp_max(1)
        chance = (1 - once.sum()) ** k
        kept, left = once / once.sum() * (1 - chance), kseq.residual(draft, target, rho, k)
    else:
        plan = verifiers.get("optimal").plan(draft, target, k)
        winner = plan.winner(draft)
        kept = plan.winner(drawn) * (target.double() / winner).clamp_max(1).nan_to_num(0)
        chance, left = 1 - kept.sum(), (target - winner).clamp_min(0)
    left = left.double() / left.double().sum()
    return chance, left, kept + chance * left


@pytest.mark.parametrize("noise", [1.0, 0.1])
@pytest.mark.parametrize("rule", ["kseq", "optimal"])
def test_float32_is_as_precise_as_promised(rule, noise):
    logits = real_logits(seed=3, noise=noise)
    single = [Sampling().probs(row) for row in logits]
    double = [Sampling().probs(row.double()) for row in logits]
    for sampling in (Sampling(0.7), Sampling(1.3)):
        single.append(sampling.probs(logits[0]))
        double.append(sampling.probs(logits[0].double()))
    for found, right in zip(single, double, strict=True):
        assert abs(found.sum(dtype=torch.float64) - 1) < 3e-7
        assert ((found / right - 1).abs() <= 2e-7 * (2 - right.log())).all()
    for k in (2, 8):
        chance, left, law = refused(rule, *single[:2], k)
        _, right, _ = refused(rule, *double[:2], k)
        assert (law - double[1]).abs().sum() / 2 < 3e-7
        assert chance * (left - right).abs().sum() / 2 < 3e-7


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
        ({"temperature": -1e-45}, ValueError, "temperature: found -1e-45"),
        ({"temperature": float("nan")}, ValueError, "temperature: found nan"),
        ({"temperature": True}, ValueError, "temperature: found True"),
    ],
)
def test_bad_values_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        generate(*worked_pair(), [[3]], **settings)
