"""Generated summaries: one command brings them back byte for byte, and each names its run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spectr_experiments import command
from spectr_lite.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
COUNTED = ROOT / "spectr_lite" / "results" / "prediction.json"  # of no run: reproduce predict
PUBLISHED = sorted({*(ROOT / "spectr_lite" / "results").iterdir()} - {COUNTED})
SUMMARIES = [path for path in PUBLISHED if path.suffix == ".json"]


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout without any generated summary, after `make tables` there."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("results", "spectr_lite", "spectr_experiments", "training"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for path in PUBLISHED:
        (folder / path.relative_to(ROOT)).unlink()
    process = subprocess.run(
        [sys.executable, "-m", "spectr_lite", "reproduce", "summarise"],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return folder


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_deleted_summary_comes_back_byte_for_byte(path: Path, restored: Path) -> None:
    copy = restored / path.relative_to(ROOT)
    assert copy.is_file(), f"no experiment makes {path.name}"
    assert copy.read_bytes() == path.read_bytes(), f"{path.name} is stale: make tables"


@pytest.mark.parametrize("path", SUMMARIES, ids=lambda path: path.stem)
def test_every_summary_names_runs_that_are_recorded(path: Path) -> None:
    summary = json.loads(path.read_text(encoding="utf-8"))
    runs = [entry["run"] for entry in summary.get("runs", [summary])]
    assert runs, "no run: record one, or leave the summary out"
    for run in runs:
        folder = ROOT / "results" / path.stem / run
        assert (folder / "config.json").is_file(), f"{folder} is not recorded"
        assert '"command"' in (folder / "env.json").read_text(encoding="utf-8")


FOLDERS = [command.experiment(name).FOLDER for name in command.EXPERIMENTS]
RUNS = sorted(path for name in FOLDERS for path in (ROOT / "results" / name).glob("*"))


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_recorded_runs_are_whole_and_name_no_machine(folder: Path) -> None:
    assert main(["reproduce", "verify", str(folder)]) == 0
    for name in ("config.json", "env.json"):
        text = (folder / name).read_text(encoding="utf-8")
        assert not re.search(r"/(home|root|work|tmp|Users)\b", text), name
