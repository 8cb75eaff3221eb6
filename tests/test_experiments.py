"""Every experiment: a run that was cut off at any byte, or killed, goes on to the same records."""

from __future__ import annotations

import gzip
import io
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import write_pair

from spectr_experiments import (
    advise,
    appendix_e,
    clocks,
    command,
    decoding,
    drafts,
    models,
    next_token,
    records,
    table1,
    transport,
)
from spectr_lite.__main__ import main
from spectr_lite.models import TransformerConfig, load_pair, prompts

ROOT = Path(__file__).resolve().parent.parent
MEASURED = {
    "seconds",
    "load",
    "load_average",
    "peak_bytes",
    "costs",
    "stages",
    "turn",
    *clocks.STAGES,
}
ARGUMENTS = {
    "table1": ["--pair", "PAIR"],
    "appendix-e": ["--rounds", "2"],
    "decoding": ["--pair", "PAIR", "--quick"],
    "transport": [],
    "verifiers": ["--rounds", "2", "--vocabularies", "20"],
    "drafts": [],
    "models": [],
    "next-token-laws": [],
    "advise": [
        "--pair",
        "PAIR",
        "--new-tokens",
        "6",
        "--verifiers",
        "kseq",
        "--num-drafts",
        "2",
        "--draft-lengths",
        "2",
    ],
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair(tmp_path_factory.mktemp("pair") / "tiny")


@pytest.fixture
def reproduce(pair: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs an experiment at a size that takes no time, with a tiny pair in SmolLM2's place."""
    tiny = load_pair(str(pair))
    cells = table1.grid((1, 2), (3,))
    shape = {"vocab_size": 64, "context": 128, "layers": 1, "heads": 2, "kv_heads": 2}
    small = {"memory": [100, 200], "programs": {"literal": [[4, 2]], "reduced": [[4, 2], [5, 2]]}}
    small |= {"rounds": 2, "warm_up": 1}
    for module, changes in {
        table1: {"setting": lambda *_: (cells, 3, 2, 2), "TIMED_TOKENS": 8, "NEW_TOKENS": 6},
        appendix_e: {
            "TARGET": TransformerConfig(**shape, width=16, ffn=32),
            "DRAFT": TransformerConfig(**shape, width=8, ffn=16),
            "CELLS": [(0, 0), (2, 3)],
        },
        decoding: {"library_caches": lambda _: []},  # test_benchmark_decoding.py times it
        transport: {
            "VOCABULARIES": (20, 30, 40),
            "CONFIG": transport.CONFIG | small,
            "in_a_process": lambda task, arguments, limit=None: task(*arguments),
        },
        drafts: {"ROWS": 2, "LENGTH": 40, "EVERY": 4},
        drafts.smollm2: {
            "load_target": lambda *_: (tiny.target, tiny.tokenizer),
            "DRAFTS": {"small": lambda _: tiny.draft},
        },
        models: {"TEXTS": 3, "pair_names": lambda: ("tiny",), "load_pair": lambda _: tiny},
        next_token: {"PLACES": 2, "load_pair": lambda _: tiny},
        advise: {"TEXTS": 3, "TIMED_TOKENS": 9, "MOST_ROUNDS": 2, "LEAST_ROUNDS": 2},
    }.items():
        for name, value in changes.items():
            monkeypatch.setattr(module, name, value)

    def run(experiment: str, results: Path, *more: str) -> int:
        own = [str(pair) if word == "PAIR" else word for word in ARGUMENTS[experiment]]
        common = ["--run-id", "x", "--results", str(results)]
        return main(["reproduce", experiment, *own, *common, *more])

    return run


def folder_of(results: Path) -> Path:
    (folder,) = results.glob("*/*")
    return folder


def without_times(folder: Path) -> dict[str, list[dict]]:
    """The finished records by file, without what a clock or the memory said."""
    return {
        path.name: [
            {name: value for name, value in json.loads(line).items() if name not in MEASURED}
            for line in gzip.decompress(path.read_bytes()).splitlines()
        ]
        for path in sorted(folder.glob("*.jsonl.gz"))
    }


def test_every_experiment_is_tried_here() -> None:
    assert set(ARGUMENTS) == set(command.EXPERIMENTS)


@pytest.mark.parametrize("experiment", ARGUMENTS)
def test_a_run_that_was_cut_at_any_byte_goes_on(
    experiment: str, reproduce: Callable[..., int], tmp_path: Path
) -> None:
    """Each kind's file loses its last byte, a few, all but a few, and then all: as after a kill."""
    assert reproduce(experiment, tmp_path / "whole") == 0
    whole = folder_of(tmp_path / "whole")
    expected = without_times(whole)
    assert len(expected) == len(command.module_of(whole).SCHEMA) - (experiment == "decoding")
    assert reproduce(experiment, tmp_path / "whole") == 2  # no --resume
    for cut in (slice(-1), slice(-7), slice(20), slice(0)):
        results = tmp_path / f"cut-{cut.stop}"
        folder = results / whole.relative_to(tmp_path / "whole")
        shutil.copytree(whole, folder)
        (folder / "manifest.json").unlink()
        for path in folder.glob("*.jsonl.gz"):
            part = path.name.removesuffix(".jsonl.gz") + ".part-0.jsonl"
            (folder / part).write_bytes(gzip.decompress(path.read_bytes())[cut])
            path.unlink()
        assert reproduce(experiment, results, "--resume") == 0
        assert without_times(folder) == expected
        assert main(["reproduce", "verify", str(folder)]) == 0
        for path in whole.glob("*.jsonl.gz"):
            kind = path.name.removesuffix(".jsonl.gz")
            if not MEASURED & set(command.module_of(whole).SCHEMA[kind]):
                assert (folder / path.name).read_bytes() == path.read_bytes()
    command.summary(command.module_of(whole), [command.run_at(whole)])


def test_next_token_laws_come_back_from_their_records(
    reproduce: Callable[..., int], pair: Path, tmp_path: Path
) -> None:
    assert reproduce("next-token-laws", tmp_path) == 0
    laws = np.load(io.BytesIO(command.summary_of(command.run_at(folder_of(tmp_path)))))
    tiny = load_pair(str(pair))
    held = prompts.load("sotu", tiny.tokenizer, count=2).tokens
    for name, model in (("target", tiny.target), ("drop6", tiny.draft), ("drop3", tiny.draft)):
        expected = [model(torch.tensor([tokens]))[0, -1].log_softmax(-1) for tokens in held]
        np.testing.assert_allclose(laws[name], torch.stack(expected).numpy(), rtol=2e-3)


def test_a_killed_benchmark_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part with a record that was being written: nothing is lost, and nothing is there twice."""
    arguments = [
        "reproduce",
        "verifiers",
        "--device",
        "cpu",
        "--vocabularies",
        "20",
        "--run-id",
        "x",
    ]
    arguments += ["--rounds", "12", "--results", str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-m", "spectr_lite", *arguments], cwd=ROOT)
    part = tmp_path / "benchmark-verifiers" / "x" / "records.part-0.jsonl"
    while not part.exists() or part.stat().st_size < 1000:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    assert main([*arguments, "--resume"]) == 2
    assert "another process records in" in capsys.readouterr().err
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with part.open("ab") as file:
        file.write(b'{"job": "tok')
    kept = part.read_text().splitlines()[:-1]
    assert main([*arguments, "--resume"]) == 0
    found = gzip.decompress((part.parent / "records.jsonl.gz").read_bytes()).decode().splitlines()
    assert set(kept) < set(found)
    places = {
        tuple(json.loads(line)[n] for n in ("job", "verifier", "drafts", "round")) for line in found
    }
    cells = {place[:3] for place in places}
    assert places == {(*cell, number) for cell in cells for number in range(12)}
    assert len(found) == len(places)


@pytest.mark.parametrize("experiment", ARGUMENTS)
def test_ctrl_c_ends_with_the_command_that_goes_on(
    experiment: str, reproduce: Callable[..., int], tmp_path: Path, capsys, monkeypatch
) -> None:
    """In the middle of the first kind; and nobody else may record there meanwhile."""
    append, again = records.Run.append, []

    def stopped(run, kind, rank, made):
        append(run, kind, rank, made)
        assert reproduce(experiment, tmp_path, "--resume") == 2
        again.append(capsys.readouterr().err)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(records.Run, "append", stopped)
        assert reproduce(experiment, tmp_path) == 130
    assert "another process records in" in again[0]
    *_, last = capsys.readouterr().err.splitlines()
    said, _, line = last.partition(" Resume with: python -m spectr_lite ")
    assert said == "stopped; what is recorded is kept."
    assert shlex.split(line)[-1] == "--resume" and str(tmp_path) in line
    assert command.run_at(folder_of(tmp_path)).sessions[-1]["end"] is not None
    assert main(shlex.split(line)) == 0
    assert main(["reproduce", "verify", str(folder_of(tmp_path))]) == 0


def test_the_timing_of_one_run_is_recorded_by_one_process(
    reproduce: Callable[..., int], tmp_path: Path, capsys
) -> None:
    assert reproduce("table1", tmp_path, "--phase", "block-efficiency") == 0
    with command.run_at(folder_of(tmp_path)).lock():
        assert reproduce("table1", tmp_path, "--phase", "timing") == 2
    assert "--run-id: another process records in" in capsys.readouterr().err


def test_one_cell_after_another_each_in_a_run_of_its_own(
    reproduce: Callable[..., int], tmp_path: Path, capsys
) -> None:
    cells = ["kseq:2:3", "kseq:1:3", "autoregressive:0:0"]
    for cell in cells:
        few = ["--cell", cell, "--cell", f"{cell}:1", "--prompts", "2", "--results", str(tmp_path)]
        assert main(["reproduce", "table1", "--device", "cpu", *few]) == 0
        shown = capsys.readouterr().out
        rule, drafts, length = cell.split(":")
        assert shown.count(f" {rule} K={drafts} L={length} T=1.0") == 1
    assert len(list(tmp_path.glob("table1/*"))) == len(cells)


@pytest.mark.parametrize("name", ["config.json", "env.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"sessions": []}', '{"sessions": 3}'])
def test_a_damaged_file_of_a_run_is_named(
    name: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for recorded in ("benchmark-transport/cpu-4", "table1/bundled-cpu-3"):
        folder = tmp_path / recorded
        shutil.copytree(ROOT / "results" / recorded, folder)
        (folder / name).write_text(content)
        assert main(["reproduce", "verify", str(folder)]) == 2
        error = capsys.readouterr().err
        assert f"{folder / name}" in error and error.count("\n") == 1


def test_a_command_that_is_refused_does_not_block_the_next(
    reproduce: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce("table1", tmp_path, "--cell", "block:2:2") == 2
    assert "--cell: found 'block:2:2'" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:  # refused later, when it has begun
        patch.setattr(table1, "decode", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reproduce("table1", tmp_path, "--cell", "kseq:2:3", "--phase", "block-efficiency")
    assert reproduce("table1", tmp_path, "--cell", "block:1:2", "--phase", "block-efficiency") == 0


def test_an_older_run_that_was_cut_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recorded,) = (ROOT / "results" / "benchmark-verifiers").iterdir()
    folder = tmp_path / "benchmark-verifiers" / "cpu"
    shutil.copytree(recorded, folder)
    assert main(["reproduce", "verify", str(folder)]) == 0
    arguments = ["reproduce", "verifiers", "--results", str(tmp_path), "--run-id", "cpu"]
    assert main([*arguments, "--device", "cpu", "--resume"]) == 2
    assert "holds a finished run" in capsys.readouterr().err
    path = folder / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    assert main(["reproduce", "verify", str(folder)]) == 2
    assert "records.jsonl ends in an unfinished record" in capsys.readouterr().err


def test_summaries_need_a_checkout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="summarise: found no folder results/"):
        command.write_summaries(tmp_path)
