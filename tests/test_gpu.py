"""What a GPU must get right before it is timed: rules, loop and probabilities, against a CPU.

    python -m pytest -m gpu

Each test also runs on the CPU, in float32, so that the tests themselves are tested everywhere.
References are float64 on the CPU. False-alarm rate of each test of a distribution: 1e-6.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectr_lite import distributions, stats, verifiers
from spectr_lite.book import environment
from spectr_lite.decoding import generate
from spectr_lite.distributions import IID
from spectr_lite.models import load_pair

FALSE_ALARM = 1e-6
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]
RULES = [name for name in verifiers.names() if IID in verifiers.get(name).valid_for]


def drafts_of(rule) -> int:
    for k in (4, 2, 1):
        try:
            return rule.check_drafts(k)
        except ValueError:
            continue
    raise AssertionError(rule)


@pytest.fixture(scope="module", params=DEVICES)
def pair(request):
    """The bundled pair in the precision that `decode` uses on the device."""
    half = environment.device_and_dtype()[1] if request.param == "cuda" else torch.float32
    return load_pair("bundled", request.param, half)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", RULES)
def test_a_rule_agrees_with_float64_on_a_cpu(name, device):
    """The distribution of a turn's block, given the drafted paths, in float32 on the device."""
    rule = verifiers.get(name)
    k, length, vocabulary = drafts_of(rule), 3, 50
    generator = np.random.default_rng(0)
    draft, target = (
        torch.from_numpy(generator.dirichlet(np.full(vocabulary, 0.3), (length + 1,)))
        for _ in range(2)
    )
    shape = (6, k, -1, vocabulary)
    drafts, targets = draft[:-1].expand(*shape), target.expand(*shape)
    paths = distributions.sample(drafts, torch.Generator().manual_seed(1))
    exact = rule._given_paths(drafts, targets, paths)
    all_probs = (probs.to(device, torch.float32) for probs in (drafts, targets))
    found = rule._given_paths(*all_probs, paths.to(device))
    for a, b in ((found.stop, exact.stop), (found.extra * found.stop[..., None],
                                            exact.extra * exact.stop[..., None])):  # fmt: skip
        torch.testing.assert_close(a.double().cpu(), b, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", RULES)
def test_greedy_text_is_the_autoregressive_one(pair, name):
    """The same calls of the target in another order may round a tie the other way: float32 only."""
    pair = load_pair("bundled", pair.target.device, torch.float32)
    prompts = [pair.tokenizer.encode(text).ids for text in ("The people of the", "Peace")]
    settings = {"max_new_tokens": 24, "temperature": 0}
    alone = generate(pair.target, None, prompts, num_drafts=0, **settings).tokens
    k = drafts_of(verifiers.get(name))
    for length in (1, 4):
        made = generate(pair.target, pair.draft, prompts, verifier=name, num_drafts=k,
                        draft_length=length, **settings)  # fmt: skip
        assert made.tokens == alone


@pytest.mark.parametrize(
    ("name", "num_drafts"), [("kseq", 0), ("kseq", 8), ("optimal", 4), ("optimal-block", 4)]
)
def test_the_second_token_follows_the_target(pair, name, num_drafts):
    """Chi-square of the second new token's likeliest ids, whichever the first: its distribution is the
    target's own, mixed over the first, in float64 on a CPU from the same (rounded) weights."""
    prompt = pair.tokenizer.encode("The people of the United").ids
    target = load_pair("bundled", "cpu", pair.target.embed_tokens.weight.dtype).target.double()
    with torch.no_grad():
        first = torch.softmax(target(torch.tensor([prompt]))[0, -1], -1)
        likely = first.topk(40).indices
        texts = torch.cat([torch.tensor([prompt]).expand(40, -1), likely[:, None]], 1)
        second = torch.softmax(target(texts)[:, -1], -1)
    ids = (first[likely] @ second).topk(8).indices
    cells = (first[likely][:, None] * second[:, ids]).numpy()  # (40, 8): both tokens
    counts = np.zeros_like(cells)
    rows = 400 if pair.target.device.type == "cuda" else 40  # a CPU takes its time
    seeds = range(4)
    for seed in seeds:
        run = generate(pair.target, pair.draft, [prompt] * rows, verifier=name, generator=seed,
                       num_drafts=num_drafts, draft_length=3, max_new_tokens=2)  # fmt: skip
        for a, b in run.tokens:
            where = (likely == a).nonzero(), (ids == b).nonzero()
            if all(map(len, where)):
                counts[int(where[0]), int(where[1])] += 1
    other = len(seeds) * rows - counts.sum()
    found = stats.chi_square([*counts.ravel(), other], [*cells.ravel(), 1 - cells.sum()])
    assert found.p_value > FALSE_ALARM


def test_logits_in_the_decoding_precision(pair):
    """Close to those of float64, in the spread of the logits: 2e-5 in float32, 0.03 in 16 bits."""
    tokens = torch.tensor([pair.tokenizer.encode("My fellow citizens of the Senate and").ids])
    exact = load_pair("bundled", "cpu", torch.float32).target.double()
    with torch.no_grad():
        reference = exact(tokens)
        found = pair.target(tokens.to(pair.target.device)).double().cpu()
    spread = reference.max() - reference.min()
    bound = 2e-5 if pair.target.embed_tokens.weight.dtype == torch.float32 else 0.03
    assert (found - reference).abs().max() < bound * spread


def test_a_seed_gives_the_same_text_again(pair):
    prompts = [pair.tokenizer.encode("The state of").ids] * 3
    made = [generate(pair.target, pair.draft, prompts, generator=s, max_new_tokens=30).tokens
            for s in (0, 0, 1)]  # fmt: skip
    assert made[0] == made[1] != made[2]
