"""How good SmolLM2's drafts are, and what each of their tokens costs.

    make smollm2
    python scripts/compare_smollm2_drafts.py --run-id ID       about ten minutes on one core
    python scripts/compare_smollm2_drafts.py --summary         only rewrites the summary

Two texts, both written by the target at temperature 1 and seen by no draft: its own, from the start
of a text, and its continuations of the State of the Union prompts. At every place the target's law
and each draft's are compared. A killed run goes on with the drafts it lacks. Raw records go to
results/smollm2-drafts/ID, the summary of the newest run to spectr_lite/results/smollm2-drafts.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from distil_smollm2 import END, multiply_adds, own_parameters, write_text
from safetensors.torch import load_file, save_file
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
                model(tokens[None, :-1].to(target.device))[0, first:].float().softmax(-1)
                for model in (target, draft)
            )
            few, fewer = goal[::EVERY], law[::EVERY]
            record = {
                "text": text,
                "row": row,
                "places": len(goal),
                "acceptance": torch.minimum(goal, law).sum(-1).mean().item(),
                "places for k > 1": len(few),
                "kseq": {"8": kseq.acceptance(fewer, few, 8).mean().item()},
                "optimum": {
                    str(k): optimal_acceptance(fewer, few, k).mean().item() for k in DRAFTS
                },
            }
            records.append(rounded(record))
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
    """Measure every draft the run does not hold yet, then time all models in one go."""
    folder = RESULTS / run_id
    folder.mkdir(parents=True, exist_ok=True)
    session = {
        "command": " ".join(["python", "scripts/compare_smollm2_drafts.py", *sys.argv[1:]]),
        "start": experiment.now(),
        "dtype": "float32; the texts sampled in bfloat16",
        **experiment.environment(ROOT, SOURCES, ("torch", "numpy", "tokenizers", "gguf"), device),
    }
    first, *_ = names = list(smollm2.DRAFTS)
    pair = load_pair(first, device)
    target = pair.target
    chosen = prompts.load("sotu", pair.tokenizer, count=ROWS, length=PROMPT)
    if not (folder / "texts.safetensors").exists():
        writer = load_pair(first, device, torch.bfloat16).target
        texts = sample_texts(writer, chosen.tokens)
        save_file({k: v.to(torch.uint16) for k, v in texts.items()}, folder / "texts.safetensors")
    texts = {k: v.long() for k, v in sorted(load_file(folder / "texts.safetensors").items())}
    done = {line["model"] for line in read_records(run_id) if "text" in line}
    models = {"target": target}
    for name in names:
        models[name] = smollm2.DRAFTS[name](target)
        if name not in done:
            began = time.monotonic()
            lines = [{"model": name, **line} for line in measure(target, models[name], texts)]
            append(run_id, lines)
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    seconds = seconds_per_token(models)
    append(
        run_id,
        [
            {
                "model": name,
                "multiply_adds": multiply_adds(model),
                "parameters": own_parameters(model),
                "seconds_per_token": float(f"{seconds[name]:.4g}"),
                "time": session["start"],
            }
            for name, model in models.items()
        ],
    )
    config = {
        "seed": SEED,
        "rows": ROWS,
        "length": LENGTH,
        "prompts_sha256": chosen.sha256,
        "target_sha256": smollm2.SHA256,
        "shipped": json.loads((smollm2.SHIPPED / "config.json").read_text()),
        "temperature": 1.0,
        "every_for_k_above_1": EVERY,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    env = folder / "env.json"
    sessions = json.loads(env.read_text())["sessions"] if env.exists() else []
    sessions.append(session | {"end": experiment.now()})
    env.write_text(json.dumps({"sessions": sessions}, indent=1) + "\n")


def read_records(run_id: str) -> list[dict]:
    path = RESULTS / run_id / "records.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(run_id: str, lines: list[dict]) -> None:
    with (RESULTS / run_id / "records.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def predicted(first: float, later: float) -> float:
    """Tokens per call of the target: `first`, then `later` at every place down, independently."""
    return 1 + first * sum(later**depth for depth in range(DRAFT_LENGTH))


def summary(run_id: str) -> dict:
    """The table: one entry per draft, its `texts` with intervals over the rows."""
    records = read_records(run_id)
    (*_, session) = json.loads((RESULTS / run_id / "env.json").read_text())["sessions"]
    models = {line["model"]: line for line in records if "multiply_adds" in line}
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
            rows = [r for r in records if r["model"] == name and r.get("text") == text]
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
        "device": session["device"],
        "load_average": session["load_average"],
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
    SUMMARY.write_text(json.dumps(rounded(summary(max(runs, key=runs.get))), indent=1) + "\n")
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
