"""The one estimator of speed: its errors, which session it takes, and that the pages print it."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest
from recorded_numbers import reproduction
from scipy import stats

from spectr_experiments.speeds import Estimate, Speeds
from spectr_lite.book import recorded
from spectr_lite.stats import mean_interval


def test_the_ratio_of_two_estimates_is_welchs() -> None:
    rng = np.random.default_rng(5)
    ours, theirs = rng.lognormal(0.5, 0.2, 12), rng.lognormal(0.1, 0.5, 4)
    found = Estimate.of_rounds(ours).over(Estimate.of_rounds(theirs))
    test = stats.ttest_ind(np.log(ours), np.log(theirs), equal_var=False)
    ends = test.confidence_interval(0.95)
    assert np.log(found.interval) == pytest.approx([ends.low, ends.high])
    assert np.log(found.value) == pytest.approx(np.log(ours).mean() - np.log(theirs).mean())


def test_a_mean_keeps_its_interval_to_first_order() -> None:
    values = np.random.default_rng(6).normal(3, 0.1, 64)
    mean = mean_interval(values)
    made = Estimate.of_interval(mean.mean, (mean.low, mean.high), mean.n)
    assert made.interval == pytest.approx([mean.low, mean.high], rel=1e-3)
    assert Estimate.of(made.record()) == made


def test_one_round_has_no_interval() -> None:
    single, many = Estimate.of_rounds([2.0]), Estimate.of_rounds([1.0, 1.1])
    for made in (single, many.over(single), single.over(many)):
        assert made.interval is None and "[" not in str(made)


def a_run(prompts: int, tokens: float, cost: float, load: float) -> dict[str, Any]:
    """Of recorded shape: one pair, one cell."""
    run = copy.deepcopy(next(r for r in recorded.summary("table1")["runs"]))
    cell = next(c for c in run["cells"] if (c["num_drafts"], c["draft_length"]) == (8, 4))
    cell |= {"n": prompts, "block_efficiency": tokens, "interval": [tokens - 0.1, tokens + 0.1]}
    cell["steps"] = Estimate(cost, 0.02, 9).record()
    session = {"phase": "timing", "load_average": load, "load_average_end": load + 1}
    name = f"run-{prompts}"
    return run | {"run": name, "cells": [cell], "environment": [session]}


def test_tokens_are_of_most_prompts_and_cost_of_the_quietest_session() -> None:
    large_but_busy, small_but_quiet = a_run(1000, 3.0, 2.0, 9.0), a_run(10, 5.0, 1.5, 0.5)
    for runs in ([large_but_busy, small_but_quiet], [small_but_quiet, large_but_busy]):
        book = Speeds(runs, [])
        assert book.tokens("bundled", 8, 4).value == 3.0
        cost, session = book.cost("bundled", "CPU", 8, 4)
        assert (cost.value, session.run, session.load) == (1.5, "run-10", (0.5, 1.5))
        speed = book.speed("bundled", "CPU", 8, 4)
        assert speed.value == 2.0 and speed.interval[0] < 2 < speed.interval[1]
        assert speed.error**2 == pytest.approx(0.02**2 + book.tokens("bundled", 8, 4).error ** 2)
        assert book.speed("bundled", "GPU", 8, 4) is None
        assert book.speed("bundled", "CPU", 8, 8) is None
        assert book.tokens("bundled", 0, 0).value == 1


def test_the_ledger_prints_this_number_for_each_cell() -> None:
    book, page = Speeds(), reproduction.FRAGMENTS["ledger_speed"]()
    shown = re.findall(r"\d\.\d\d \[\d\.\d\d, \d\.\d\d\]", page)
    pairs = {(s.pair, s.kind) for s in book.sessions}
    known = [book.speed(*pair, 8, length) for pair in pairs for length in (4, 8)]
    assert sorted(shown) == sorted(str(speed) for speed in known if speed)
    assert len(shown) >= 4


def test_a_rule_over_kseq_agrees_with_its_two_factors() -> None:
    compared = 0
    for run in recorded.summary("table1")["runs"]:
        cells = {tuple(c[n] for n in ("num_drafts", "draft_length", "temperature", "verifier")): c
                 for c in run["cells"]}  # fmt: skip
        for (*shape, rule), cell in cells.items():
            over = cell["speed_over_kseq"]
            if over is None:
                continue
            kseq = cells[*shape, "kseq"]
            parts = [
                Estimate.of_interval(c["block_efficiency"], c["interval"], c["n"]).over(
                    Estimate.of(c["steps"])
                )
                for c in (cell, kseq)
            ]
            alone = parts[0].over(parts[1])  # as if nothing were paired
            assert over["value"] == pytest.approx(alone.value), (run["run"], rule)
            assert over["interval"][0] < over["value"] < over["interval"][1]
            compared += 1
    assert compared >= 20
