"""The code on the page "Add a verifier" runs, and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from spectr_lite import check, transport, verifiers
from spectr_lite.decoding.enumeration import path_block_distribution

PAGE = Path(__file__).resolve().parent.parent / "book" / "add-your-own.md"


@pytest.fixture(scope="module")
def page():
    """The names that the page's Python blocks define, run in order."""
    names: dict = {}
    known = dict(verifiers.RULES)
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S):
        exec(compile(block, str(PAGE), "exec"), names)
    verifiers.RULES["best-guess"] = names["BestGuess"]
    yield names
    verifiers.RULES.clear()
    verifiers.RULES.update(known)


def test_the_page_has_a_rule_that_is_registered_and_lossless(page):
    rule = verifiers.get("best-guess")
    assert isinstance(rule, page["BestGuess"])
    rng = np.random.default_rng(0)
    for k in (1, 2, 3):
        draft, target = rng.dirichlet(np.full(4, 0.7), size=2)
        np.testing.assert_allclose(rule.output_distribution(draft, target, k), target, atol=1e-12)
        optimum = transport.optimal_acceptance(draft, target, k)
        assert rule.acceptance(draft, target, k) <= optimum + 1e-12


def test_its_verdict_is_lossless(page):
    assert isinstance(page["verdict"], check.Verdict)
    assert page["verdict"].lossless


def test_it_walks_a_tree_and_bears_dead_drafts(page):
    rule = verifiers.get("best-guess")
    draft, target = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    probs, _ = path_block_distribution(lambda prefix: target, lambda prefix: draft, rule, 2, 2)
    expected = target[:, None, None] * target[:, None] * target
    np.testing.assert_allclose(probs, expected, atol=1e-12)
    p, q = torch.as_tensor(draft), torch.as_tensor(target)
    with_dead = rule._given_drafts(p, q, torch.tensor([[-1, 2, 0]]))
    torch.testing.assert_close(with_dead, rule._given_drafts(p, q, torch.tensor([[2, 0]])))
