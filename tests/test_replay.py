"""Replay: expected tokens from scored trees are those of the enumeration, for every rule and shape."""

from __future__ import annotations

import itertools
import json
from importlib.resources import files

import numpy as np
import pytest
import torch

from spectr_experiments import replay
from spectr_lite import verifiers
from spectr_lite.decoding import enumeration
from spectr_lite.distributions import IID
from spectr_lite.models import load_pair, prompts
from spectr_lite.models.markov import MarkovModel, worked_pair
from spectr_lite.stats import ratio_interval
from spectr_lite.verifiers import TreeVerifier
from spectr_lite.verifiers.kseq import KSeq

RULES = [
    name
    for name in verifiers.names()
    if IID in verifiers.get(name).valid_for and verifiers.get(name).only_k in (None, 1)
]
DRAFTS, LENGTHS = (1, 2), (1, 2)


def all_trees(target, draft, context, num_drafts, length):
    """Every tree that the draft can draw after `context`, with its probability."""
    vocabulary = target.vocab_size - 1
    single = list(itertools.product(range(vocabulary), repeat=length))
    for chosen in itertools.product(single, repeat=num_drafts):
        mass, draft_probs, target_probs = 1.0, [], []
        for path in chosen:
            texts = [context + path[:i] for i in range(length + 1)]
            draft_probs.append([draft.next_probs(text) for text in texts[:-1]])
            target_probs.append([target.next_probs(text) for text in texts])
            mass *= np.prod([p[t] for p, t in zip(draft_probs[-1], path, strict=True)])
        tables = (torch.from_numpy(np.array(t)) for t in (draft_probs, target_probs))
        yield mass, replay.ScoredTree(torch.tensor(chosen), *tables)


@pytest.mark.parametrize("rule", RULES)
def test_the_mean_over_all_trees_is_the_exact_expectation(rule):
    target, draft = worked_pair()
    verifier = verifiers.get(rule)
    found = sum(
        mass * replay.expected_tokens(verifier, tree, DRAFTS, LENGTHS).numpy()
        for mass, tree in all_trees(target, draft, (2,), 2, 2)
    )
    for (row, k), (column, length) in itertools.product(enumerate(DRAFTS), enumerate(LENGTHS)):
        if verifier.only_k in (None, k):
            exact = enumeration.expected_tokens(
                target.next_probs, draft.next_probs, rule, k, length, context=(2,)
            )
            assert found[row, column] == pytest.approx(exact, abs=1e-10)
        elif isinstance(verifier, TreeVerifier):
            assert np.isnan(found[row, column])


def test_deep_trees_with_many_drafts():
    rng = np.random.default_rng(3)
    rows = rng.dirichlet(np.full(2, 0.7), size=6)
    target, draft = MarkovModel(rows[:2], rows[2]), MarkovModel(rows[3:5], rows[5])
    found = sum(
        mass * replay.expected_tokens(KSeq(), tree, (1, 2, 3), (1, 2, 3)).numpy()
        for mass, tree in all_trees(target, draft, (0,), 3, 3)
    )
    exact = [
        [enumeration.expected_tokens(target.next_probs, draft.next_probs, "kseq", k, n, (0,))
         for n in (1, 2, 3)]
        for k in (1, 2, 3)
    ]  # fmt: skip
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-10)


def test_a_turns_tree_holds_the_models_own_probabilities():
    target, draft = worked_pair()
    decoder = replay.Watched(target, draft, num_drafts=3, draft_length=2)
    text = [1]
    for turn, tree in replay.turns_of_text(decoder, text, 12, seed=5):
        assert torch.equal(tree.paths, turn.drafted[0])
        for path, of_draft, of_target in zip(
            tree.paths.tolist(), tree.draft_probs, tree.target_probs, strict=True
        ):
            texts = [text + path[:i] for i in range(3)]
            for model, probs in ((draft, of_draft), (target, of_target)):
                for prefix, row in zip(texts, probs, strict=False):
                    np.testing.assert_allclose(row[:-1], model.next_probs(prefix), atol=1e-12)
        text = text + turn.tokens()
    assert len(text) == 13


def test_visited_nodes_compare_rules_with_the_optimum_for_the_drafts_alive():
    target, draft = worked_pair()
    decoder = replay.Watched(target, draft, num_drafts=2, draft_length=2)
    rules = {name: verifiers.get(name) for name in ("kseq", "optimal", "block")}
    depths = set()
    for turn, tree in replay.turns_of_text(decoder, [1], 40, seed=1):
        nodes = replay.visited(tree, turn, rules)
        depths.add(len(nodes))
        for depth, (optimum, node) in enumerate(nodes):
            assert set(node) == {"kseq", "optimal"}
            assert node["kseq"] <= optimum + 1e-9
            assert node["optimal"] == pytest.approx(optimum, abs=1e-9)
            # At the root both drafts are alive.
            if depth == 0:
                pair = tree.draft_probs[0, 0], tree.target_probs[0, 0]
                assert node["kseq"] == pytest.approx(float(KSeq().acceptance(*pair, 2)))
    assert depths == {1, 2}


def test_twelve_texts_agree_with_what_three_thousand_recorded():
    summary = json.loads(files("spectr_lite").joinpath("results/table1.json").read_text("utf-8"))
    (run,) = (r for r in summary["runs"] if r["run"] == "bundled-cpu-3")
    pair = load_pair("bundled")
    texts = prompts.load("sotu", pair.tokenizer, length=run["config"]["prompt_length"]).tokens[:12]
    decoder = replay.Watched(pair.target, pair.draft, num_drafts=8, draft_length=8)
    found = []
    for seed, text in enumerate(texts):
        turns = list(replay.turns_of_text(decoder, text, run["new_tokens"], seed))[::2]
        trees = [replay.expected_tokens(KSeq(), tree, (1, 8), (4, 8)) for _, tree in turns]
        found.append((torch.stack(trees).sum(0).numpy(), len(trees)))
    tokens, turns = (np.array(part) for part in zip(*found, strict=True))
    cells = [cell for cell in run["cells"] if cell["verifier"] == "kseq"]
    assert len(cells) == 4
    for cell in cells:
        place = (1, 8).index(cell["num_drafts"]), (4, 8).index(cell["draft_length"])
        here, _ = ratio_interval(tokens[:, place[0], place[1]], turns)
        widths = [(high - low) / 2 for low, high in (cell["interval"], (here.low, here.high))]
        assert abs(here.mean - cell["block_efficiency"]) < 1.3 * np.hypot(*widths)
