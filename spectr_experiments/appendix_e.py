"""Appendix E: where a turn's time goes, along K and along L, for two small Transformers.

The paper's sizes: a target of 97M parameters (768 wide, 12 layers) and a draft of 6M (256 wide, 2
layers, 4 heads). Both totals are met by tied embeddings and a vocabulary of 16,384. Weights are random:
time does not depend on what they say, but how deep the walk goes does. Two untrained models agree almost
always, so every turn here verifies to the full depth L: the longest verification there is.

The O(1)-call model takes the large model's call for K (L + 1) positions to cost as much as for one.
"score_ratio" is what it really costs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from spectr_experiments import clocks
from spectr_experiments.records import Phase, Plan, Record, Run, grouped
from spectr_lite.commands.arguments import whole
from spectr_lite.models import Transformer, TransformerConfig

SHAPE = {"vocab_size": 16_384, "context": 512}
TARGET = TransformerConfig(**SHAPE, width=768, layers=12, heads=12, kv_heads=12, ffn=2048)
DRAFT = TransformerConfig(**SHAPE, width=256, layers=2, heads=4, kv_heads=4, ffn=688)
CELLS = [(0, 0), *((k, 4) for k in (1, 2, 4, 8, 16)), *((8, n) for n in (1, 2, 8)), (1, 8)]
STAGES = clocks.STAGES
FOLDER = "appendix-e"
SCHEMA = {
    "records": {"num_drafts": int, "draft_length": int, "round": int, "calls": int}
    | dict.fromkeys((*STAGES, "turn"), float)
}
KEYS = {"records": ("num_drafts", "draft_length", "round")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=whole(1), default=10, help="default: %(default)s")


def plans(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Iterator[Plan]:
    config = make_config(device, dtype, args.rounds)
    timing = partial(measure, config, *models(device, dtype))
    yield Plan(args.run_id or device.type, config, [Phase("latency", ["records"], timing)])


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


def measure(config: Record, target: Any, draft: Any, run: Run, seconds: float | None) -> None:
    def turn(cell: Record, number: int) -> Record:
        generator = torch.Generator().manual_seed(number)
        prompt = torch.randint(target.vocab_size, (config["prompt_length"],), generator=generator)
        turns = clocks.stage_turns(
            target, draft, [prompt.tolist()], new_tokens=config["new_tokens"], generator=number,
            verifier=config["verifier"], **cell,
        )  # fmt: skip
        each = {stage: turns.stages[stage] / turns.count for stage in STAGES}
        return {"calls": turns.count, **each, "turn": turns.per_turn}

    cells = [{"num_drafts": k, "draft_length": length} for k, length in config["cells"]]
    jobs = [(cell, partial(turn, cell)) for cell in cells]
    run.rounds("records", jobs, config["rounds"], seconds, least=1)


def summarise(run: Run, config: Record, sessions: list[Record]) -> Record:
    """One run of spectr_lite/results/appendix-e.json. Ratios are to a turn without drafts."""
    by_cell = grouped(run.read("records"), ["num_drafts", "draft_length"])
    if (0, 0) not in by_cell:
        raise ValueError(
            f"{run.folder}: the turn without drafts, to which all ratios are, is not recorded yet; "
            "go on with --resume and more --minutes"
        )
    alone = _median(by_cell[0, 0], "score")
    step = _median(by_cell[0, 0], "turn")
    rows = []
    for (drafts, length), records in by_cell.items():
        row: Record = {"num_drafts": drafts, "draft_length": length, "n": len(records)}
        row |= {name: _median(records, name) for name in (*STAGES, "turn")}
        row["turn_quartiles"] = clocks.quartiles([record["turn"] for record in records])
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


def summary(found: list[Record]) -> Record:
    return {"command": "python -m spectr_lite reproduce appendix-e", "runs": found}


def show(found: Record) -> None:
    print("  K  L  positions  draft  score  verify  turn (ms)  turn / autoregressive turn")
    for row in found["cells"]:
        times = "  ".join(f"{row[n] * 1e3:6.1f}" for n in ("draft", "score", "verify", "turn"))
        cell = f"{row['num_drafts']:3} {row['draft_length']:2}  {row['positions']:9}"
        print(f"{cell}  {times}     {row['turn_ratio']:.2f}")
