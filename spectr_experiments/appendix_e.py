"""Appendix E: where a turn's time goes, along K and along L, for two small Transformers.

The paper's sizes: a target of 97M parameters (768 wide, 12 layers) and a draft of 6M (256 wide, 2
layers, 4 heads). Both totals are met by tied embeddings and a vocabulary of 16,384. Weights are random:
time does not depend on what they say, but how deep the walk goes does. Two untrained models agree almost
always, so every turn here verifies to the full depth L: the longest verification there is.

The O(1)-call model takes the large model's call for K (L + 1) positions to cost as much as for one.
"score_ratio" is what it really costs.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch

from spectr_experiments import clocks
from spectr_experiments.records import Record, Run
from spectr_lite.models import Transformer, TransformerConfig

SHAPE = {"vocab_size": 16_384, "context": 512}
TARGET = TransformerConfig(**SHAPE, width=768, layers=12, heads=12, kv_heads=12, ffn=2048)
DRAFT = TransformerConfig(**SHAPE, width=256, layers=2, heads=4, kv_heads=4, ffn=688)
CELLS = [(0, 0), *((k, 4) for k in (1, 2, 4, 8, 16)), *((8, n) for n in (1, 2, 8)), (1, 8)]
STAGES = clocks.STAGES
SCHEMA = {
    "records": {"num_drafts": int, "draft_length": int, "round": int, "calls": int}
    | dict.fromkeys((*STAGES, "turn"), float)
}
KEYS = {"records": ("num_drafts", "draft_length", "round")}


def make_config(device: torch.device, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    return {
        "label": f"{'CPU' if device.type == 'cpu' else 'GPU'}, random weights",
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "target": {**vars(TARGET), "parameters": _parameters(TARGET)},
        "draft": {**vars(DRAFT), "parameters": _parameters(DRAFT)},
        "verifier": "kseq",
        "cells": [list(cell) for cell in CELLS],
        "prompt_length": 32,
        "new_tokens": 40,
        "rounds": rounds,
    }


def _parameters(config: TransformerConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Transformer(config).parameters())


def models(device: torch.device, dtype: torch.dtype) -> tuple[Transformer, Transformer]:
    """Target and draft with the random weights of seed 0."""
    torch.manual_seed(0)
    made = (Transformer(config).eval().requires_grad_(False) for config in (TARGET, DRAFT))
    return tuple(model.to(device, dtype) for model in made)


def measure(
    run: Run, config: Record, target: Any, draft: Any, seconds: float | None = None
) -> None:

    def measure_one(cell: tuple[int, int], number: int) -> Record:
        generator = torch.Generator().manual_seed(number)
        prompt = torch.randint(target.vocab_size, (config["prompt_length"],), generator=generator)
        turns = clocks.stage_turns(
            target, draft, [prompt.tolist()], new_tokens=config["new_tokens"], generator=number,
            verifier=config["verifier"], num_drafts=cell[0], draft_length=cell[1],
        )  # fmt: skip
        each = {stage: turns.stages[stage] / turns.count for stage in STAGES}
        place = {"num_drafts": cell[0], "draft_length": cell[1], "round": number}
        return {**place, "calls": turns.count, **each, "turn": turns.per_turn}

    cells = [tuple(cell) for cell in config["cells"]]
    run.rounds("records", cells, config["rounds"], lambda c, n: (*c, n), measure_one, seconds)


def summarise(run: Run, config: Record, sessions: list[Record]) -> Record:
    """One run of spectr_lite/results/appendix-e.json. Ratios are to a turn without drafts."""
    by_cell: dict[tuple, list[Record]] = {}
    for record in run.read("records"):
        by_cell.setdefault((record["num_drafts"], record["draft_length"]), []).append(record)
    alone = _median(by_cell[0, 0], "score")
    step = _median(by_cell[0, 0], "turn")
    rows = []
    for (drafts, length), records in by_cell.items():
        row: Record = {"num_drafts": drafts, "draft_length": length, "n": len(records)}
        row |= {name: _median(records, name) for name in (*STAGES, "turn")}
        values = [record["turn"] for record in records]
        row["turn_quartiles"] = np.quantile(values, [0.25, 0.75]).tolist()
        row["positions"] = 1 + drafts * length
        row["score_ratio"] = row["score"] / alone
        row["verify_ratio"] = row["verify"] / alone
        row["turn_ratio"] = row["turn"] / step
        rows.append(row)
    return {
        "run": run.folder.name,
        "device": sessions[-1]["device"],
        "label": config["label"],
        "config": config,
        "environment": sessions,
        "cells": rows,
    }


def _median(records: list[Record], name: str) -> float:
    return statistics.median(record[name] for record in records)
