"""The transport benchmark: its summary is what its records give; its sort-free optimum is exact."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from spectr_experiments import command
from spectr_experiments import transport as benchmark
from spectr_lite import distributions, transport

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def summary() -> dict:
    (folder,) = (ROOT / "results" / "benchmark-transport").iterdir()
    return command.summary_of(command.run_at(folder))


def test_every_goal_was_met_and_every_program_agreed(summary: dict) -> None:
    goals = [row for row in summary["timings"] if "goal_ms" in row]
    assert len(goals) == len(benchmark.CONFIG["goal_ms"])
    assert all(row["median_ms"] < row["goal_ms"] for row in goals)
    assert all(row["difference"] < 5e-4 for row in summary["accuracy"])
    solved = [row for row in summary["programs"] if row["seconds"] is not None]
    assert solved and all(row["difference"] < 1e-8 for row in solved)


def test_memory_estimate_covers_what_was_measured(summary: dict) -> None:
    for row in summary["programs"]:
        if row["seconds"] is not None:
            size = row["vocabulary"], row["drafts"], row["formulation"]
            assert (
                row["peak_bytes"] < transport.lp_bytes(*size) + 16 * 2**20
            )  # what any solve holds


def test_records_name_no_machine() -> None:
    for path in (ROOT / "results" / "benchmark-transport").rglob("*.json*"):
        assert not re.search(r"/(home|root|work|tmp|Users)\b", path.read_text(encoding="utf-8")), (
            path
        )


def test_optimum_by_cells_equals_the_sorted_one() -> None:
    rng = np.random.default_rng(0)
    for seed in range(300):
        vocabulary, k = int(rng.integers(1, 60)), int(rng.integers(1, 9))
        pair = distributions.dirichlet(vocabulary, float(rng.choice([0.1, 1.0, 5.0])), seed)
        # Zeros in both distributions, in different places, and never all of them.
        draft, target = (np.where(rng.random(vocabulary) < 0.3, 0, law) for law in pair)
        draft[0] += 1e-3
        target[-1] += 1e-3
        draft, target = draft / draft.sum(), target / target.sum()
        value, _ = benchmark.optimum_by_cells(draft, target, k)
        assert value == pytest.approx(transport.optimal_acceptance(draft, target, k), abs=1e-12)
    value, looked_at = benchmark.optimum_by_cells(*distributions.zipf(50_000), 8)
    assert looked_at < 500
    assert value == pytest.approx(
        transport.optimal_acceptance(*distributions.zipf(50_000), 8), abs=1e-12
    )


def test_next_token_laws_are_the_recorded_file() -> None:
    (config,) = (ROOT / "results" / "next-token-laws").glob("*/config.json")
    recorded = json.loads(config.read_text(encoding="utf-8"))
    content = (ROOT / "spectr_lite" / "results" / "next-token-laws.npz").read_bytes()
    assert hashlib.sha256(content).hexdigest() == recorded["file_sha256"]
