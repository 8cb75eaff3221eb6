"""The map of chapter 10: the setting that wins at each cost, and this machine's place on it."""

from __future__ import annotations

import numpy as np
import pytest

from spectr_experiments import clocks, decision
from spectr_lite.book import recorded
from spectr_lite.models import ModelPair
from spectr_lite.models.markov import worked_pair

SETTINGS = [
    decision.NOTHING,
    {"verifier": "block", "num_drafts": 1, "draft_length": 4, "block_efficiency": 3.0},
    {"verifier": "kseq", "num_drafts": 8, "draft_length": 4, "block_efficiency": 4.0},
    {"verifier": "kseq", "num_drafts": 2, "draft_length": 4, "block_efficiency": 3.5},
]


def test_speed_is_tokens_over_the_cost_of_a_turn() -> None:
    found = decision.speeds(SETTINGS, 0.1, 0.01)
    # A turn: one step, four draft steps, and a token scored beyond the first, K L times.
    assert found == pytest.approx([1.0, 3 / 1.44, 4 / 1.72, 3.5 / 1.48])
    assert decision.speeds(SETTINGS, [0.1, 0.2], [[0.0], [0.1], [0.2]]).shape == (4, 3, 2)


def test_the_map_has_each_place_once_and_the_winner_there() -> None:
    draft, score = np.geomspace(0.01, 1, 30), np.geomspace(1e-4, 0.5, 40)
    found = decision.regions(SETTINGS, draft, score)
    assert sum(region.mask.astype(int) for region in found).tolist() == [[1] * 30] * 40
    assert sum(region.area for region in found) == pytest.approx(1)
    by_rule = {region.verifier: region for region in found}
    assert set(by_rule) == {"autoregressive", "block", "kseq"}
    assert by_rule["kseq"].drafts == [2, 8] and by_rule["block"].drafts == [1]
    for region in found:
        speed = decision.speeds(SETTINGS, region.draft, region.score)
        winner = SETTINGS[int(speed.argmax())]
        assert winner["verifier"] == region.verifier and speed.max() == region.speed
    assert by_rule["autoregressive"].mask[-1, -1] and by_rule["kseq"].mask[0, 0]


def test_only_one_temperature_and_what_was_measured() -> None:
    run = next(r for r in recorded.summary("table1")["runs"] if r["run"] == "bundled-cpu-2")
    found = decision.settings_of(run)
    assert found[0] is decision.NOTHING
    assert {s["temperature"] for s in found[1:]} == {1.0} and all(
        s["num_drafts"] for s in found[1:]
    )
    assert len(found) == 1 + sum(
        c["temperature"] == 1 and c["num_drafts"] > 0 for c in run["cells"]
    )


def test_this_machine_has_a_place(monkeypatch) -> None:
    target, draft = worked_pair()
    seconds = {(target, 1): 2.0, (target, 65): 3.28, (draft, 8): 0.5}
    monkeypatch.setattr(clocks, "call", lambda model, tokens, _: lambda: seconds[model, tokens])
    found = decision.costs_here(ModelPair("worked", target, draft, None))
    assert found == pytest.approx((0.25, 0.01))
    seconds[target, 65] = 1.9  # a slope below zero is a slope of zero
    assert decision.costs_here(ModelPair("worked", target, draft, None))[1] == 0
