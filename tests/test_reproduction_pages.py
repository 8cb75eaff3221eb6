"""Ledger, card and "Leaving one GPU": made from the records, and their code runs."""

from __future__ import annotations

import copy
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from recorded_numbers import front_page, models_page
from recorded_numbers import reproduction as writer

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "book" / f"{name}.md" for name in ("claims-ledger", "leaving-one-gpu")]


@pytest.fixture(scope="module")
def runs() -> list[dict[str, Any]]:
    path = ROOT / "spectr_lite" / "results" / "table1.json"
    return json.loads(path.read_text("utf-8"))["runs"]


def timed_on_a_gpu(run: dict[str, Any]) -> dict[str, Any]:
    made = copy.deepcopy(run)
    made["config"]["device"] = "cuda"
    for row in made["cells"]:
        row |= {"steps": {"value": 1.5, "error": 0.01, "degrees": 39}}
    made["environment"].append({"phase": "timing", "load_average": 0.5, "load_average_end": 0.75})
    return made


def test_every_row_of_a_table_names_its_run(runs: list[dict]) -> None:
    for make in ("efficiencies", "rules", "projection", "chains"):
        rows = [
            line
            for line in getattr(writer, make)(runs).splitlines()
            if re.search(r"\d\.\d\d", line)
        ]
        ours = [row for row in rows if row.startswith("|")]
        assert ours, make
        for row in ours:
            assert re.search(r"results/table1/[\w-]+/env.json", row), row


def test_speed_is_called_measured_by_a_gpu_alone(
    runs: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = {"runs": []}
    monkeypatch.setattr(writer, "summary", lambda _: nothing)
    untimed = copy.deepcopy(runs[0])
    for row in untimed["cells"]:
        row |= {"steps": None}
    on_gpu = timed_on_a_gpu(runs[0])
    on_cpu = copy.deepcopy(on_gpu)
    on_cpu["config"]["device"] = "cpu"
    for run, words in (
        (untimed, "Not yet measured**, on any device"),
        (on_cpu, "Not yet measured on a GPU"),
        (on_gpu, "**Measured on a GPU.**"),
    ):
        times = writer.timed([run])
        for text in (writer.speeds(times, 0), writer.speeds(times, 1)):
            assert words in text
        assert words in writer.drafts_cost(times)
    assert "No GPU yet" in writer.card([on_cpu]) and "No GPU yet" not in writer.card([on_gpu])


def test_the_ratio_over_one_draft_is_a_ratio(runs: list[dict]) -> None:
    run = timed_on_a_gpu(runs[0])
    for cell in run["cells"]:
        if (cell["verifier"], cell["temperature"]) == ("kseq", 1):
            cell |= {"block_efficiency": 3.0, "interval": [2.94, 3.06]}
            if (cell["num_drafts"], cell["draft_length"]) == (1, 4):
                cell["steps"] = cell["steps"] | {"value": 1.2}
    times = [point for point in writer.timed([run]) if "table1" in point.source]
    assert re.search(r"\| GPU \| 0\.80 \[0\.7\d, 0\.8\d\] \|", writer.speeds(times, 1))
    assert re.search(r"\| GPU \| 2\.00 \[1\.9\d, 2\.0\d\] \|", writer.speeds(times, 0))
    assert re.search(r"\| GPU \| \+25% \[\+2\d%, \+2\d%\] \|", writer.drafts_cost(times))
    assert "load " in writer.speeds(times, 0)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_points_to_are_there(page: Path) -> None:
    text = page.read_text("utf-8")
    named = re.findall(r"\]\(repo:([^)#]+)\)", text)
    linked = [page.parent / name for name in re.findall(r"\]\((?!\w+:)([^)#]+)\)", text)]
    assert named and linked
    for path in [ROOT / name for name in named] + linked:
        assert path.is_file(), path
    labels = re.findall(r":label: (\S+)", (ROOT / "book" / "proofs.md").read_text("utf-8"))
    assert set(re.findall(r"\{prf:ref\}`([^`]+)`", text)) <= set(labels)


def test_the_projection_on_the_page_runs(
    runs: list[dict], capsys: pytest.CaptureFixture[str]
) -> None:
    *_, block = re.findall(r"```python\n(.*?)```", PAGES[1].read_text("utf-8"), flags=re.S)
    page: dict[str, Any] = {}
    exec(compile(block, str(PAGES[1]), "exec"), page)
    assert capsys.readouterr().out.count("times as fast") == len({run["pair"] for run in runs})
    costs = page["engine_costs"](target_step=20.0, draft_step=1.0, target_call=24.0, K=8, L=4)
    assert costs.turn(8, 4) == pytest.approx(1.2 + 4 / 20)  # the call, and four steps of the draft
    assert costs.turn(0, 0) == pytest.approx(1)  # autoregressive decoding
    cell = writer.cell(runs, 8, 4)
    value, low, high = page["projected_speed"](cell, costs)
    assert value == pytest.approx(cell["block_efficiency"] / 1.4)
    assert low < value < high


def test_of_several_runs_a_cell_is_taken_from_the_largest(runs: list[dict]) -> None:
    few, many, untimed = (copy.deepcopy(runs[0]) | {"run": name} for name in ("a", "b", "c"))
    for run, n in ((few, 10), (many, 20), (untimed, 30)):
        for row in run["cells"]:
            row |= {"n": n}
    assert writer.cell([few, many, untimed], 8, 4)["run"] == "c"
    assert writer.cell([few, many], 3, 5) is None


def test_every_part_with_a_number_names_a_run() -> None:
    assert len(writer.FRAGMENTS) > 10
    computed = ("ledger_guarantee", "ledger_more_drafts")  # exact; and a count over the table below
    for name, make in writer.FRAGMENTS.items():
        if name not in computed and re.search(r"\d\.\d", text := make()):
            assert re.search(r"\(repo:results/[\w-]+/[\w-]+/env\.json\)", text), name


def test_the_front_pages_gap_is_the_records_and_has_its_interval() -> None:
    folder = ROOT / "results" / "smollm2-drafts" / "smollm2-1"
    lines = map(json.loads, (folder / "records.jsonl").read_text("utf-8").splitlines())
    rows = [line["drafts"]["smollm2-distilled"] for line in lines if line.get("text") == "own"]
    kseq, best = (1 - np.array([row[key]["8"] for row in rows]) for key in ("kseq", "optimum"))
    saved = 1 - best.sum() / kseq.sum()
    left = (best - (1 - saved) * kseq) / kseq.mean()
    half = scipy.stats.t.ppf(0.975, len(rows) - 1) * scipy.stats.sem(left)
    shown = [float(share) for share in re.findall(r"(\d+)%", front_page.gap_closed())]
    assert [shown[0], *shown[2:4]] == pytest.approx(
        [100 * value for value in (saved, saved - half, saved + half)], abs=0.5
    )
    assert f"over {len(rows)} texts" in front_page.gap_closed()


def test_steps_between_ways_of_drafting_are_paired_by_text(runs: list[dict]) -> None:
    compared = 0
    for run in (run for run in runs if run["draft_laws"]):
        file = ROOT / "results" / "table1" / run["run"] / "draft-laws.jsonl.gz"
        found: dict[tuple, dict[int, float]] = {}
        for line in map(json.loads, gzip.decompress(file.read_bytes()).splitlines()):
            key = line["law"], line["rule"], line["k"], line["temperature"]
            found.setdefault(key, {})[line["prompt"]] = line["acceptance"]
        for row in run["draft_laws"]:
            law, rule, *where = (row[name] for name in ("law", "rule", "k", "temperature"))
            for base, step in row["over"].items():
                mine, other = found[law, rule, *where], found["iid", base, *where]
                steps = np.array([mine[p] - other[p] for p in mine.keys() & other.keys()])
                half = scipy.stats.t.ppf(0.975, len(steps) - 1) * scipy.stats.sem(steps)
                ends = [steps.mean() - half, steps.mean() + half]
                assert step["difference"] == pytest.approx(steps.mean(), abs=1e-12)
                assert step["interval"] == pytest.approx(ends, abs=1e-12)
                compared += 1
            assert (law, rule) == ("iid", "kseq") or "kseq" in row["over"]
    assert compared > 50


def test_every_mean_over_texts_has_an_interval() -> None:
    for part in (front_page.FRAGMENTS["front_pretrained"](), models_page.smollm2_drafts()):
        rows = [line for line in part.splitlines() if re.search(r"0\.\d{3}", line)]
        assert rows
        for row in rows:
            means = re.findall(r"0\.\d{3} \[0\.\d{3}, [01]\.\d{3}\]", row)
            assert len(means) == 3, row
