"""Generated tables: one command brings them back byte for byte, and each names its run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUMMARIES = sorted((ROOT / "spectr_lite" / "results").glob("*.json"))


def test_deleted_summaries_come_back_byte_for_byte(tmp_path: Path) -> None:
    """In a copy of the checkout, whose own package writes them."""
    for name in ("scripts", "results", "spectr_lite"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=skip)
    copies = [tmp_path / path.relative_to(ROOT) for path in SUMMARIES]
    for copy in copies:
        copy.unlink()
    process = subprocess.run(
        [sys.executable, "scripts/tables.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    for path, copy in zip(SUMMARIES, copies, strict=True):
        assert copy.is_file(), f"no writer in scripts/tables.py makes {path.name}"
        assert copy.read_bytes() == path.read_bytes(), f"{path.name} is stale: make tables"


@pytest.mark.parametrize("path", SUMMARIES, ids=lambda path: path.stem)
def test_every_summary_names_runs_that_are_recorded(path: Path) -> None:
    summary = json.loads(path.read_text(encoding="utf-8"))
    runs = [entry["run"] for entry in summary.get("runs", [summary])]
    assert runs and "command" in summary
    for run in runs:
        assert (ROOT / "results" / path.stem / run / "config.json").is_file(), run
