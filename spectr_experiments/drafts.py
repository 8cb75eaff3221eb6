"""How good SmolLM2's drafts are, and what each of their tokens costs.

    make smollm2
    python -m spectr_lite reproduce drafts --run-id ID       about ten minutes on one core

Two texts, both written by the target at temperature 1 and seen by no draft: its own, from the start
of a text, and its continuations of the State of the Union prompts. At every place the target's
distribution and each draft's are compared. A run is results/smollm2-drafts/ID; the summary of the
newest ships in spectr_lite/results/smollm2-drafts.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from spectr_experiments import clocks
from spectr_experiments.draft_costs import (
    DRAFT_LENGTH,
    END,
    multiply_adds,
    own_parameters,
    predicted,
    speed,
    write_text,
)
from spectr_experiments.records import Phase, Plan, Record, Run, rounded
from spectr_lite import verifiers
from spectr_lite.models import Transformer, prompts, smollm2
from spectr_lite.stats import mean_interval, ratio_interval
from spectr_lite.transport import optimal_acceptance

FOLDER = "smollm2-drafts"
SCHEMA = {
    "texts": {"text": str, "row": int, "tokens": list},
    "records": {"text": str, "row": int, "places": int, "drafts": dict},
    "costs": {"load_average": float, "costs": dict},
}
KEYS = {"texts": ("text", "row"), "records": ("text", "row"), "costs": ()}
SEED = 2310
ROWS = 64  # of each text
LENGTH = 128
PROMPT = 32
TEXTS = ("own", "sotu")
EVERY = 16  # the optimum at k > 1 is computed at every 16th place
DRAFTS = (2, 4, 8)


def plans(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Iterator[Plan]:
    target, tokenizer = smollm2.load_target(device)
    chosen = prompts.load("sotu", tokenizer, count=ROWS, length=PROMPT)
    config = {
        "seed": SEED,
        "rows": ROWS,
        "length": LENGTH,
        "prompts_sha256": chosen.sha256,
        "target_sha256": smollm2.SHA256,
        "shipped": json.loads((smollm2.SHIPPED / "config.json").read_text(encoding="utf-8")),
        "temperature": 1.0,
        "every_for_k_above_1": EVERY,
        "device": device.type,
        "dtype": "float32; the texts sampled in bfloat16",
    }
    comparing = partial(measure, target, chosen.tokens)
    yield Plan(args.run_id or device.type, config, [Phase("compare", list(SCHEMA), comparing)])


def sample_texts(target: Transformer, prompts: list[list[int]]) -> list[Record]:
    """ROWS rows of LENGTH tokens of each text; the second begins with the prompts."""
    forced = torch.full((2 * ROWS, PROMPT), -1)
    forced[:ROWS, 0] = END
    forced[ROWS:] = torch.tensor(prompts)
    generator = torch.Generator(target.device).manual_seed(SEED)
    rows = write_text(target, forced, LENGTH, generator)["tokens"].tolist()
    places = [(text, row) for text in TEXTS for row in range(ROWS)]
    return [{"text": t, "row": n, "tokens": row} for (t, n), row in zip(places, rows, strict=True)]


def compare(law: Tensor, goal: Tensor) -> Record:
    """Means over the places of one row, from a draft's and the target's distributions (places, V)."""
    few, fewer = goal[::EVERY], law[::EVERY]
    kseq = verifiers.get("kseq").acceptance(fewer, few, 8)
    return {
        "acceptance": torch.minimum(goal, law).sum(-1).mean().item(),
        "kseq": {"8": kseq.mean().item()},
        "optimum": {str(k): optimal_acceptance(fewer, few, k).mean().item() for k in DRAFTS},
    }


def seconds_per_token(models: dict[str, torch.nn.Module], repeats: int = 40) -> dict[str, float]:
    """Median time of one call for one token with 128 in the cache, the models taking turns."""
    calls, times = {}, {name: [] for name in models}
    for name, model in models.items():
        cache, slot = model.new_cache(1, 160), torch.full((1, 1), 128, device=model.device)
        mask = torch.ones(1, 1, 129, dtype=torch.bool, device=model.device)
        calls[name] = partial(model, slot, slot, cache, slot, mask)
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(clocks.seconds_of(call, models[name].device))
    return {name: statistics.median(spent[5:]) for name, spent in times.items()}


@torch.no_grad()
def measure(target: Transformer, held: list[list[int]], run: Run, seconds: float | None) -> None:
    """Compare the distributions on every row the run does not hold yet, then time the models in
    turns.
    """
    device = target.device

    def sample(_: str) -> list[Record]:
        writer, _ = smollm2.load_target(device, torch.bfloat16)
        return sample_texts(writer, held)

    rows = [{"text": text, "row": row} for row in range(ROWS) for text in TEXTS]
    run.fill("texts", ["all"], lambda _: rows, sample, None)
    texts = {(r["text"], r["row"]): r["tokens"] for r in run.read("texts")}
    drafts = {name: load(target) for name, load in smollm2.DRAFTS.items()}

    def make(row: Record) -> list[Record]:
        tokens = torch.tensor([texts[row["text"], row["row"]][:-1]], device=device)
        first = PROMPT - 1 if row["text"] == "sotu" else 0
        goal = target(tokens)[0, first:].softmax(-1)
        found = {
            name: compare(draft(tokens)[0, first:].softmax(-1), goal)
            for name, draft in drafts.items()
        }
        return [rounded({**row, "places": len(goal), "drafts": found})]

    run.fill("records", rows, lambda row: [row], make, seconds)

    def costs(_: str) -> list[Record]:
        models = {"target": target} | drafts
        spent = seconds_per_token(models)
        found = {
            name: {
                "multiply_adds": multiply_adds(model),
                "parameters": own_parameters(model),
                "seconds_per_token": spent[name],
            }
            for name, model in models.items()
        }
        return [rounded({"load_average": os.getloadavg()[0], "costs": found})]

    run.fill("costs", ["all"], lambda _: [{}], costs, None)


def summarise(run: Run, config: Record, sessions: list[Record]) -> Record:
    """The table: one entry per draft, its `texts` with intervals over the rows."""
    records, session = run.read("records"), sessions[-1]
    (timed,) = run.read("costs")
    models, drafts = dict(timed["costs"]), []
    target = models.pop("target")
    for name, line in models.items():
        cost = line["multiply_adds"] / target["multiply_adds"]
        entry = {
            "draft": name,
            "parameters_beside_the_embedding": line["parameters"],
            "multiply_adds": line["multiply_adds"],
            "cost": cost,
            "time": line["seconds_per_token"] / target["seconds_per_token"],
            "texts": {},
        }
        for text in TEXTS:
            rows = [line["drafts"][name] for line in records if line["text"] == text]
            found = mean_interval([row["acceptance"] for row in rows])
            optimum, kseq = (
                {k: statistics.fmean(row[key][k] for row in rows) for k in rows[0][key]}
                for key in ("optimum", "kseq")
            )
            eight = {key: [row[key]["8"] for row in rows] for key in ("optimum", "kseq")}
            spans = {key: mean_interval(values) for key, values in eight.items()}
            best, ours = (1 - np.array(values) for values in eight.values())
            missed, _ = ratio_interval(best, ours)
            entry["texts"][text] = {
                "acceptance": found.mean,
                "interval": [found.low, found.high],
                "optimum": optimum,
                "kseq": kseq,
                "intervals_of_eight": {k: [span.low, span.high] for k, span in spans.items()},
                # Of the places where eight drafts by K-SEQ keep none, the share the optimum saves;
                # paired by row.
                "fewer_misses": {
                    "value": 1 - missed.mean,
                    "interval": [1 - missed.high, 1 - missed.low],
                    "n": missed.n,
                },
                "acceptance_per_cost": found.mean / cost if cost else None,
                "block_efficiency": {
                    "one draft": predicted(found.mean, found.mean),
                    "eight drafts, one alive after the first token": predicted(
                        kseq["8"], found.mean
                    ),
                },
                "speed": speed(found.mean, cost),
            }
        drafts.append(entry)
    return rounded(
        {
            "run": run.folder.name,
            "command": session["command"],
            "device": session["device"],
            "load_average": timed["load_average"],
            "draft_length": DRAFT_LENGTH,
            "target_multiply_adds": target["multiply_adds"],
            "drafts": drafts,
        }
    )
