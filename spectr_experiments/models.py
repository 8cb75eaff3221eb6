"""Every pair on the same held-out text: perplexity, and the acceptance of one draft.

    python -m spectr_experiments.models --run-id ID [--texts 128]   pairs that are not there are left out
    python -m spectr_experiments.models --summary                   only rewrites the summary

Text: the first prompts of spectr_lite.prompts, whole (280 characters of State of the Union speeches),
after the token for the empty context. Means are over all tokens but a text's first; a perplexity
compares models of one vocabulary only, bits per character compare all. Records go to
results/models/ID, the summary of the newest run to spectr_lite/results/models.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch

from spectr_experiments import records
from spectr_lite.models import ModelPair, load_pair, pair_names, prompts
from spectr_lite.stats import mean_interval

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "models"
SUMMARY = ROOT / "spectr_lite" / "results" / "models.json"
SOURCES = ("spectr_experiments/models.py", "spectr_lite/models")


@torch.no_grad()
def measure(pair: ModelPair, texts: list[tuple[str, str]]) -> list[dict]:
    """One record per text: sums over its tokens but the first."""
    records = []
    for document, text in texts:
        ids = torch.tensor([[pair.end_of_text, *pair.tokenizer.encode(text).ids]])
        first = len(pair.tokenizer.decode(ids[0, 1:2].tolist()))
        laws = [
            model(ids[:, :-1])[0, 1:].double().log_softmax(-1)
            for model in (pair.target, pair.draft)
        ]
        nats = [-law.gather(-1, ids[0, 2:, None]).sum().item() for law in laws]
        records.append(
            {
                "pair": pair.name,
                "document": document,
                "tokens": ids.shape[1] - 2,
                "characters": len(text) - first,
                "target_nats": nats[0],
                # A draft may leave tokens out; then a text can have probability zero.
                "draft_nats": nats[1] if math.isfinite(nats[1]) else None,
                "accepted": torch.minimum(*laws).exp().sum().item(),
            }
        )
    return records


def record(run_id: str, count: int) -> None:
    folder = RESULTS / run_id
    if folder.exists():
        raise ValueError(f"run-id {run_id} exists, see {folder}; give this run another id")
    env = {
        "command": " ".join(["python", "spectr_experiments/models.py", *sys.argv[1:]]),
        "start": records.now(),
        "dtype": "float32",
        **records.environment(ROOT, SOURCES, ("torch", "tokenizers", "safetensors")),
    }
    description, passages = prompts.sotu()
    sizes, lines = {}, []
    for name in pair_names():
        try:
            pair = load_pair(name)
        except (FileNotFoundError, ImportError) as error:
            print(f"{name}: left out; {error}", file=sys.stderr)
            continue
        shared = {p.data_ptr() for p in pair.target.parameters()}
        sizes[name] = {
            "vocabulary": pair.target.vocab_size,
            "target": sum(p.numel() for p in pair.target.parameters()),
            "draft": sum(p.numel() for p in pair.draft.parameters() if p.data_ptr() not in shared),
        }
        lines += measure(pair, passages[:count])
        print(f"{name}: done", flush=True)
    folder.mkdir(parents=True)
    config = {"texts": count, "source": description, "temperature": 1.0, "pairs": sizes}
    for name, content in (("config", config), ("env", env | {"end": records.now()})):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def summary(run_id: str) -> dict:
    folder = RESULTS / run_id
    config = json.loads((folder / "config.json").read_text())
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    pairs = {}
    for name, sizes in config["pairs"].items():
        rows = [row for row in records if row["pair"] == name]
        tokens, characters = (sum(row[key] for row in rows) for key in ("tokens", "characters"))
        accepted = mean_interval([row["accepted"] / row["tokens"] for row in rows])
        entry = {
            "parameters": sizes,  # the draft's own: what it shares with the target is not counted
            "tokens": tokens,
            "acceptance": accepted.mean,
            "interval": [accepted.low, accepted.high],
        }
        for role in ("target", "draft"):
            nats = [row[f"{role}_nats"] for row in rows]
            if None not in nats:
                total = math.fsum(nats)
                entry[role] = {
                    "nats_per_token": total / tokens,
                    "perplexity": math.exp(total / tokens),
                    "bits_per_character": total / characters / math.log(2),
                }
        pairs[name] = entry
    return {"run": run_id, "texts": config["texts"], "source": config["source"], "pairs": pairs}


def write_summary() -> Path:
    """Of the newest run, by its start."""
    starts = {
        path.parent.name: json.loads(path.read_text())["start"]
        for path in RESULTS.glob("*/env.json")
    }
    content = summary(max(starts, key=starts.__getitem__))
    SUMMARY.write_text(json.dumps(records.rounded(content), indent=1) + "\n", encoding="utf-8")
    return SUMMARY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-id", help="record a run under this name, e.g. cpu-1")
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--summary", action="store_true", help="only rewrite the summary")
    options = parser.parse_args()
    if not options.summary:
        if options.run_id is None:
            parser.error("give --run-id NAME, or --summary")
        record(options.run_id, options.texts)
    print(write_summary())


if __name__ == "__main__":
    main()
