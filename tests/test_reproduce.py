"""`python -m spectr_lite reproduce`: kill and resume, two processes, errors, and what is shipped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import write_pair

from spectr_experiments import appendix_e, command, records, table1
from spectr_lite import models, stats
from spectr_lite.__main__ import main
from spectr_lite.book import recorded
from spectr_lite.decoding import generate

ROOT = Path(__file__).resolve().parent.parent
CELLS = ["--cell", "kseq:3:4", "--cell", "traversal:2:4:0.8"]
TABLE = ["table1", "--device", "cpu", *CELLS, "--prompts", "18", "--phase", "block-efficiency"]
FINISHED = "tiny-x/records.jsonl.gz"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A directory with a random pair over bytes, which decodes in no time."""
    return write_pair(tmp_path_factory.mktemp("pair") / "tiny")


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory) -> Path:
    """results/table1 of a run that nothing disturbed."""
    results = tmp_path_factory.mktemp("results")
    assert reproduce_here(tiny, results) == 0
    return results / "table1"


def arguments(tiny: Path, results: Path) -> list[str]:
    return ["reproduce", *TABLE, "--pair", str(tiny), "--results", str(results), "--run-id", "x"]


def reproduce_here(tiny: Path, results: Path, *more: str) -> int:
    return main([*arguments(tiny, results), *more])


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(
    tiny, uninterrupted, tmp_path, capfd
):
    python = [sys.executable, "-m", "spectr_lite"]
    process = subprocess.Popen([*python, *arguments(tiny, tmp_path)], cwd=ROOT)
    part = tmp_path / "table1" / "tiny-x" / "records.part-0.jsonl"
    while not part.exists() or part.stat().st_size < 3000:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    survived = part.read_bytes()
    part.write_bytes(survived[:-7])  # as if the kill had come in the middle of a write
    kept = survived[: survived[:-7].rindex(b"\n") + 1]
    assert reproduce_here(tiny, tmp_path) == 2
    assert "Add --resume" in capfd.readouterr().err
    with pytest.MonkeyPatch.context() as patch:  # nothing that was recorded is decoded again
        asked = []
        decode = table1._decode_batch
        patch.setattr(
            table1, "_decode_batch", lambda *a: asked.append((a[1].name, a[4])) or decode(*a)
        )
        assert reproduce_here(tiny, tmp_path, "--resume") == 0
    assert "cut an unfinished record" in capfd.readouterr().out
    records = kept.decode().splitlines()
    units = {(r["cell"], r["seed"], r["prompt"] // 16) for r in map(json.loads, records)}
    assert len(asked) <= 2 * 3 * 2 - len(units) + 1 < 12
    ended = (tmp_path / "table1" / FINISHED).read_bytes()
    assert ended == (uninterrupted / FINISHED).read_bytes()


def test_a_resumed_batch_adds_only_what_it_lacks(tiny, uninterrupted, tmp_path, monkeypatch):
    folder = tmp_path / "table1" / "tiny-x"
    shutil.copytree(uninterrupted / "tiny-x", folder)
    everything = records.read_records(folder / "records.jsonl.gz")[0]
    lost = [r for r in everything if r["num_drafts"] == 3 and r["seed"] == 1 and r["prompt"] > 6]
    (folder / "records.jsonl.gz").unlink()
    (folder / "manifest.json").unlink()
    lines = [json.dumps(r) + "\n" for r in everything if r not in lost]
    (folder / "records.part-0.jsonl").write_text("".join(lines))
    added, append = [], records.Run.append

    def noted(run, kind, rank, made):
        added.extend(made)
        append(run, kind, rank, made)

    monkeypatch.setattr(records.Run, "append", noted)
    assert reproduce_here(tiny, tmp_path, "--resume") == 0
    assert added == lost
    assert (folder / "records.jsonl.gz").read_bytes() == (uninterrupted / FINISHED).read_bytes()


def test_seeds_give_other_texts(uninterrupted):
    found = records.read_records(uninterrupted / FINISHED)[0]
    counts = [[(r["calls"], r["emitted"]) for r in found if r["seed"] == n] for n in (0, 1, 2)]
    assert counts[0] != counts[1] != counts[2] != counts[0]


def test_an_ended_row_counts_no_more(tiny):
    pair, cell = models.load_pair(str(tiny)), table1.Cell("kseq", 3, 4)
    held = [[5, 6], [7, 8], [9, 10], [11, 12]]
    rows = table1._decode_batch(pair, cell, held, range(4), 2, 9)
    made = generate(
        pair.target, pair.draft, held, max_new_tokens=9, generator=2_000_000, **cell.settings()
    )
    assert len(set(made.calls)) > 1  # some end before others
    assert [(r["calls"], r["emitted"]) for r in rows] == [
        *zip(made.calls, made.emitted, strict=True)
    ]


def test_the_laws_of_a_place_are_softmax_of_logits_over_temperature(tiny):
    pair, held = models.load_pair(str(tiny)), [5, 6, 7]
    cold = table1.autoregressive(0.5).settings()
    made = generate(pair.target, None, [held], max_new_tokens=6, generator=1, **cold).tokens[0]
    for model, law in zip(
        (pair.draft, pair.target), table1._places(pair, held, 0.5, 1, 3), strict=True
    ):
        for place, found in enumerate(law):
            ids = torch.tensor([held + made[: 2 * place]])
            expected = (model(ids)[0, -1].double() / 0.5).softmax(-1)
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_prompts_are_the_independent_units():
    counts = [(p, seed, 10, 20 + p) for p in range(4) for seed in range(3)]
    found = [dict(zip(("prompt", "seed", "calls", "emitted"), c, strict=True)) for c in counts]
    influence: dict[int, float] = {}
    row = table1._efficiency(found, influence)
    assert (row["n"], row["continuations"]) == (4, 12)
    assert row["block_efficiency"] == pytest.approx(2.15)
    assert sorted(influence) == [0, 1, 2, 3]
    mean = stats.mean_interval([2.0, 2.1, 2.2, 2.3])  # all denominators are equal
    assert row["interval"] == pytest.approx([mean.low, mean.high])


def test_cost_is_in_autoregressive_steps_of_the_same_round():
    alone, cell = table1.autoregressive(), table1.Cell("kseq", 2, 2)
    timed = [
        {**c.record(), "round": n, "prompt": n, "calls": calls, "emitted": 60, "seconds": seconds}
        for n in range(3)
        for c, calls, seconds in ((alone, 60, 6.0 + n), (cell, 30, (6.0 + n) / 1.5))
    ]
    found = table1._timings(timed)
    assert found[cell]["steps"]["value"] == pytest.approx(2 / 1.5)
    assert found[cell]["steps"]["error"] == pytest.approx(0, abs=1e-12)
    assert found[alone]["steps"]["value"] == 1


def test_two_processes_leave_the_records_of_one(tiny, uninterrupted, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "spectr_lite"]
    process = subprocess.run(
        [*torchrun, *arguments(tiny, tmp_path)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    ended = (tmp_path / "table1" / FINISHED).read_bytes()
    assert ended == (uninterrupted / FINISHED).read_bytes()
    env = json.loads((tmp_path / "table1" / "tiny-x" / "env.json").read_text())
    assert env["sessions"][0]["processes"] == 2
    assert str(tmp_path) not in json.dumps(env)


def test_a_finished_run_is_verified_and_damage_found(uninterrupted, tmp_path, capsys):
    assert main(["reproduce", "verify", str(uninterrupted / "tiny-x")]) == 0
    assert "108 records" in capsys.readouterr().out
    copy = tmp_path / "table1" / "tiny-x"
    shutil.copytree(uninterrupted / "tiny-x", copy)
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"new_tokens": 32', '"new_tokens": 33', 1))
    assert main(["reproduce", "verify", str(copy)]) == 2
    assert "config.json: manifest.json promises" in capsys.readouterr().err


def test_phases_add_to_one_run_and_its_summary(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table1, "TIMED_TOKENS", 16)
    monkeypatch.setattr(table1, "setting", lambda *_: (table1.grid((1, 2), (3,)), 3, 2, 2))
    run = ["reproduce", "table1", "--device", "cpu", "--pair", str(tiny), "--run-id", "x"]
    run += ["--results", str(tmp_path), "--phase"]
    for phase in table1.PHASES:
        assert main([*run, phase]) == 0
    assert "autoregressive K=0 L=0 T=1.0" in capsys.readouterr().out
    folder = tmp_path / "table1" / "tiny-x"
    assert main(["reproduce", "verify", str(folder)]) == 0
    found = command.summary_of(command.run_at(folder))
    assert found["label"] == "CPU full setting" and found["prompts"] == 3
    by_name = {(c["verifier"], c["num_drafts"]): c for c in found["cells"]}
    assert by_name["autoregressive", 0]["block_efficiency"] == 1
    kseq, optimal = by_name["kseq", 2], by_name["optimal", 2]
    assert kseq["gain"] is None and kseq["continuations"] == 9
    gain = optimal["gain"]
    assert gain["difference"] == pytest.approx(
        optimal["block_efficiency"] - kseq["block_efficiency"]
    )
    steps = by_name["kseq", 1]["steps"]
    assert steps["degrees"] == 1 and steps["interval"][0] < steps["value"] < steps["interval"][1]
    optimum = {
        (row["law"], row["k"]): row["acceptance"]
        for row in found["draft_laws"]
        if row["rule"] == "optimum"
    }
    assert optimum["iid", 4] <= optimum["without-replacement", 4] + 1e-9


def test_time_that_is_up_ends_a_run_with_whole_rounds(tiny, tmp_path):
    assert reproduce_here(tiny, tmp_path, "--minutes", "0.004") == 0
    run = command.run_at(tmp_path / "table1" / "tiny-x")
    places: dict[str, set] = {}
    for record in run.read("records"):
        places.setdefault(record["cell"], set()).add((record["seed"], record["prompt"]))
    assert len({frozenset(found) for found in places.values()}) <= 1


def status_of(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as stop:  # argparse's own way out
        return stop.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table1", "--cell", "kseq:8"], "--cell: found 'kseq:8'. Give RULE:K:L"),
        (["table1", "--cell", "kseq:0:4"], "--cell: found 'kseq:0:4'. Give a K and an L"),
        (["table1", "--cell", "magic:8:4"], "no rule named 'magic'"),
        (["table1", "--prompts", "0"], "--prompts: found '0'. Give a whole number from 1 to 1,000"),
        (["table1", "--prompts", "1001"], "--prompts: found '1001'"),
        (
            ["table1", "--cell", "kseq:8:4:nan"],
            "--cell: found 'kseq:8:4:nan'. temperature: found nan",
        ),
        (["table1", "--cell", "autoregressive:2:2"], "Give autoregressive:0:0"),
        (["table1", "--cell", "kseq:1000000:2", "--device", "cpu"], "MiB. Lower K or L"),
        (["table1", "--cell", "kseq:2:2", "--phase", "draft-laws"], "--phase: found draft-laws"),
        (["table1", "--pair", "a/x", "b/x"], "--pair: found a/x b/x. Give pairs with different"),
        (["table1", "--run-id", "a/b"], "--run-id: found 'a/b'"),
        (["table1", "--minutes", "nan"], "--minutes: found 'nan'. Give a number above 0"),
        (
            ["table1", "--threads", "100000"],
            "--threads: found '100000'. Give a whole number from 1",
        ),
        (["appendix-e", "--rounds", "0"], "--rounds: found '0'. Give a whole number of at least 1"),
        (["verifiers", "--rounds", "1"], "--rounds: found '1'. Give a whole number of at least 2"),
        (["verifiers", "--vocabularies", "1"], "--vocabularies: found '1'"),
        (["table1", "--pair", "nowhere"], "spectr_lite.huggingface.load_pair(target, draft)"),
        (["table1", "--pair", "bundled", "nowhere"], "name='nowhere' is neither a known pair"),
        (["verify", "results"], "Give results/EXPERIMENT/RUN-ID"),
        (["verify", "results/table1/none"], "not a finished run"),
    ],
)
def test_errors_name_the_argument(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status_of(["reproduce", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())  # refused before any work


def test_appendix_e_records_every_stage(tmp_path, monkeypatch, capsys):
    small = {"vocab_size": 64, "context": 128, "layers": 1, "heads": 2, "kv_heads": 2}
    for name, width in (("TARGET", 16), ("DRAFT", 8)):
        shape = models.TransformerConfig(**small, width=width, ffn=2 * width)
        monkeypatch.setattr(appendix_e, name, shape)
    monkeypatch.setattr(appendix_e, "CELLS", [(0, 0), (2, 3)])
    run = ["reproduce", "appendix-e", "--device", "cpu", "--rounds", "2"]
    assert main([*run, "--results", str(tmp_path)]) == 0
    folder = tmp_path / "appendix-e" / "cpu"
    assert main(["reproduce", "verify", str(folder)]) == 0
    _, row = command.summary_of(command.run_at(folder))["cells"]
    assert row["n"] == 2 and row["positions"] == 7
    assert 0 < row["draft"] + row["score"] + row["verify"] < row["turn"]


def test_appendix_e_without_its_baseline_says_what_is_missing(tmp_path):
    run = records.Run(tmp_path / "cpu", appendix_e.SCHEMA, appendix_e.KEYS)
    run.folder.mkdir()
    place = {"num_drafts": 8, "draft_length": 4, "round": 0, "calls": 3}
    run.append("records", 0, [place | dict.fromkeys((*appendix_e.STAGES, "turn"), 0.5)])
    with pytest.raises(ValueError, match=r"turn without drafts.*is not recorded yet; go on with"):
        appendix_e.summarise(run, {}, [])


def test_appendix_e_has_the_papers_sizes():
    sizes = appendix_e.make_config(torch.device("cpu"), torch.float32, 1)
    stated = recorded.paper()["appendix_e"]
    for role in ("target", "draft"):
        theirs = stated[role].pop("parameters")
        assert sizes[role]["parameters"] == pytest.approx(theirs, rel=0.05)
        assert stated[role].items() <= sizes[role].items()


def test_the_papers_table_agrees_with_itself():
    paper = recorded.paper()
    rows = {(row["num_drafts"], row["draft_length"]): row for row in paper["table1"]}
    for row in paper["iteration_cost"]:
        cell = rows[row["num_drafts"], row["draft_length"]]
        cost = cell["block_efficiency"]["value"] / cell["speed"]["value"]
        assert row["steps"] == pytest.approx(cost, abs=0.005)
    gain = rows[8, 8]["speed"]["value"] / rows[1, 8]["speed"]["value"]
    assert paper["abstract"][1]["value"] == pytest.approx(gain, abs=0.005)


def test_batches_fit_the_memory_that_is_assumed():
    with torch.device("meta"):
        model = models.Transformer(models.TransformerConfig(49_152, 576, 30, 9, 3, 1536, 2048))
    pair = models.ModelPair("large", model, model, None)
    device = torch.device("cpu")
    sizes = [table1.batch_size(pair, table1.grid((k,), (8,)), device, 99) for k in (1, 8, 16)]
    assert sizes == sorted(sizes, reverse=True) and 1 <= sizes[-1] < sizes[0] <= 16
    with pytest.raises(ValueError, match=r"--cell: kseq:1000000:2:1.0 takes caches.*Lower K or L"):
        table1.batch_size(pair, [table1.Cell("kseq", 1_000_000, 2)], device, 99)


def test_ratio_interval_covers_the_ratio():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        calls = rng.integers(5, 15, 30)
        emitted = calls * 2 + rng.normal(0, 3, 30)
        found, influence = stats.ratio_interval(emitted, calls)
        assert influence.mean() == pytest.approx(emitted.sum() / calls.sum())
        hits += found.low < 2 < found.high
    assert 0.91 < hits / 400 < 0.98
    with pytest.raises(ValueError, match="one positive number per numerator"):
        stats.ratio_interval(np.ones(2), np.zeros(2))
