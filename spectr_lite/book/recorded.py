"""The recorded runs in spectr_lite/results, as the book's pages and notebooks read them.

Explained in chapters 8 and 9.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

Record = dict[str, Any]


def summary(name: str) -> Record:
    """The content of spectr_lite/results/NAME.json; without the file, {"runs": []}."""
    path = resources.files("spectr_lite") / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"runs": []}


def paper() -> dict[str, Any]:
    """The paper's numbers, each with its place in the paper and how we know it."""
    return json.loads((resources.files(__package__) / "paper.json").read_text(encoding="utf-8"))


def kind(run: Record) -> str:
    """Where it ran: "GPU" or "CPU"."""
    return "GPU" if run["config"]["device"] == "cuda" else "CPU"


def by_pair(runs: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """Runs of Table 1, grouped by (pair, kind of device)."""
    found: dict[tuple[str, str], list[Record]] = {}
    for run in runs:
        found.setdefault((run["pair"], kind(run)), []).append(run)
    return found


def cell(
    runs: Sequence[Record],
    drafts: int,
    length: int,
    verifier: str = "kseq",
    temperature: float = 1.0,
) -> Record | None:
    """One cell of Table 1 and its "run": of all `runs` the cell with most prompts, or None."""
    names = ("verifier", "num_drafts", "draft_length", "temperature")
    wanted = (verifier, drafts, length, temperature)
    found = [
        {"run": run["run"], **row}
        for run in runs
        for row in run["cells"]
        if tuple(row[name] for name in names) == wanted and row["block_efficiency"] is not None
    ]
    return max(found, key=lambda row: row["n"], default=None)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
