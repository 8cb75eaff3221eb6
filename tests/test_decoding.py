"""The loop as it runs: the distributions it shows to the rule, the text it emits, and how it ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decoding_rules import WRONG, decoding_rules
from tiny_models import make_pair

from spectr_lite import verifiers
from spectr_lite.decoding import Tree, decode, generate
from spectr_lite.decoding.enumeration import joint_distribution
from spectr_lite.decoding.sampling import Sampling
from spectr_lite.models import load_pair
from spectr_lite.models.markov import worked_pair
from spectr_lite.stats import chi_square
from spectr_lite.verifiers.base import TreeVerifier

FALSE_ALARM = 1e-6  # of each statistical test; seeds are fixed, so a failure stays one
START = 3  # the start token of the worked chain


@pytest.fixture(scope="module")
def tiny_pair():
    return make_pair()


@pytest.fixture(scope="module")
def bundled():
    return load_pair("bundled")


PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 0, 1]]


def reread(model, tokens, temperature=1.0):
    """The distribution of the token after `tokens` (a list), without any cache."""
    return torch.softmax(model(torch.tensor([tokens]))[0, -1] / temperature, -1)


# --- what the rule is shown, to rounding: cache, tree mask, positions and moves stand behind it ---


class Spy(verifiers.Verifier):
    """K-SEQ, noting what it is asked."""

    def __init__(self):
        self.calls = []

    def _given_drafts(self, draft, target, tokens):
        return verifiers.get("kseq")._given_drafts(draft, target, tokens)

    def _select(self, draft, target, tokens, generator):
        token = verifiers.get("kseq")._select(draft, target, tokens, generator)
        self.calls.append((draft.clone(), target.clone(), tokens.clone(), token))
        return token


@pytest.mark.parametrize(
    ("num_drafts", "draft_length", "temperature"), [(1, 3, 1), (3, 4, 0.7), (4, 1, 1.5)]
)
def test_every_distribution_shown_to_the_rule_is_the_distribution_of_the_text_so_far(
    tiny_pair, num_drafts, draft_length, temperature
):
    target, draft = tiny_pair
    spy = Spy()
    texts = [list(prompt) for prompt in PROMPTS]
    depths_seen, bonuses = set(), 0
    turns = decode(
        target,
        draft,
        PROMPTS,
        verifier=spy,
        num_drafts=num_drafts,
        draft_length=draft_length,
        max_new_tokens=40,
        temperature=temperature,
        generator=1,
    )
    for turn in turns:
        for row, text in enumerate(texts):
            block = turn.block[row, : turn.accepted[row] + 1].tolist()
            for depth, (p, q, tokens, token) in enumerate(spy.calls):
                if depth > turn.accepted[row]:  # a stopped row, kept busy with one draft
                    assert (tokens[row] >= 0).sum() == 1
                if depth > turn.accepted[row] or not turn.active[row]:
                    continue
                context = text + block[:depth]
                if (
                    len(context) < len(PROMPTS[row]) + 40
                ):  # further distributions cannot reach the text
                    for shown, model in ((p, draft), (q, target)):
                        probs = reread(model, context, temperature)
                        torch.testing.assert_close(shown[row], probs, rtol=0, atol=1e-11)
                alive = (turn.drafted[row, :, :depth] == torch.tensor(block[:depth])).all(-1)
                offered = torch.where(alive, turn.drafted[row, :, depth], -1)
                assert tokens[row].tolist() == offered.tolist()
                assert token[row] == block[depth]
                depths_seen.add(depth)
            text += turn.tokens(row)
            bonuses += turn.kinds(row)[-1:] == ["bonus"]
        spy.calls.clear()
    assert depths_seen == set(range(draft_length))
    assert bonuses > 0  # the one case in which the draft's cache lags by a token
    assert [len(text) for text in texts] == [len(prompt) + 40 for prompt in PROMPTS]


class PathSpy(TreeVerifier):
    """Optimal selection with block verification, noting what it is asked."""

    def _given_paths(self, draft_probs, target_probs, paths):
        return verifiers.get("optimal-block")._given_paths(draft_probs, target_probs, paths)

    def _verify(self, draft_probs, target_probs, paths, generator):
        self.asked = draft_probs, target_probs, paths
        return verifiers.get("optimal-block")._verify(draft_probs, target_probs, paths, generator)


def test_every_distribution_shown_to_a_rule_for_paths_is_the_distribution_of_its_path(tiny_pair):
    target, draft = tiny_pair
    spy = PathSpy()
    texts = [list(prompt) for prompt in PROMPTS]
    settings = {"num_drafts": 2, "draft_length": 3, "max_new_tokens": 15, "temperature": 0.8}
    for turn in decode(target, draft, PROMPTS, verifier=spy, generator=0, **settings):
        draft_probs, target_probs, paths = spy.asked
        assert (paths == turn.drafted).all()
        for row, text in enumerate(texts):
            for j, path in enumerate(paths[row].tolist()):
                for i in range(4):
                    context = [*text, *path[:i]]
                    if not turn.active[row] or len(context) >= len(PROMPTS[row]) + 15:
                        continue
                    probs = reread(target, context, 0.8)
                    torch.testing.assert_close(target_probs[row, j, i], probs, rtol=0, atol=1e-11)
                    if i < 3:
                        probs = reread(draft, context, 0.8)
                        torch.testing.assert_close(
                            draft_probs[row, j, i], probs, rtol=0, atol=1e-11
                        )
            text += turn.tokens(row)
    assert [len(text) for text in texts] == [len(prompt) + 15 for prompt in PROMPTS]


def test_tree_mask_by_hand():
    """K = 2 paths of L = 2 behind a prefix of 2; slots: prefix, root, a1 a2, b1 b2."""
    mask = Tree(2, 2).mask(torch.tensor([3]), span=7)
    expected = """
        111....
        1111...
        11111..
        111..1.
        111..11
    """
    assert ["".join(".1"[x] for x in row) for row in mask[0].tolist()] == expected.split()


class Counting:
    """A model that counts its calls and the cache slots it was asked for."""

    def __init__(self, model):
        self.model, self.calls = model, []
        self.config, self.vocab_size, self.device = model.config, model.vocab_size, model.device

    def new_cache(self, batch, slots):
        self.cache_shape = (batch, slots)
        return self.model.new_cache(batch, slots)

    def __call__(self, tokens, *rest):
        self.calls.append(tuple(tokens.shape))
        return self.model(tokens, *rest)


def test_one_target_call_each_turn_and_one_copy_of_the_prefix(tiny_pair):
    target, draft = map(Counting, tiny_pair)
    run = generate(target, draft, PROMPTS, num_drafts=4, draft_length=3, max_new_tokens=20)
    turns = len(run.turns)
    assert target.calls == [(3, 7)] + [(3, 1 + 4 * 3)] * turns
    assert draft.calls == [(3, 7)] + [(3, 2), (3, 4), (3, 4)] * turns
    assert target.cache_shape == draft.cache_shape == (3, 8 + 20 + 4 * 3)


def test_a_prompt_read_in_pieces_is_the_same_prompt(tiny_pair, monkeypatch):
    settings = {"num_drafts": 2, "draft_length": 2, "max_new_tokens": 10, "generator": 4}
    whole = generate(*tiny_pair, PROMPTS, **settings)
    monkeypatch.setattr("spectr_lite.decoding.loop.PROMPT_PIECE", 3)
    assert generate(*tiny_pair, PROMPTS, **settings).tokens == whole.tokens


# --- the distribution of the text, by sampling ---


def joint_counts(run, vocabulary, length):
    counts = np.zeros((vocabulary,) * length, int)
    np.add.at(counts, tuple(np.array(run.tokens)[:, :length].T), 1)
    return counts


@pytest.mark.parametrize(
    ("verifier", "num_drafts", "draft_length"),
    [
        ("kseq", 0, 1),
        ("coupling", 1, 2),
        ("kseq", 1, 4),
        ("kseq", 2, 1),
        ("kseq", 3, 2),
        ("block", 1, 2),
        ("traversal", 2, 2),
        ("multipath-block", 2, 2),
        ("optimal-block", 3, 2),
    ],
)
def test_text_follows_the_target(verifier, num_drafts, draft_length):
    target, draft = worked_pair()
    run = generate(
        target,
        draft,
        [[START]] * 20_000,
        verifier=verifier,
        num_drafts=num_drafts,
        draft_length=draft_length,
        max_new_tokens=3,
        generator=5,
    )
    result = chi_square(joint_counts(run, 3, 3), joint_distribution(target.next_probs, 3))
    assert result.degrees == 26
    assert result.p_value > FALSE_ALARM


@pytest.mark.parametrize("verifier", ["kseq", "optimal", "optimal-block"])
@pytest.mark.parametrize(
    "own",
    [Sampling(0.3, None, None), Sampling(1.0, 1, None), Sampling(2.0, None, 0.5), Sampling(0)],
)
def test_text_follows_the_target_whatever_shapes_the_draft(verifier, own):
    target, draft = worked_pair()
    settings = {"verifier": verifier, "num_drafts": 2, "draft_length": 2, "max_new_tokens": 3}
    run = generate(
        target,
        draft,
        [[START]] * 20_000,
        temperature=0.7,
        draft_sampling=own,
        generator=8,
        **settings,
    )

    def cooled(prefix):
        weights = target.next_probs(prefix) ** (1 / 0.7)
        return weights / weights.sum()

    result = chi_square(joint_counts(run, 3, 3), joint_distribution(cooled, 3))
    assert result.degrees == 26
    assert result.p_value > FALSE_ALARM
    same = generate(target, draft, [[START]] * 50, temperature=0.7, generator=8, **settings)
    assert run.tokens[:50] != same.tokens or own.temperature == 0.7


@pytest.mark.parametrize("rule", WRONG, ids=lambda rule: type(rule).__name__)
def test_sampling_rejects_wrong_variants(rule):
    target, draft = worked_pair()
    run = generate(
        target,
        draft,
        [[START]] * 20_000,
        verifier=rule,
        num_drafts=3,
        draft_length=2,
        max_new_tokens=3,
        generator=5,
    )
    result = chi_square(joint_counts(run, 3, 3), joint_distribution(target.next_probs, 3))
    assert result.p_value < FALSE_ALARM


@pytest.mark.parametrize("num_drafts", [0, 1, 3])
def test_text_of_a_transformer_follows_the_target(tiny_pair, num_drafts):
    """Rows of one batch start from different prompts, so that their caches are ragged."""
    target, draft = tiny_pair
    run = generate(
        target,
        draft,
        [PROMPTS[row % 2] for row in range(4000)],
        num_drafts=num_drafts,
        draft_length=2,
        max_new_tokens=3,
        generator=6,
    )
    for row in range(2):

        def probs(prefix, row=row):
            return reread(target, [*PROMPTS[row], *prefix]).numpy()

        counts = np.zeros((11, 11), int)
        np.add.at(counts, tuple(np.array(run.tokens[row::2])[:, 1:].T), 1)
        assert chi_square(counts, joint_distribution(probs, 3).sum(0)).p_value > FALSE_ALARM


def test_mean_block_of_the_first_turn_is_the_enumerated_one():
    target, draft = worked_pair()
    run = generate(
        target,
        draft,
        [[START]] * 20_000,
        num_drafts=2,
        draft_length=4,
        max_new_tokens=1,
        generator=7,
    )
    assert run.calls == [1] * 20_000
    spread = np.std(run.emitted) / 20_000**0.5
    assert abs(run.block_efficiency - 3.03884151) < 5 * spread


def cells_of_two_tokens(model, prompt, first=12, second=6):
    """The next two tokens' distribution, rare ones merged: a (V, V + 1) table of cell numbers, and the
    probability of each cell. Cell 0 is every unlikely first token."""
    start = reread(model, prompt)
    likely = start.topk(first).indices.tolist()
    cell = np.zeros((len(start), len(start)), int)
    probabilities = [1 - start[likely].sum().item()]
    for token in likely:
        after = reread(model, [*prompt, token])
        kept = after.topk(second).indices
        cell[token] = len(probabilities)
        probabilities.append(start[token].item() * (1 - after[kept].sum().item()))
        for other in kept.tolist():
            cell[token, other] = len(probabilities)
            probabilities.append((start[token] * after[other]).item())
    return cell, np.array(probabilities)


def two_tokens_of_the_bundled_pair(bundled, **settings):
    """Chi-square of two tokens behind one prompt, 750 times."""
    prompt = bundled.tokenizer.encode("The people of").ids
    cell, probabilities = cells_of_two_tokens(bundled.target, prompt)
    counts = np.zeros(len(probabilities), int)
    settings |= {"draft_length": 2, "max_new_tokens": 2}
    for seed in range(5):
        run = generate(bundled.target, bundled.draft, [prompt] * 150, generator=seed, **settings)
        first, second = np.array(run.tokens).T
        np.add.at(counts, cell[first, second], 1)
    result = chi_square(counts, probabilities, min_expected=5)
    assert result.degrees >= 5
    return result.p_value


@pytest.mark.parametrize("num_drafts", [0, 1, 3])
def test_text_of_the_bundled_pair_follows_its_target(bundled, num_drafts):
    assert two_tokens_of_the_bundled_pair(bundled, num_drafts=num_drafts) > FALSE_ALARM


def test_text_of_the_bundled_pair_shows_a_wrong_variant(bundled):
    """The least biased of them: it only looks at equal drafts once."""
    assert two_tokens_of_the_bundled_pair(bundled, num_drafts=4, verifier=WRONG[0]) < FALSE_ALARM


# --- greedy decoding ---


@pytest.mark.parametrize(("verifier", "num_drafts"), list(decoding_rules()))
def test_temperature_0_is_greedy_decoding(tiny_pair, verifier, num_drafts):
    target, draft = tiny_pair
    plain = generate(target, None, PROMPTS, num_drafts=0, max_new_tokens=30, temperature=0)
    for row, prompt in enumerate(PROMPTS):
        text = list(prompt)
        for token in plain.tokens[row]:
            assert token == reread(target, text).argmax()
            text.append(token)
    settings = {
        "verifier": verifier,
        "num_drafts": num_drafts,
        "max_new_tokens": 30,
        "temperature": 0,
    }
    run = generate(target, draft, PROMPTS, draft_length=3, **settings)
    assert run.tokens == plain.tokens
    again = generate(target, target, PROMPTS, draft_length=4, **settings)
    assert again.tokens == plain.tokens
    assert again.block_efficiency == 5
    warm = Sampling(1.5, None, None)
    assert generate(target, draft, PROMPTS, draft_sampling=warm, **settings).tokens == plain.tokens


def test_greedy_text_of_the_bundled_pair(bundled):
    texts = ["We have", "The Congress of the United States", "My fellow citizens, I"]
    prompts = [bundled.tokenizer.encode(text).ids for text in texts]
    settings = {"max_new_tokens": 24, "temperature": 0}
    plain = generate(bundled.target, None, prompts, num_drafts=0, **settings)
    for num_drafts in (1, 4):
        run = generate(bundled.target, bundled.draft, prompts, num_drafts=num_drafts, **settings)
        assert run.tokens == plain.tokens
    assert run.block_efficiency > 1.5


def test_a_ragged_batch_equals_its_rows_alone(tiny_pair):
    settings = {"num_drafts": 2, "draft_length": 3, "max_new_tokens": 25, "temperature": 0}
    together = generate(*tiny_pair, PROMPTS, **settings)
    alone = [generate(*tiny_pair, [prompt], **settings) for prompt in PROMPTS]
    assert together.tokens == [run.tokens[0] for run in alone]
    assert together.calls == [run.calls[0] for run in alone]


# --- how a text ends ---


@pytest.mark.parametrize("num_drafts", [0, 1, 3])
@pytest.mark.parametrize("max_new_tokens", [1, 2, 7])
def test_text_has_exactly_the_tokens_asked_for(tiny_pair, num_drafts, max_new_tokens):
    settings = {"num_drafts": num_drafts, "max_new_tokens": max_new_tokens, "generator": 8}
    run = generate(*tiny_pair, PROMPTS, **settings)
    assert [len(tokens) for tokens in run.tokens] == [max_new_tokens] * 3
    assert all(0 <= token < 11 for tokens in run.tokens for token in tokens)


def test_a_shorter_limit_keeps_the_beginning(tiny_pair):
    """The block that is cut loses its last tokens, and nothing before it changes."""
    texts = [
        generate(*tiny_pair, [[1, 2]], max_new_tokens=n, generator=9).tokens[0]
        for n in range(1, 25, 4)
    ]
    assert all(texts[-1][: len(text)] == text for text in texts)


def test_a_stop_token_ends_its_row_only(tiny_pair):
    settings = {"num_drafts": 3, "draft_length": 3, "max_new_tokens": 40, "temperature": 0}
    free = generate(*tiny_pair, PROMPTS, **settings).tokens
    stop = free[0][5]
    run = generate(*tiny_pair, PROMPTS, stop_tokens=[stop], **settings)
    for tokens, unstopped in zip(run.tokens, free, strict=True):
        end = unstopped.index(stop) + 1 if stop in unstopped else len(unstopped)
        assert tokens == unstopped[:end]


def test_a_stop_token_behind_the_limit_does_not_extend_the_text(tiny_pair):
    target, _ = tiny_pair
    settings = {"num_drafts": 1, "draft_length": 6, "temperature": 0}
    free = generate(target, target, [[4]], max_new_tokens=7, **settings).tokens[0]
    end = next(i for i in range(1, 7) if free[i] not in free[:i])
    run = generate(target, target, [[4]], max_new_tokens=end, stop_tokens=[free[end]], **settings)
    assert run.tokens == [free[:end]]


def test_turns_account_for_every_token(tiny_pair):
    run = generate(*tiny_pair, PROMPTS, num_drafts=3, draft_length=2, generator=10)
    for row, tokens in enumerate(run.tokens):
        assert tokens == [token for turn in run.turns for token in turn.tokens(row)]
        kinds = [kind for turn in run.turns for kind in turn.kinds(row)]
        assert len(kinds) == len(tokens)
        full = [turn for turn in run.turns if turn.kept[row] == turn.accepted[row] + 1]
        assert kinds.count("corrected") + kinds.count("bonus") == len(full)
        for turn in run.turns:
            accepted = turn.accepted[row]
            path = turn.drafted[row, turn.path[row], :accepted]
            assert turn.block[row, :accepted].tolist() == path.tolist()
            assert (turn.block[row, accepted + 1 :] == -1).all()
            if turn.kept[row] == accepted + 1:
                last = "bonus" if accepted == 2 else "corrected"
                assert turn.kinds(row) == ["accepted"] * int(accepted) + [last]
    calls = [sum(int(turn.active[row]) for turn in run.turns) for row in range(3)]
    assert run.calls == calls
    assert run.block_efficiency == sum(run.emitted) / sum(calls)


def test_autoregressive_decoding_has_block_efficiency_1(tiny_pair):
    run = generate(tiny_pair[0], None, PROMPTS, num_drafts=0, max_new_tokens=5)
    assert run.block_efficiency == 1
    assert run.calls == [5, 5, 5]


def test_the_context_can_be_filled_to_its_end(tiny_pair):
    """Drafts that reach past the last position cannot be kept, and must not be looked up."""
    run = generate(*tiny_pair, [[1] * 180], num_drafts=2, draft_length=8, max_new_tokens=20)
    assert len(run.tokens[0]) == 20


def test_one_seed_one_text(tiny_pair):
    first, again, other = (
        generate(*tiny_pair, PROMPTS, max_new_tokens=20, generator=seed).tokens
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_gradients_stay_as_the_caller_left_them(tiny_pair):
    for _ in decode(*tiny_pair, PROMPTS, max_new_tokens=3):
        assert torch.is_grad_enabled()


# --- arguments ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, r"prompts: found \[\]"),
        ({"prompts": [[1], []]}, r"prompts\[1\]: it is empty"),
        ({"prompts": [[1, 11]]}, r"prompts\[0\]: found id 11; the vocabulary has ids 0 to 10"),
        ({"prompts": [[-1]]}, r"prompts\[0\]: found id -1"),
        ({"prompts": [[1] * 190]}, r"190 tokens and max_new_tokens=20 exceed the models' context"),
        ({"max_new_tokens": 0}, "max_new_tokens: found 0"),
        ({"num_drafts": -1}, "num_drafts: found -1"),
        ({"draft_length": 0}, "draft_length: found 0"),
        ({"temperature": -0.5}, "temperature: found -0.5"),
        ({"temperature": float("nan")}, "temperature: found nan"),
        ({"verifier": "best"}, "no rule named 'best'"),
        ({"verifier": "coupling"}, "'coupling' cannot decode with num_drafts=3"),
        ({"stop_tokens": [12]}, "stop_tokens: found id 12"),
        ({"draft": None}, "draft: found None"),
        ({"draft": worked_pair()[1]}, "vocabularies of 4 and 11 tokens"),
    ],
)
def test_bad_values_are_refused_before_any_work(tiny_pair, change, message):
    target, draft = tiny_pair
    call = {"target": target, "draft": draft, "prompts": PROMPTS, "max_new_tokens": 20}
    with pytest.raises(ValueError, match=message):
        decode(**(call | {"num_drafts": 3, "draft_length": 2} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": ["text"]}, r"prompts\[0\]: found 'text'"),
        ({"prompts": [1, 2]}, r"prompts\[0\]: found 1"),
        ({"prompts": [[1.0]]}, r"prompts\[0\]: found 1.0"),
        ({"num_drafts": 2.0}, "num_drafts: expected a whole number"),
    ],
)
def test_wrong_types_are_refused(tiny_pair, change, message):
    with pytest.raises(TypeError, match=message):
        decode(*tiny_pair, **({"prompts": PROMPTS} | change))


def test_autoregressive_decoding_ignores_the_draft_settings(tiny_pair):
    run = generate(tiny_pair[0], None, PROMPTS, num_drafts=0, draft_length=0, max_new_tokens=2)
    assert [len(tokens) for tokens in run.tokens] == [2, 2, 2]
