"""How good SmolLM2's drafts are, and what each of their tokens costs.

    make smollm2
    python -m spectr_experiments.drafts --run-id ID       about ten minutes on one core
    python -m spectr_experiments.drafts --summary           only rewrites the summary

Two texts, both written by the target at temperature 1 and seen by no draft: its own, from the start
of a text, and its continuations of the State of the Union prompts. At every place the target's
distribution and each draft's are compared. A killed run goes on with the rows it lacks. Raw records
go to results/smollm2-drafts/ID, the summary of the newest run to
spectr_lite/results/smollm2-drafts.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectr_experiments import records
from spectr_lite import verifiers
from spectr_lite.models import Transformer, prompts, smollm2
from spectr_lite.stats import mean_interval
from spectr_lite.transport import optimal_acceptance
from training.smollm2_draft import (
    DRAFT_LENGTH,
    END,
    Run,
    multiply_adds,
    own_parameters,
    speed,
    write_text,
)

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "smollm2-drafts"
SUMMARY = ROOT / "spectr_lite" / "results" / "smollm2-drafts.json"
SOURCES = (
    "spectr_experiments/drafts.py",
    "training/smollm2_draft.py",
    "spectr_lite/models",
    "spectr_lite/transport",
    "spectr_lite/verifiers/kseq.py",
)
SEED = 2310
ROWS = 64  # of each text
LENGTH = 128
PROMPT = 32
TEXTS = ("own", "sotu")
EVERY = 16  # the optimum at k > 1 is computed at every 16th place
DRAFTS = (2, 4, 8)


def sample_texts(target: Transformer, prompts: list[list[int]]) -> dict[str, Tensor]:
    """(ROWS, LENGTH) tokens of each text; the second begins with the prompts."""
    forced = torch.full((2 * ROWS, PROMPT), -1)
    forced[:ROWS, 0] = END
    forced[ROWS:] = torch.tensor(prompts)
    generator = torch.Generator(target.device).manual_seed(SEED)
    own, continued = write_text(target, forced, LENGTH, generator)["tokens"].long().split(ROWS)
    return {"own": own, "sotu": continued}


def measure(law: Tensor, goal: Tensor) -> dict:
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
        calls[name] = (model, (slot, slot, cache, slot, mask))
    for _ in range(repeats):
        for name, (model, arguments) in calls.items():
            began = time.perf_counter()
            with torch.no_grad():
                model(*arguments)
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(spent[5:]) for name, spent in times.items()}


@torch.no_grad()
def record(run_id: str, device: str) -> None:
    """Compare the distributions on every row the run does not hold yet, then time the models in
    turns.
    """
    run = Run(run_id, "smollm2-drafts")
    session = {
        "stage": "compare",
        "command": " ".join(["python", "spectr_experiments/drafts.py", *sys.argv[1:]]),
        "start": records.now(),
        "dtype": "float32; the texts sampled in bfloat16",
        **records.environment(ROOT, SOURCES, ("torch", "numpy", "tokenizers", "gguf"), device),
    }
    run.log_session(session)
    target, tokenizer = smollm2.load_target(device)
    chosen = prompts.load("sotu", tokenizer, count=ROWS, length=PROMPT)
    path = run.records / "texts.safetensors"
    if not path.exists():
        writer, _ = smollm2.load_target(device, torch.bfloat16)
        texts = sample_texts(writer, chosen.tokens)
        save_file({name: rows.to(torch.uint16) for name, rows in texts.items()}, path)
    texts = load_file(path)
    config = {
        "seed": SEED,
        "rows": ROWS,
        "length": LENGTH,
        "prompts_sha256": chosen.sha256,
        "texts_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "target_sha256": smollm2.SHA256,
        "shipped": json.loads((smollm2.SHIPPED / "config.json").read_text()),
        "temperature": 1.0,
        "every_for_k_above_1": EVERY,
    }
    (run.records / "config.json").write_text(json.dumps(config, indent=1) + "\n")

    drafts = {name: load(target) for name, load in smollm2.DRAFTS.items()}
    held = {(line["text"], line["row"]) for line in read_records(run_id) if "text" in line}
    todo = [(text, row) for row in range(ROWS) for text in TEXTS if (text, row) not in held]
    began = time.monotonic()
    for done, (text, row) in enumerate(todo, 1):
        tokens = texts[text][row : row + 1, :-1].long().to(device)
        first = PROMPT - 1 if text == "sotu" else 0
        goal = target(tokens)[0, first:].softmax(-1)
        line = {"text": text, "row": row, "places": len(goal), "drafts": {}}
        for name, draft in drafts.items():
            line["drafts"][name] = measure(draft(tokens)[0, first:].softmax(-1), goal)
        run.append("records.jsonl", records.rounded(line))
        left = (len(todo) - done) * (time.monotonic() - began) / done / 60
        print(f"\rrow {done} of {len(todo)}, {left:.1f} minutes left ", end="", flush=True)
    print()
    models = {"target": target} | drafts
    seconds = seconds_per_token(models)
    costs = {
        name: {
            "multiply_adds": multiply_adds(model),
            "parameters": own_parameters(model),
            "seconds_per_token": seconds[name],
        }
        for name, model in models.items()
    }
    run.append(
        "records.jsonl", records.rounded({"load_average": os.getloadavg()[0], "costs": costs})
    )
    run.log_session(session | {"end": records.now()})


def read_records(run_id: str) -> list[dict]:
    path = RESULTS / run_id / "records.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def predicted(first: float, later: float) -> float:
    """Tokens per call of the target: `first`, then `later` at every place down, independently."""
    return 1 + first * sum(later**depth for depth in range(DRAFT_LENGTH))


def summary(run_id: str) -> dict:
    """The table: one entry per draft, its `texts` with intervals over the rows."""
    records = read_records(run_id)
    (*_, session) = json.loads((RESULTS / run_id / "env.json").read_text())["sessions"]
    timed = [line for line in records if "costs" in line][-1]
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
            rows = [line["drafts"][name] for line in records if line.get("text") == text]
            found = mean_interval([row["acceptance"] for row in rows])
            optimum, kseq = (
                {k: statistics.fmean(row[key][k] for row in rows) for k in rows[0][key]}
                for key in ("optimum", "kseq")
            )
            entry["texts"][text] = {
                "acceptance": found.mean,
                "interval": [found.low, found.high],
                "optimum": optimum,
                "kseq": kseq,
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
    return {
        "run": run_id,
        "command": session["command"],
        "device": session["device"],
        "load_average": timed["load_average"],
        "draft_length": DRAFT_LENGTH,
        "target_multiply_adds": target["multiply_adds"],
        "drafts": drafts,
    }


def write_summary() -> Path:
    """Of the newest run, by its last session."""
    runs = {
        path.parent.name: json.loads(path.read_text())["sessions"][-1]["start"]
        for path in RESULTS.glob("*/env.json")
    }
    SUMMARY.write_text(
        json.dumps(records.rounded(summary(max(runs, key=runs.get))), indent=1) + "\n"
    )
    return SUMMARY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-id", help="record a run under this name, e.g. smollm2-1")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--summary", action="store_true", help="only rewrite the summary")
    options = parser.parse_args()
    if not options.summary:
        if options.run_id is None:
            parser.error("give --run-id NAME, or --summary")
        record(options.run_id, options.device)
    print(write_summary())


if __name__ == "__main__":
    main()
