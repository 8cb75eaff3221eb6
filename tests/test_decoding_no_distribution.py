"""Logits that are no distribution: a NaN, +inf, or no token left; at the target and at the draft.

A draft's are replaced and the text stays the target's. A target's end the text in an error, if the
text comes there; places to which only drafts come change nothing.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from decoding_rules import decoding_rules
from tiny_models import make_pair

from spectr_lite.decoding import Decoder, decode, generate
from spectr_lite.decoding.enumeration import block_distribution, joint_distribution
from spectr_lite.decoding.sampling import Sampling
from spectr_lite.models.markov import NoCache, worked_pair
from spectr_lite.stats import chi_square

FALSE_ALARM = 1e-6
START = 3  # the start token of the worked chain
RULES = {name: num_drafts for name, num_drafts in decoding_rules()}  # with the most drafts
BROKEN = {  # of four logits, what they become
    "nan": [float("nan")] * 4,
    "one nan": [0.0, float("nan"), 0.0, -float("inf")],
    "inf": [0.0, float("inf"), 0.0, 0.0],
    "two inf": [float("inf"), float("inf"), -float("inf"), 0.0],
    "empty": [-float("inf")] * 4,
}


class Placed:
    """A chain, broken at places (position, last token) -> kind. A place of None is any."""

    def __init__(self, chain, places):
        self.chain, self.vocab_size, self.device = chain, chain.vocab_size, chain.device
        self.places, self.config = places, SimpleNamespace(context=100)

    def new_cache(self, batch, slots):
        return NoCache()

    def __call__(self, tokens, positions, cache, slots, mask):
        logits = self.chain(tokens)
        for (position, last), kind in self.places.items():
            here = (positions == position) if position is not None else positions >= 0
            here = here & (tokens == last) if last is not None else here
            logits = torch.where(here[..., None], torch.tensor(BROKEN[kind]).double(), logits)
        return logits


def text_p_value(target, draft, rule):
    run = generate(
        target, draft, [[START]] * 3000, verifier=rule, num_drafts=RULES[rule], draft_length=3,
        max_new_tokens=3, generator=5,
    )  # fmt: skip
    counts = np.zeros((4, 4, 4), int)
    np.add.at(counts, tuple(np.array(run.tokens).T), 1)
    assert counts.sum() == counts[:3, :3, :3].sum()
    expected = joint_distribution(worked_pair()[0].next_probs, 3)
    return chi_square(counts[:3, :3, :3], expected).p_value


# --- the draft's ---


@pytest.mark.parametrize("rule", RULES)
def test_the_text_follows_the_target_whatever_the_draft_gives(rule):
    target, draft = worked_pair()
    some = {(0, None): "nan", (1, 1): "inf", (2, 0): "empty", (2, 1): "one nan"}
    for places in (some, {(None, None): "two inf"}):
        assert text_p_value(target, Placed(draft, places), rule) > FALSE_ALARM


def test_a_draft_whose_every_token_a_processor_takes_away():
    """Two healthy models: the draft says tokens below 3 alone, and only 3 and 4 are allowed."""

    class Constant:
        vocab_size, device, config = 5, torch.device("cpu"), SimpleNamespace(context=99)

        def __init__(self, probs):
            self.logits = torch.tensor(probs).log()
            self.logits[:3] = -torch.inf  # the processor

        def new_cache(self, batch, slots):
            return NoCache()

        def __call__(self, tokens, positions, cache, slots, mask):
            return self.logits.expand(*tokens.shape, -1)

    target, draft = Constant([0.3, 0.2, 0.2, 0.2, 0.1]), Constant([0.5, 0.3, 0.2, 0.0, 0.0])
    for rule, num_drafts in RULES.items():
        settings = {"verifier": rule, "num_drafts": num_drafts, "draft_length": 2}
        run = generate(target, draft, [[0]] * 400, max_new_tokens=5, generator=1, **settings)
        counts = np.bincount(np.ravel(run.tokens), minlength=5)
        assert (counts[:3] == 0).all()
        assert chi_square(counts[3:], np.array([2 / 3, 1 / 3])).p_value > FALSE_ALARM


@pytest.mark.parametrize("temperature", [0, 1e-45, 1, 1e38])
def test_one_token_is_all_there_is(temperature):
    class One(Placed):
        def __call__(self, tokens, *rest):
            return torch.full((*tokens.shape, 1), -6e4, dtype=torch.float16)

    model = One(SimpleNamespace(vocab_size=1, device=torch.device("cpu")), {})
    for rule, num_drafts in RULES.items():
        settings = {"verifier": rule, "num_drafts": num_drafts, "temperature": temperature}
        run = generate(model, model, [[0], [0, 0]], max_new_tokens=7, draft_length=2, **settings)
        assert run.tokens == [[0] * 7] * 2


@pytest.mark.parametrize("kind", BROKEN)
def test_greedy_text_whatever_the_draft_gives(kind):
    target, draft = worked_pair()
    plain = generate(target, None, [[0], [1]], num_drafts=0, max_new_tokens=9, temperature=0)
    for rule, num_drafts in RULES.items():
        found = generate(
            target, Placed(draft, {(None, None): kind}), [[0], [1]], verifier=rule,
            num_drafts=num_drafts, draft_length=2, max_new_tokens=9, temperature=0,
        )  # fmt: skip
        assert found.tokens == plain.tokens


# --- the target's, where the text does not come ---


@pytest.mark.parametrize("rule", RULES)
def test_a_place_behind_the_end_changes_nothing(rule):
    """The third token, at position 3, is the last: what follows it is never drawn."""
    target, draft = worked_pair()
    broken = Placed(target, {(3, 0): "one nan", (3, 1): "inf", (3, 2): "empty"})
    assert text_p_value(broken, draft, rule) > FALSE_ALARM


@pytest.mark.parametrize("rule", RULES)
def test_a_place_behind_a_stop_token_changes_nothing(rule):
    target, draft = worked_pair()
    broken = Placed(target, {(None, 2): "empty"})
    run = generate(
        broken, draft, [[START]] * 3000, verifier=rule, num_drafts=RULES[rule], draft_length=3,
        max_new_tokens=3, generator=5, stop_tokens=[2],
    )  # fmt: skip
    joint = joint_distribution(target.next_probs, 3)
    expected = np.zeros((3, 3, 3))  # a text that ends early is written out with 2s
    for text in itertools.product(range(3), repeat=3):
        end = text.index(2) if 2 in text else 3
        expected[(*text[:end], *[2] * (3 - end))] += joint[text]
    counts = np.zeros((3, 3, 3), int)
    for text in run.tokens:
        counts[(*text, *[2] * (3 - len(text)))] += 1
    p_value = chi_square(counts[expected > 0], expected[expected > 0]).p_value
    assert counts[expected == 0].sum() == 0 and p_value > FALSE_ALARM


@pytest.mark.parametrize("rule", RULES)
def test_the_text_up_to_where_the_target_has_none_follows_the_target(rule):
    """Texts that begin with 2 or 0 1 end there. What other texts are is as likely as ever."""
    target, draft = worked_pair()
    broken = Placed(target, {(1, 2): "one nan", (2, 1): "inf"})
    turns = decode(
        broken, draft, [[START]] * 3000, verifier=rule, num_drafts=RULES[rule], draft_length=2,
        max_new_tokens=3, generator=2,
    )  # fmt: skip
    turn = next(turns)
    rng = np.random.default_rng(0)
    counts = np.zeros((3, 3, 3), int)
    for row in range(3000):
        text = turn.tokens(row)
        assert turn.block[row, len(text) :].tolist() == [-1] * (3 - len(text))
        while len(text) < 3:  # the target finishes the text, or 0s do where it cannot
            dead = text[0] == 2 or text[1:] == [1]
            text.append(0 if dead else rng.choice(3, p=target.next_probs(text)))
        counts[tuple(text)] += 1
    expected = joint_distribution(target.next_probs, 3)
    for dead in ((2,), (0, 1), (1, 1)):
        mass = expected[dead].sum()
        expected[dead] = 0
        expected[(*dead, *[0] * (3 - len(dead)))] = mass
    alive = expected > 0
    assert counts[~alive].sum() == 0
    assert chi_square(counts[alive], expected[alive]).p_value > FALSE_ALARM
    texts = [turn.tokens(row) for row in range(3000)]
    row = next(row for row, text in enumerate(texts) if text == [2] or text[1:] == [1])
    place = rf"position {1 + len(texts[row])} of the text of prompts\[{row}\]"
    with pytest.raises(ValueError, match=place):
        next(turns)


# --- by enumeration ---


@pytest.mark.parametrize(("rule", "num_drafts"), list(decoding_rules()))
def test_the_finished_block_has_the_target_distribution_up_to_such_a_place(rule, num_drafts):
    target, draft = worked_pair()
    lost = {(0,): "nan", (1, 2): "empty", (2, 0): "inf"}  # where the target has no distribution
    drafts = {(): "inf", (1,): "empty", (2,): "one nan"}

    def shown(chain, broken):
        def probs(prefix):
            logits = torch.from_numpy(chain.next_probs(prefix)).log()
            if prefix in broken:
                logits = torch.tensor(BROKEN[broken[prefix]][:3]).double()
            found, missing = Sampling().probs_or_uniform(logits)
            assert bool(missing) == (prefix in broken)
            return found.numpy()

        return probs

    expected = joint_distribution(target.next_probs, 3)
    for broken in ({}, drafts):
        found = block_distribution(shown(target, lost), shown(draft, broken), rule, num_drafts, 2)
        passes = np.zeros((3, 3, 3), bool)
        for prefix in lost:
            assert found[prefix].sum() == pytest.approx(expected[prefix].sum(), abs=1e-12)
            passes[prefix] = True
        assert np.abs(found - expected)[~passes].max() < 1e-12
        assert np.abs(found - expected)[passes].max() > 1e-3


# --- the error ---


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("settings", [{"num_drafts": 0}, {"temperature": 0}, {"top_k": 2, "top_p": 0.9}],
                         ids=str)  # fmt: skip
def test_a_target_without_a_distribution_is_named(kind, settings):
    chain, draft = worked_pair()
    prompts = [[0, 1, 0], [0], [1, 1, 0, 0]]
    target = Placed(chain, {(5, None): kind})
    settings = {"draft_length": 2, "max_new_tokens": 8, "generator": 0} | settings
    texts = [list(prompt) for prompt in prompts]
    turns = decode(target, draft, prompts, **settings)
    message = r"target: its logits for position 6 of the text of prompts\[\d\] are no distribution"
    with pytest.raises(ValueError, match=message) as caught:
        for turn in turns:
            for row, text in enumerate(texts):
                text += turn.tokens(row)
    assert max(map(len, texts)) == 6
    row = next(row for row, text in enumerate(texts) if len(text) == 6)
    assert f"prompts[{row}]" in str(caught.value)


def test_logits_that_nobody_draws_from_do_not_matter():
    """Those in the prompt, and those of a row that has ended."""
    chain, draft = worked_pair()
    target = Placed(chain, {(place, None): "nan" for place in (0, 1, 4)})
    run = generate(target, draft, [[0, 1, 0]], max_new_tokens=2, num_drafts=2, draft_length=3)
    assert len(run.tokens[0]) == 2
    ended = Placed(chain, {(None, 2): "nan"})
    run = generate(
        ended, draft, [[0], [1]], num_drafts=1, draft_length=1, stop_tokens=[2], generator=6
    )
    assert [text[-1] for text in run.tokens] == [2, 2] and run.calls[0] != run.calls[1]


def test_a_decoder_writes_on_after_such_an_error():
    """Its caches held NaN, which attention would read even behind a mask."""
    target, _ = make_pair()
    read = target.embed
    target.embed = lambda tokens: torch.where(tokens[..., None] == 7, torch.nan, read(tokens))
    settings = {"max_new_tokens": 9, "temperature": 0}
    expected = generate(target, None, [[1]], num_drafts=0, **settings).tokens
    decoder = Decoder(target, None, num_drafts=0, temperature=0)
    with pytest.raises(ValueError, match="position 6"):
        decoder.generate([[1, 2, 3, 4, 7, 5]], max_new_tokens=9)
    assert decoder.generate([[1]], max_new_tokens=9).tokens == expected
