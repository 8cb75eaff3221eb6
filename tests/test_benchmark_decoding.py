"""The decoding benchmark: a quick run of all of it, its arithmetic, and the committed summary."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import test_graphs
import torch
from tiny_models import make_pair

from spectr_experiments import clocks, command, prediction
from spectr_experiments import decoding as benchmark
from spectr_experiments.records import Run
from spectr_lite.__main__ import main
from spectr_lite.book import costs
from spectr_lite.decoding import graphs
from spectr_lite.models import load_pair

ROOT = Path(__file__).resolve().parent.parent
recorded = test_graphs.recorded  # turns run as on a GPU, with a recorder for a graph


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    arguments = ["reproduce", "decoding", "--device", "cpu", "--quick", "--run-id", "try"]
    for more in ([], ["--resume"]):  # the second finds all done
        assert main([*arguments, "--results", str(folder), *more]) == 0
    return command.run_at(folder / "benchmark-decoding" / "try-bundled")


def test_a_quick_run_measures_everything(quick_run):
    records = quick_run.read("records")
    summary = command.summary_of(quick_run)
    assert summary["rounds"] == 1
    assert len(records) == len(list(benchmark.jobs(quick_run.config)))  # and nothing twice
    assert {record["part"] for record in records} >= {"loop", "stages"}
    shapes = {(m["num_drafts"], m["draft_length"]) for m in summary["methods"]}
    assert shapes == {(0, 0), (1, 2), (4, 2)}
    alone = next(m for m in summary["methods"] if m["num_drafts"] == 0)
    assert alone["block_efficiency"] == alone["speedup"]["median"] == alone["cost"]["median"] == 1
    for stage in summary["stages"]:
        milliseconds = stage["milliseconds"]
        assert sum(milliseconds.values()) == pytest.approx(stage["turn"])
        assert all(value >= 0 for value in milliseconds.values())
        assert milliseconds["score"] >= stage["forwards"]["target"] > 0
        assert milliseconds["draft"] >= stage["forwards"]["draft"]
    assert {v["target"] for v in summary["verdicts"]} == set(benchmark.TARGETS)
    assert not re.search(
        r"/(home|root|work|tmp|Users)\b", (quick_run.folder / "env.json").read_text()
    )


def test_autoregressive_steps_have_a_bandwidth(quick_run):
    for method in command.summary_of(quick_run)["methods"]:
        found = method["gigabytes_per_second"]
        assert (found is None) == (method["num_drafts"] > 0)
        if found:
            slots = quick_run.config["prompt_length"] + quick_run.config["new_tokens"]
            read = prediction.step_bytes("bundled", torch.float32, method["rows"], slots)
            per_step = method["rows"] / method["tokens_per_second"]["median"]
            assert found == pytest.approx(read / per_step / 1e9)


def test_transformers_assisted_generation_is_timed_beside(quick_run):
    """Where the library is there: each length of draft, more than a token a call and at most L + 1."""
    found = command.summary_of(quick_run)["assisted"]
    lengths = quick_run.config["grid"]["draft_length"] if quick_run.config["library_caches"] else []
    assert [row["draft_length"] for row in found] == lengths
    for row in found:
        assert 1 <= row["block_efficiency"] <= row["draft_length"] + 1
    if lengths:
        of_smollm2 = SimpleNamespace(draft=None, target=load_pair("bundled").target, name="other")
        of_smollm2.draft = torch.nn.Linear(1, 1)  # a draft that is no model of the library's
        config = benchmark.make_config(of_smollm2, torch.device("cpu"), False)
        assert not any(job["part"] == "assisted" for job in benchmark.jobs(config))


def test_a_short_run_has_every_length_of_one_draft_and_of_eight():
    config = benchmark.make_config(load_pair("bundled"), torch.device("cpu"), False, short=True)
    loops = [job for job in benchmark.jobs(config) if job["part"] == "loop"]
    shapes = {(job["num_drafts"], job["draft_length"]) for job in loops}
    assert shapes == {(0, 0), *((k, length) for k in (1, 8) for length in (1, 2, 4, 8))}
    assert {(job["rows"], job["verifier"]) for job in loops} == {(1, "kseq"), (1, "block")}


def test_the_text_takes_the_same_bytes_for_any_number_of_drafts(quick_run):
    rows = command.summary_of(quick_run)["memory"]
    assert [row["num_drafts"] for row in rows] == [1, 4]
    assert len({row["text_bytes"] for row in rows}) == 1
    assert all(row["bytes"] >= row["text_bytes"] for row in rows)
    assert rows[-1]["bytes"] < rows[-1]["copies_bytes"]


@pytest.mark.parametrize("verifier", ["kseq", "optimal-block"])
def test_stages_are_those_of_the_loop(verifier):
    """Called one by one they decode the same text, and they leave the models as they were."""
    pair = load_pair("bundled")
    settings = {"num_drafts": 2, "draft_length": 2, "generator": 0, "new_tokens": 20}
    settings |= {"verifier": verifier}
    rows = [[5, 6], [7]]
    plain = clocks.run_turns(pair.target, pair.draft, rows, **settings)
    staged = clocks.stage_turns(pair.target, pair.draft, rows, **settings)
    assert (plain.count, plain.emitted) == (staged.count, staged.emitted)
    assert {*clocks.STAGES, "target forward", "draft forward"} == set(staged.stages)
    assert sum(staged.stages[name] for name in clocks.STAGES) <= staged.seconds
    assert all(bool(turn.active.all()) for turn in plain.trace)
    assert not {"forward"} & {*vars(pair.target), *vars(pair.draft)}
    alone = clocks.stage_turns(pair.target, None, rows, num_drafts=0, new_tokens=5)
    assert alone.count == 4 and alone.stages["draft"] < alone.stages["score"]


@pytest.fixture
def watched(recorded, monkeypatch):
    """What happens, in order: "wait" at both ends of a clock, "first" run or "capture" of a step."""
    seen = []

    def noted(word, call):
        def noting(*arguments):
            seen.append(word)
            return call(*arguments)

        return noting

    for word, where, name in (
        ("wait", clocks, "wait"), ("first", graphs, "first_run"), ("capture", graphs, "capture")
    ):  # fmt: skip
        monkeypatch.setattr(where, name, noted(word, getattr(where, name)))
    clocks.kept_decoder.cache_clear()  # decoders of other tests record nothing
    yield seen
    clocks.kept_decoder.cache_clear()


def timed(seen):
    """From the first look at the clock to the last."""
    waits = [place for place, word in enumerate(seen) if word == "wait"]
    return seen[waits[0] : waits[-1]]


def test_no_clock_runs_while_a_turn_is_recorded(watched, recorded, monkeypatch, tmp_path):
    """All jobs of a benchmark, in its own order, with more rows and other spans than in the warm-up."""
    config = benchmark.FULL | {
        "device": "cpu", "library_caches": [], "most_rounds": 2, "prompt_length": 3,
        "warm_up_tokens": 6, "new_tokens": 24, "batches": [1, 3], "memory_drafts": [1],
        "grid": {"num_drafts": [1, 3], "draft_length": [2]}, "corner": [3, 2],
        "rules": ["kseq"],
    }  # fmt: skip
    work, of_jobs = benchmark.work, []

    def watching(job, *rest):
        watched.clear()
        recorded.clear()
        found = work(job, *rest)
        of_jobs.append((job, [*watched], len(recorded), found))
        return found

    monkeypatch.setattr(benchmark, "work", watching)
    run = Run(tmp_path, benchmark.SCHEMA, benchmark.KEYS)
    benchmark.measure(config, make_pair_named(), [[n, 1, 2] for n in range(4)], run, None)
    jobs = list(benchmark.jobs(config))
    assert len(of_jobs) == 3 * len(jobs)  # the warm-up and two rounds
    for job, seen, replays, found in of_jobs:
        assert "first" not in timed(seen) and "capture" not in timed(seen), job
        assert replays >= found["turns"], job
    recordings = [seen.count("capture") for job, seen, *_ in of_jobs if job["part"] == "loop"]
    half = len(recordings) // 3
    assert all(recordings[:half]) and sum(recordings[2 * half :]) == 0  # each is recorded once


def make_pair_named():
    target, draft = make_pair()
    return SimpleNamespace(name="tiny", target=target, draft=draft)


@pytest.mark.parametrize("rows", [[[5, 6], [7]], [[1, 2, 3]]])
def test_recorded_stages_write_the_text_of_the_loop(rows, recorded):
    pair = make_pair_named()
    settings = {"num_drafts": 2, "draft_length": 2, "generator": 1, "new_tokens": 25}
    plain = clocks.run_turns(pair.target, pair.draft, rows, **settings)
    staged = clocks.stage_turns(pair.target, pair.draft, rows, **settings)
    assert (plain.count, plain.emitted) == (staged.count, staged.emitted)
    assert set(staged.stages) == set(clocks.STAGES)  # no hook fires inside a graph


def test_the_fit_finds_the_costs_that_made_its_points():
    made = costs.Costs(fixed=0.7, draft=0.2, score=0.03, error=0.0)
    points = {(k, length): made.turn(k, length) for k in (1, 2, 8) for length in (2, 4, 8)}
    found = costs.fit_costs(points)
    for name in ("fixed", "draft", "score"):
        assert getattr(found, name) == pytest.approx(getattr(made, name))
    assert found.error < 1e-9


def test_acceptance_for_a_block_efficiency():
    assert costs.acceptance_for(sum(0.8**i for i in range(9)), 8) == pytest.approx(0.8)
    assert costs.acceptance_for(9.0, 8) == pytest.approx(1)
    assert costs.acceptance_for(9.1, 8) is None


def test_what_is_needed_is_enough():
    """At the costs or the block efficiency it names, the fitted speed is the one that was wanted."""
    fit = costs.Costs(fixed=1.0, draft=0.1, score=0.01, error=0.0)
    corner = {"cost": {"median": fit.turn(8, 8)}, "block_efficiency": 7.0}
    need = benchmark.needed(fit, corner, 8, 8)
    assert need["block_efficiency_needed"] / fit.turn(8, 8) == pytest.approx(2.13)
    cheaper = costs.Costs(1.0, need["draft_step_needed"], 0.01, 0.0)
    assert 7.0 / cheaper.turn(8, 8) == pytest.approx(2.13)


def test_verdicts_are_computed():
    at = {"num_drafts": 8, "draft_length": 8, "verifier": "kseq"}
    slow = at | {"speedup": {"median": 2.0}, "gain": {"median": 1.5}}
    fast = at | {"draft_length": 4, "speedup": {"median": 2.2}, "gain": {"median": 1.3}}
    rows = benchmark.verdicts({"overhead": 0.1, "verification": 0.06}, slow, fast, None)
    assert [row["met"] for row in rows] == [True, False, None, False, True, True, False]
    assert rows[-1]["at"]["draft_length"] == 4 and rows[-1]["best"]


def test_records_name_no_machine():
    for path in (ROOT / "results" / benchmark.FOLDER).rglob("*.json*"):
        assert not re.search(r"/(home|root|work|tmp|Users)\b", path.read_text(encoding="utf-8"))
