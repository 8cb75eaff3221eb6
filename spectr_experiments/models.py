"""Every pair on the same held-out text: perplexity, and the acceptance of one draft.

    python -m spectr_lite reproduce models --run-id ID      pairs that are not there are left out

Text: the first prompts of spectr_lite.prompts, whole (280 characters of State of the Union speeches),
after the token for the empty context. Means are over all tokens but a text's first; a perplexity
compares models of one vocabulary only, bits per character compare all. A run is results/models/ID; the
summary of the newest ships in spectr_lite/results/models.json.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Iterator

import torch

from spectr_experiments.records import Phase, Plan, Record, Run, rounded
from spectr_lite.models import ModelPair, load_pair, pair_names, prompts
from spectr_lite.stats import mean_interval

FOLDER = "models"
CPU_ONLY = True
TEXTS = 128
SCHEMA = {
    "records": {"pair": str, "document": str, "tokens": int, "characters": int,
                "target_nats": float, "draft_nats": float | None, "accepted": float},
    "sizes": {"pair": str, "vocabulary": int, "target": int, "draft": int},
}  # fmt: skip
KEYS = {"records": ("pair", "document"), "sizes": ("pair",)}


def plans(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Iterator[Plan]:
    description, passages = prompts.sotu()
    config = {"texts": TEXTS, "source": description, "temperature": 1.0, "dtype": "float32"}
    comparing = functools.partial(measure, passages[:TEXTS])
    yield Plan(args.run_id or "cpu", config, [Phase("compare", list(SCHEMA), comparing)])


def measure(texts: list[tuple[str, str]], run: Run, seconds: float | None) -> None:
    @functools.lru_cache(maxsize=1)  # a pair is loaded only if it has something left to do
    def load(name: str) -> ModelPair | None:
        try:
            return load_pair(name)
        except (FileNotFoundError, ImportError) as error:
            print(f"{name}: left out; {error}", file=sys.stderr)
            return None

    def make(unit: tuple[str, str, str]) -> list[Record]:
        name, document, text = unit
        pair = load(name)
        return [] if pair is None else [compare(pair, document, text)]

    def sizes_of(name: str) -> list[Record]:
        pair = load(name)
        return [] if pair is None else [sizes(pair)]

    run.fill("sizes", pair_names(), lambda name: [{"pair": name}], sizes_of, None)
    units = [(name, *text) for name in pair_names() for text in texts]
    run.fill("records", units, lambda u: [{"pair": u[0], "document": u[1]}], make, seconds)


def sizes(pair: ModelPair) -> Record:
    """Parameters; the draft's own, without what it shares with the target."""
    shared = {p.data_ptr() for p in pair.target.parameters()}
    return {
        "pair": pair.name,
        "vocabulary": pair.target.vocab_size,
        "target": sum(p.numel() for p in pair.target.parameters()),
        "draft": sum(p.numel() for p in pair.draft.parameters() if p.data_ptr() not in shared),
    }


@torch.no_grad()
def compare(pair: ModelPair, document: str, text: str) -> Record:
    """Sums over the tokens of a text but the first."""
    ids = torch.tensor([[pair.end_of_text, *pair.tokenizer.encode(text).ids]])
    first = len(pair.tokenizer.decode(ids[0, 1:2].tolist()))
    laws = [
        model(ids[:, :-1])[0, 1:].double().log_softmax(-1) for model in (pair.target, pair.draft)
    ]
    nats = [-law.gather(-1, ids[0, 2:, None]).sum().item() for law in laws]
    return {
        "pair": pair.name,
        "document": document,
        "tokens": ids.shape[1] - 2,
        "characters": len(text) - first,
        "target_nats": nats[0],
        # A draft may leave tokens out; then a text can have probability zero.
        "draft_nats": nats[1] if math.isfinite(nats[1]) else None,
        "accepted": torch.minimum(*laws).exp().sum().item(),
    }


def summarise(run: Run, config: Record, sessions: list[Record]) -> Record:
    records, pairs = run.read("records"), {}
    # an older run has the sizes in its config
    listed = config.get("pairs") or {r.pop("pair"): r for r in run.read("sizes")}
    for name, found in listed.items():
        rows = [row for row in records if row["pair"] == name]
        if not rows:  # time was up before
            continue
        tokens, characters = (sum(row[key] for row in rows) for key in ("tokens", "characters"))
        accepted = mean_interval([row["accepted"] / row["tokens"] for row in rows])
        entry = {
            "parameters": found,
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
    heading = {"run": run.folder.name, "texts": config["texts"], "source": config["source"]}
    return rounded(heading | {"pairs": pairs})
