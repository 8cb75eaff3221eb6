"""Train the bundled pair: a 5.8M-parameter target and a 1.1M-parameter draft distilled from it.

    python scripts/train_pair.py --run-id ID                   all stages below, one after the other
    python scripts/train_pair.py --run-id ID --stage target    one stage; target and draft may run side by side

Stages: tokenizer, target, draft, sample (text from the target), distil, export (into the package).
A killed stage continues from its last checkpoint in data/checkpoints/ID. Every step's batch and dropout depend
only on the seed and the step's number. Records go to results/train-pair/ID, append-only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
from fetch_sotu import SHA256, speeches, split
from torch import Tensor, nn

from spectr_lite.models.transformer import Transformer, TransformerConfig

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
SOURCES = (
    "scripts/train_pair.py",
    "scripts/fetch_sotu.py",
    "spectr_lite/models/transformer.py",
)
END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 4096
CONTEXT = 512


@dataclass(frozen=True)
class Fit:
    """One training stage. A batch is `batch` windows of CONTEXT tokens."""

    steps: int
    learning_rate: float
    dropout: float = 0.0
    batch: int = 8
    warmup: int = 100
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0


@dataclass(frozen=True)
class Settings:
    seed: int = 1790
    target: TransformerConfig = TransformerConfig(VOCABULARY, 256, 6, 4, 4, 688, CONTEXT)
    draft: TransformerConfig = TransformerConfig(VOCABULARY, 128, 3, 4, 4, 344, CONTEXT)
    # The text is read six times over, so the target needs dropout; the draft is too small to overfit.
    fit_target: Fit = Fit(steps=3200, learning_rate=1.5e-3, dropout=0.1)
    fit_draft: Fit = Fit(steps=2500, learning_rate=3e-3)
    fit_distil: Fit = Fit(steps=3200, learning_rate=2e-3)
    total_variation_from: float = (
        0.8  # the last fifth of the distillation minimises the acceptance lost
    )
    sampled_texts: int = 2048  # of CONTEXT tokens each; half of every distillation batch
    data_sha256: str = SHA256
    split: dict[str, list[str]] = field(default_factory=dict)


class Run:
    """Where a run's records and checkpoints live."""

    def __init__(self, run_id: str) -> None:
        self.records = ROOT / "results" / "train-pair" / run_id
        self.checkpoints = DATA / "checkpoints" / run_id
        self.records.mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir(parents=True, exist_ok=True)

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
        partial = self.checkpoints / f"{name}.partial"
        torch.save(content, partial)
        partial.replace(self.checkpoints / f"{name}.pt")

    def load(self, name: str) -> dict | None:
        path = self.checkpoints / f"{name}.pt"
        return torch.load(path, weights_only=True) if path.exists() else None


def environment() -> dict:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    cpu = Path("/proc/cpuinfo").read_text().split("model name\t: ")[1].split("\n")[0]
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", *SOURCES)),
        "command": f"python scripts/train_pair.py {' '.join(sys.argv[1:])}",
        "device": f"CPU, {cpu}, {torch.get_num_threads()} of {os.cpu_count()} cores",
        "precision": "bfloat16 autocast, float32 weights",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "tokenizers": tokenizers.__version__,
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- text ---------------------------------------------------------------------------------------------------


def train_tokenizer(texts: list[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE. Id 0 ends a text and, as the first token, stands for the empty context."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokens(run: Run, part: str) -> Tensor:
    """The speeches of one split as one row of ids; each speech begins with the end-of-text token."""
    tokenizer = tokenizers.Tokenizer.from_file(str(run.checkpoints / "tokenizer.json"))
    end = tokenizer.token_to_id(END_OF_TEXT)
    texts = speeches()
    ids = [[end, *tokenizer.encode(texts[id]).ids] for id in split(list(texts))[part]]
    return torch.tensor([token for document in ids for token in document])


def windows(tokens: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` random windows of CONTEXT + 1 tokens."""
    starts = torch.randint(len(tokens) - CONTEXT, (count, 1), generator=generator)
    return tokens[starts + torch.arange(CONTEXT + 1)]


def cut(tokens: Tensor) -> Tensor:
    """All of `tokens` as consecutive windows of CONTEXT + 1 that overlap in one token."""
    return tokens.unfold(0, CONTEXT + 1, CONTEXT)


# --- training -----------------------------------------------------------------------------------------------


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def next_token_loss(model: nn.Module, batch: Tensor) -> Tensor:
    with autocast():
        logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: nn.Module, batch: Tensor) -> float:
    model.eval()
    losses = [next_token_loss(model, rows).item() * len(rows) for rows in batch.split(8)]
    model.train()
    return sum(losses) / len(batch)


def learning_rate(fit: Fit, step: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth of the peak."""
    if step < fit.warmup:
        return fit.learning_rate * (step + 1) / fit.warmup
    progress = (step - fit.warmup) / (fit.steps - fit.warmup)
    return fit.learning_rate * (0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2)


def add_dropout(model: Transformer, rate: float) -> None:
    """Dropout on what each block adds to the residual stream; training only, so the model knows nothing of it."""
    for block in model.layers:
        for branch in (block.self_attn, block.mlp):
            branch.register_forward_hook(
                lambda module, _, output: F.dropout(output, rate, module.training)
            )


def fit_model(
    run: Run, stage: str, model: Transformer, fit: Fit, seed: int, loss_at, validation
) -> None:
    """Minimise loss_at(step, generator), a scalar.

    Every 100 steps: validation, a line of curve.jsonl, a checkpoint to resume from.
    """
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, betas=fit.betas, weight_decay=fit.weight_decay, fused=True
    )
    start, seconds = 0, 0.0
    if checkpoint := run.load(stage):
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        start, seconds = checkpoint["step"], checkpoint["seconds"]
    total, began = 0.0, time.monotonic()
    for step in range(start, fit.steps):
        torch.manual_seed(seed + step)
        generator = torch.Generator().manual_seed(seed + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(fit, step)
        loss = loss_at(step, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), fit.clip)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
        done = step + 1
        if done % 100 == 0 or done == fit.steps:
            seconds += time.monotonic() - began
            record = {
                "stage": stage,
                "step": done,
                "tokens": done * fit.batch * CONTEXT,
                "seconds": round(seconds, 1),
                "training_loss": round(total / (done - start), 4),
                **validation(model),
            }
            run.append("curve.jsonl", record)
            print(json.dumps(record), flush=True)
            run.save(
                stage,
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": done,
                    "seconds": seconds,
                },
            )
            total, began, start = 0.0, time.monotonic(), done


def stage_tokenizer(run: Run, settings: Settings) -> None:
    texts = speeches()
    tokenizer = train_tokenizer([texts[id] for id in split(list(texts))["train"]])
    tokenizer.save(str(run.checkpoints / "tokenizer.json"))


def train_alone(run: Run, stage: str, config: TransformerConfig, fit: Fit, seed: int) -> None:
    """A model's own training on the speeches, by next-token loss."""
    tokens = load_tokens(run, "train")
    held_out = cut(load_tokens(run, "validation"))[::8]
    torch.manual_seed(seed)
    model = Transformer(config)
    if fit.dropout:
        add_dropout(model, fit.dropout)
    compiled_loss = torch.compile(next_token_loss)
    fit_model(
        run,
        stage,
        model,
        fit,
        seed,
        loss_at=lambda step, generator: compiled_loss(model, windows(tokens, fit.batch, generator)),
        validation=lambda model: {"held_out_loss": round(held_out_loss(model, held_out), 4)},
    )


def stage_target(run: Run, settings: Settings) -> None:
    train_alone(run, "target", settings.target, settings.fit_target, settings.seed)


def stage_draft(run: Run, settings: Settings) -> None:
    train_alone(run, "draft", settings.draft, settings.fit_draft, settings.seed)


STAGES = {
    "tokenizer": stage_tokenizer,
    "target": stage_target,
    "draft": stage_draft,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run-id", required=True, help="name of the run, e.g. sotu-1")
    parser.add_argument("--stage", choices=STAGES, nargs="+", default=list(STAGES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run, settings = Run(arguments.run_id), Settings(split=split(list(speeches())))
    config = run.records / "config.json"
    text = json.dumps(asdict(settings), indent=1) + "\n"
    if config.exists() and config.read_text() != text:
        raise ValueError(
            f"run-id {arguments.run_id} was started with other settings, see {config}; "
            f"give this run another id"
        )
    config.write_text(text)
    for stage in arguments.stage:
        session = {"stage": stage, "seed": settings.seed, "start": now(), **environment()}
        run.log_session(session)
        STAGES[stage](run, settings)
        run.log_session(session | {"end": now()})


if __name__ == "__main__":
    main()
