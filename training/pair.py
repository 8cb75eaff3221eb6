"""Train the bundled pair: a 5.8M-parameter target and a 1.1M-parameter draft distilled from it.

    python -m training.pair --run-id ID                   all stages, one after the other
    python -m training.pair --run-id ID --stage target    one; target and draft can run at once

Stages: tokenizer, target, draft, sample (text from the target), distil, export (into the package).
One more on demand, before a second export: shapes, which compares drafts of about the same size.
A killed stage continues from its last checkpoint in data/checkpoints/ID. Every step's batch and
dropout depend only on the seed and the step's number. Records go to results/train-pair/ID.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from dataclasses import asdict, dataclass, field

import safetensors.torch
import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectr_experiments.draft_costs import multiply_adds, write_text
from spectr_experiments.records import now, read_records
from spectr_lite.commands.arguments import Parser, folder_name, whole
from spectr_lite.commands.ending import ended
from spectr_lite.models import END_OF_TEXT, PAIRS, load_pair
from spectr_lite.models.transformer import Transformer, TransformerConfig
from training.cards import put, render
from training.corpus import PACKAGE, SHA256, speeches, split
from training.train import CURVE, ROOT, Fit, Record, TrainingRun, train

SOURCES = ("training", "spectr_lite/models/pairs.py", "spectr_lite/models/transformer.py")
SHIPPED = PAIRS["bundled"]
VOCABULARY = 4096
CONTEXT = 512
TARGET = TransformerConfig(VOCABULARY, 256, 6, 4, 4, 688, CONTEXT)
DRAFT = TransformerConfig(VOCABULARY, 128, 3, 4, 4, 344, CONTEXT)
SHAPES = {  # layers x width
    "3x128": DRAFT,
    "1x192": TransformerConfig(VOCABULARY, 192, 1, 4, 4, 512, CONTEXT),
}
PROMPT = 32  # tokens of a speech before each of them
HELD_BACK = 32  # of the target's own texts: for evaluation, not for distillation
# The text is read over seven times: dropout for the target; the draft is too small to overfit.
FIT_TARGET = Fit(steps=3600, learning_rate=1.5e-3, dropout=0.1)
FIT_DRAFT = Fit(steps=3000, learning_rate=3e-3)
FIT_DISTIL = Fit(steps=1200, learning_rate=2e-3)
FIT_SHAPES = Fit(steps=300, learning_rate=3e-3)


@dataclass(frozen=True)
class Settings:
    seed: int = 1790
    target: TransformerConfig = TARGET
    draft: TransformerConfig = DRAFT
    fit_target: Fit = FIT_TARGET
    fit_draft: Fit = FIT_DRAFT
    fit_distil: Fit = FIT_DISTIL
    # Distillation: half of a batch comes from the texts that the target wrote; the last fifth of
    # the steps minimises the acceptance lost itself.
    sampled_texts: int = 512
    total_variation_from: float = 0.8
    data_sha256: str = SHA256
    split: dict[str, list[str]] = field(default_factory=dict)


# --- text ----------------------------------------------------------------------------------------


def stage_tokenizer(run: TrainingRun, settings: Settings) -> None:
    """Byte-level BPE. Id 0 ends a text and, as the first token, stands for the empty context."""
    tokenizer, texts = tokenizers.Tokenizer(tokenizers.models.BPE()), speeches()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([texts[id] for id in split(list(texts))["train"]], trainer)
    tokenizer.save(str(run.files / "tokenizer.json"))


def load_tokens(run: TrainingRun, part: str) -> Tensor:
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


def next_token_loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Mean over the tokens of windows (B, CONTEXT + 1), in nats."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def add_dropout(model: Transformer, rate: float) -> None:
    """Dropout on what each block adds to the residual stream: training's business, so a hook."""
    for block in model.layers:
        for branch in (block.self_attn, block.mlp):
            branch.register_forward_hook(
                lambda module, _, output: F.dropout(output, rate, module.training)
            )


def train_alone(run: TrainingRun, settings: Settings, stage: str) -> None:
    """A model's own training on the speeches, by next-token loss; `stage` is its name."""
    fit: Fit = getattr(settings, f"fit_{stage}")
    tokens = load_tokens(run, "train")
    held_out = cut(load_tokens(run, "validation"))[::8]
    torch.manual_seed(settings.seed)
    model = Transformer(getattr(settings, stage))
    if fit.dropout:
        add_dropout(model, fit.dropout)
    compiled_loss = torch.compile(next_token_loss)

    def validate(_: int) -> Record:
        losses = [next_token_loss(model, rows).item() * len(rows) for rows in held_out.split(8)]
        return {"held_out_loss": round(sum(losses) / len(held_out), 4)}

    train(
        run, stage, model, fit, settings.seed, fit.batch * CONTEXT,
        lambda _, generator: compiled_loss(model, windows(tokens, fit.batch, generator)), validate,
    )  # fmt: skip


def load_model(run: TrainingRun, stage: str, config: TransformerConfig) -> Transformer:
    """The model a finished stage left, in float32, for evaluation only."""
    checkpoint = run.load(stage)
    if checkpoint is None:
        raise FileNotFoundError(f"no checkpoint of stage {stage} in {run.files}; run it first")
    model = Transformer(config)
    model.load_state_dict(checkpoint["model"])
    return model.eval().requires_grad_(False)


# --- distillation --------------------------------------------------------------------------------


@torch.no_grad()
def stage_sample(run: TrainingRun, settings: Settings) -> None:
    """Texts the target writes at temperature 1, each after 32 tokens of a training speech."""
    if run.load("sampled") is not None:
        return
    model = load_model(run, "target", settings.target).bfloat16()
    tokens = load_tokens(run, "train")
    generator = torch.Generator().manual_seed(settings.seed)
    rows = min(256, settings.sampled_texts)
    texts = []
    for _ in range(settings.sampled_texts // rows):
        prompts = windows(tokens, rows, generator)[:, :PROMPT]
        texts.append(write_text(model, prompts, CONTEXT + 1, generator)["tokens"].long())
    run.save("sampled", {"tokens": torch.cat(texts)})


def distillation_loss(draft: nn.Module, target: nn.Module, batch: Tensor, final: bool) -> Tensor:
    """KL(target || draft) per token or, if `final`, total variation: what rejection costs."""
    with torch.autocast("cpu", torch.bfloat16):
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
    run: TrainingRun, settings: Settings, stage: str, draft: Transformer, fit: Fit, final: float
) -> None:
    """Fit `draft` to the target's distribution, half on speeches and half on the target's own texts.

    From the share `final` of the steps on, the loss is total variation.
    """
    target = load_model(run, "target", settings.target)
    tokens = load_tokens(run, "train")
    sampled = run.load("sampled")["tokens"][HELD_BACK:]
    held_out = cut(load_tokens(run, "validation"))[::8]
    compiled_loss = torch.compile(distillation_loss)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        own = torch.randint(len(sampled), (fit.batch // 2,), generator=generator)
        batch = torch.cat((windows(tokens, fit.batch // 2, generator), sampled[own]))
        return compiled_loss(draft, target, batch, step >= final * fit.steps)

    def validate(_: int) -> Record:
        found = compare(target, draft, held_out)
        return {f"held_out_{name}": round(value, 4) for name, value in found.items()}

    train(run, stage, draft, fit, settings.seed + 1, fit.batch * CONTEXT, loss_at, validate)


def stage_distil(run: TrainingRun, settings: Settings) -> None:
    draft = load_model(run, "draft", settings.draft).train().requires_grad_(True)
    distil(run, settings, "distil", draft, settings.fit_distil, settings.total_variation_from)


def stage_shapes(run: TrainingRun, settings: Settings) -> None:
    """Drafts of about the same size, each distilled from nothing on the same batches."""
    for name, config in SHAPES.items():
        torch.manual_seed(settings.seed)
        distil(run, settings, f"shape-{name}", Transformer(config), FIT_SHAPES, final=1.0)


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


def stage_export(run: TrainingRun, settings: Settings) -> None:
    """Write the pair into the package in float16, then measure it as `load_pair` reads it back."""
    distilled = run.load("distil") is not None
    sources = {"target": "target", "draft": "distil" if distilled else "draft"}
    config = {"data": PACKAGE, "licence": "CC0-1.0", "run": run.id}
    for role, stage in sources.items():
        weights = load_model(run, stage, getattr(settings, role)).half().state_dict()
        content = safetensors.torch.save(weights)
        config[role] = put(SHIPPED / f"{role}.safetensors", content)
        config[role]["architecture"] = asdict(getattr(settings, role))
    tokenizer = tokenizers.Tokenizer.from_file(str(run.files / "tokenizer.json"))
    config["tokenizer"] = put(SHIPPED / "tokenizer.json", tokenizer.to_str().encode())
    put(SHIPPED / "config.json", as_json(config))
    pair = load_pair()
    test = cut(load_tokens(run, "test"))[::2]
    excerpt = test[:: len(test) // 4][:4]
    shown = {"source": PACKAGE, "split": "test", "tokens": excerpt.tolist()}
    put(SHIPPED / "excerpt.json", as_json(shown))
    evaluation = {
        "measured": now(),
        "step": {role: run.load(stage)["step"] for role, stage in sources.items()},
        "test": compare(pair.target, pair.draft, test),
        "excerpt": compare(pair.target, pair.draft, excerpt),
    }
    if distilled:
        alone = load_model(run, "draft", settings.draft).half().float()
        evaluation["test_before_distillation"] = compare(pair.target, alone, test)
        own_text = run.load("sampled")["tokens"][:HELD_BACK]
        evaluation["target_text"] = compare(pair.target, pair.draft, own_text)
    evaluation["tokens"] = {part: len(load_tokens(run, part)) for part in settings.split}
    (run.records / "evaluation.json").write_bytes(as_json(evaluation))
    config["measured"] = {name: evaluation[name] for name in ("test", "excerpt")}
    put(SHIPPED / "config.json", as_json(config))
    put(SHIPPED / "card.md", card().encode())


def card() -> str:
    """The model card, from the records of the run that config.json names and the weights there."""
    run = json.loads((SHIPPED / "config.json").read_text())["run"]
    folder, pair = ROOT / "results" / "train-pair" / run, load_pair()
    settings, environment, evaluation = (
        json.loads((folder / f"{name}.json").read_text())
        for name in ("config", "env", "evaluation")
    )
    curve, _ = read_records(folder / CURVE)
    stages = ["target", "draft", *(["distil"] if "target_text" in evaluation else [])]
    trained = [session for session in environment["sessions"] if session["stage"] in stages]
    shapes, whole = [], multiply_adds(pair.target)
    for name, config in SHAPES.items():
        model = Transformer(config)
        shapes += [
            row | {"name": name, "size": size(model), "cost": multiply_adds(model) / whole}
            for row in curve
            if row["stage"] == f"shape-{name}" and row["step"] == FIT_SHAPES.steps
        ]
    quality = {
        "draft before distillation, test speeches": evaluation.get("test_before_distillation"),
        "draft, test speeches": evaluation["test"],
        "draft, text sampled from the target": evaluation.get("target_text"),
        "draft, `excerpt.json` (four windows of the test speeches)": evaluation["excerpt"],
    }
    return render(
        "sotu.md.j2",
        run=run,
        settings=settings,
        evaluation=evaluation,
        sizes={role: size(getattr(pair, role)) for role in ("target", "draft")},
        end_of_text=END_OF_TEXT,
        package=PACKAGE,
        quality={name: row for name, row in quality.items() if row},
        curves={s: [row for row in curve if row["stage"] == s and row["step"]] for s in stages},
        shapes=shapes,
        trained=trained,
        commits=sorted({session["commit"][:12] for session in trained}),
    )


def size(model: nn.Module) -> int:
    """The number of its parameters."""
    return sum(p.numel() for p in model.parameters())


def as_json(content: dict) -> bytes:
    """Indented, except that a list of numbers stays on one line."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    one_line = re.sub(r"\[[\d,\s]+\]", lambda numbers: re.sub(r"\s+", " ", numbers[0]), text)
    return (one_line + "\n").encode()


STAGES = {
    "tokenizer": stage_tokenizer,
    "target": functools.partial(train_alone, stage="target"),
    "draft": functools.partial(train_alone, stage="draft"),
    "sample": stage_sample,
    "distil": stage_distil,
    "export": stage_export,
    "shapes": stage_shapes,
}


def main() -> None:
    parser = Parser(prog="training.pair", description=__doc__.split("\n")[0])
    parser.add_argument("--run-id", required=True, type=folder_name, help="such as sotu-1")
    parser.add_argument("--stage", choices=STAGES, nargs="+", default=list(STAGES)[:-1])
    cores = whole(1, os.cpu_count() or 1)
    parser.add_argument("--threads", type=cores, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run = TrainingRun(arguments.run_id, "train-pair", "checkpoints")
    settings = Settings(split=split(list(speeches())))
    stages = {name: functools.partial(STAGES[name], run, settings) for name in arguments.stage}
    run.run(settings, stages, SOURCES, "bfloat16 autocast, float32 weights")


if __name__ == "__main__":
    sys.exit(ended("training.pair", main))
