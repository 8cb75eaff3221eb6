"""How good SmolLM2's drafts are, and what each of their tokens costs.

    make smollm2
    python scripts/compare_smollm2_drafts.py --run-id ID       about six minutes on one core
    python scripts/compare_smollm2_drafts.py --summary         only rewrites the summary

Two texts, both written by the target at temperature 1 and seen by no draft: its own, from the start
of a text, and its continuations of the State of the Union prompts. At every place the target's law
and each draft's are compared. Raw records go to results/smollm2-drafts/ID, the summary of the newest
run to spectr_lite/results/smollm2-drafts.json.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from distil_smollm2 import END, multiply_adds, own_parameters, write_text
from torch import Tensor

from spectr_lite import experiment, prompts, verifiers
from spectr_lite.models import Transformer, load_pair, smollm2
from spectr_lite.stats import mean_interval
from spectr_lite.transport import optimal_acceptance

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "smollm2-drafts"
SUMMARY = ROOT / "spectr_lite" / "results" / "smollm2-drafts.json"
SOURCES = (
    "scripts/compare_smollm2_drafts.py",
    "scripts/distil_smollm2.py",
    "spectr_lite/models",
    "spectr_lite/transport.py",
    "spectr_lite/verifiers/kseq.py",
)
SEED = 2310
ROWS = 64  # of each text
LENGTH = 128
PROMPT = 32
EVERY = 16  # the optimum at k > 1 is computed at every 16th place
DRAFTS = (2, 4, 8)
DRAFT_LENGTH = 4  # of the predicted block efficiency


def sample_texts(target: Transformer, prompts: list[list[int]]) -> dict[str, Tensor]:
    """(ROWS, LENGTH) tokens of each text; the second begins with the prompts."""
    forced = torch.full((2 * ROWS, PROMPT), -1)
    forced[:ROWS, 0] = END
    forced[ROWS:] = torch.tensor(prompts)
    generator = torch.Generator(target.device).manual_seed(SEED)
    own, continued = write_text(target, forced, LENGTH, generator)["tokens"].long().split(ROWS)
    return {"own": own, "sotu": continued}


@torch.no_grad()
def measure(target: Transformer, draft: torch.nn.Module, texts: dict[str, Tensor]) -> list[dict]:
    """One record per row of each text: means over its places, the prompt's places left out."""
    kseq, records = verifiers.get("kseq"), []
    for text, rows in texts.items():
        first = PROMPT - 1 if text == "sotu" else 0
        for row, tokens in enumerate(rows):
            goal, law = (
                model(tokens[None, :-1])[0, first:].float().softmax(-1) for model in (target, draft)
            )
            few, fewer = goal[::EVERY], law[::EVERY]
            records.append(
                {
                    "text": text,
                    "row": row,
                    "places": len(goal),
                    "acceptance": torch.minimum(goal, law).sum(-1).mean().item(),
                    "optimum": {
                        str(k): optimal_acceptance(fewer, few, k).mean().item() for k in DRAFTS
                    },
                    "kseq": {str(k): kseq.acceptance(fewer, few, k).mean().item() for k in DRAFTS},
                }
            )
    return records


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


def record(run_id: str, device: str) -> None:
    folder = RESULTS / run_id
    if folder.exists():
        raise ValueError(f"run-id {run_id} exists, see {folder}; give this run another id")
    packages = ("torch", "numpy", "tokenizers", "gguf")
    env = {
        "command": " ".join(["python", "scripts/compare_smollm2_drafts.py", *sys.argv[1:]]),
        "start": experiment.now(),
        "dtype": "float32; the texts sampled in bfloat16",
        **experiment.environment(ROOT, SOURCES, packages, device),
    }
    names = list(smollm2.DRAFTS)
    pair = load_pair(names[0], device)
    target = pair.target
    chosen = prompts.load("sotu", pair.tokenizer, count=ROWS, length=PROMPT)
    writer = load_pair(names[0], device, torch.bfloat16).target
    texts = sample_texts(writer, chosen.tokens)
    models = {"target": target} | {name: smollm2.DRAFTS[name](target) for name in names}
    seconds = seconds_per_token(models)
    records = []
    for name, model in models.items():
        cost = multiply_adds(model)
        line = {"model": name, "multiply_adds": cost, "seconds_per_token": seconds[name]}
        if name != "target":
            line["parameters"] = own_parameters(model)
        records.append(line)
        print(json.dumps(line), flush=True)
    for name in names:
        began = time.monotonic()
        records += [{"draft": name, **row} for row in measure(target, models[name], texts)]
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    config = {
        "seed": SEED,
        "rows": ROWS,
        "length": LENGTH,
        "prompts": chosen.sha256,
        "texts_sha256": {
            text: hashlib.sha256(rows.int().numpy().tobytes()).hexdigest()
            for text, rows in texts.items()
        },
        "target_sha256": smollm2.SHA256,
        "draft_files": json.loads((smollm2.SHIPPED / "config.json").read_text()),
        "temperature": 1.0,
        "places_for_k_above_1": EVERY,
    }
    folder.mkdir(parents=True)
    for name, content in (("config", config), ("env", env | {"end": experiment.now()})):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    lines = "".join(json.dumps(line) + "\n" for line in records)
    (folder / "records.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))


def predicted(first: float, later: float) -> float:
    """Tokens per call of the target: `first`, then `later` at every place down, independently."""
    return 1 + first * sum(later**depth for depth in range(DRAFT_LENGTH))


def summary(run_id: str) -> dict:
    """The table: one entry per draft, its `texts` with intervals over the rows."""
    folder = RESULTS / run_id
    lines = gzip.decompress((folder / "records.jsonl.gz").read_bytes()).decode().splitlines()
    records = [json.loads(line) for line in lines]
    env = json.loads((folder / "env.json").read_text())
    models = {line["model"]: line for line in records if "model" in line}
    target, drafts = models.pop("target"), []
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
        for text in ("own", "sotu"):
            rows = [r for r in records if r.get("draft") == name and r["text"] == text]
            found = mean_interval([row["acceptance"] for row in rows])
            optimum, kseq = (
                {k: statistics.fmean(row[key][k] for row in rows) for k in rows[0][key]}
                for key in ("optimum", "kseq")
            )
            one = predicted(found.mean, found.mean)
            entry["texts"][text] = {
                "acceptance": found.mean,
                "interval": [found.low, found.high],
                "optimum": optimum,
                "kseq": kseq,
                "acceptance_per_cost": found.mean / cost if cost else None,
                "block_efficiency": {
                    "one draft": one,
                    "eight drafts, one alive after the first token": predicted(
                        kseq["8"], found.mean
                    ),
                },
                # Where a call of the target costs the same for five tokens as for one: a single
                # text, whose calls read every weight once.
                "speed": one / (1 + DRAFT_LENGTH * cost),
            }
        drafts.append(entry)
    return {
        "run": run_id,
        "device": env["device"],
        "load_average": env["load_average"],
        "draft_length": DRAFT_LENGTH,
        "target_multiply_adds": target["multiply_adds"],
        "drafts": drafts,
    }


def write_summary() -> Path:
    """Of the newest run, by its start."""
    runs = {path.parent.name: json.loads(path.read_text()) for path in RESULTS.glob("*/env.json")}
    newest = max(runs, key=lambda run: runs[run]["start"])
    SUMMARY.write_text(json.dumps(rounded(summary(newest)), indent=1) + "\n")
    return SUMMARY


def rounded(value: object) -> object:
    """Six digits: what a last bit of another processor may change is not in the file."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


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
