"""What both trainings share: one loop, its schedule, and a run on disk that goes on after a kill."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from spectr_experiments.records import environment, now, read_json, read_records, write_json
from spectr_lite.commands.ending import resumable

ROOT = Path(__file__).resolve().parent.parent
CURVE = "curve.jsonl"
Record = dict[str, Any]


class TrainingRun:
    """Records in results/EXPERIMENT/ID, large files in data/FILES/ID; processes may share a run."""

    def __init__(
        self, run_id: str, experiment: str = "train-smollm2", files: str = "distil"
    ) -> None:
        self.id = run_id
        self.records = ROOT / "results" / experiment / run_id
        self.files = ROOT / "data" / files / run_id
        for folder in (self.records, self.files):
            folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.files / "lock")

    def settle(self, settings: Any) -> None:
        """Write config.json; ValueError if the run has made something with other settings (a
        dataclass)."""
        path, config = self.records / "config.json", json.loads(json.dumps(asdict(settings)))
        made = [*self.records.glob("*.jsonl"), *self.files.glob("*.*")]
        if made and path.exists() and read_json(path) != config:
            raise ValueError(
                f"run-id {self.id} was started with other settings, see {path}; give this run "
                "another id"
            )
        write_json(path, config)

    def log_session(self, session: Record) -> None:
        """Add one session (a stage and its start) to env.json, or replace what it said before."""
        path, same = self.records / "env.json", ("stage", "start")
        with self.lock:
            found = read_json(path)["sessions"] if path.exists() else []
            others = [s for s in found if any(s[name] != session[name] for name in same)]
            write_json(path, {"sessions": [*others, session]})

    def run(
        self,
        settings: Any,
        stages: dict[str, Callable[[], object]],
        sources: Sequence[str],
        precision: str,
        device: str = "cpu",
    ) -> None:
        """Every stage in turn, each as a session of env.json with its start and its end."""
        self.settle(settings)
        module = Path(sys.argv[0]).stem
        command = f"training.{module}", *sys.argv[1:]
        for name, stage in stages.items():
            session = {
                "stage": name,
                "command": " ".join(["python", "-m", *command]),
                "seed": settings.seed,
                "precision": precision,
                "start": now(),
                **environment(ROOT, sources, ("torch", "numpy", "tokenizers"), device),
            }
            self.log_session(session)
            with resumable(*command):
                stage()
            self.log_session(session | {"end": now()})

    def append(self, name: str, record: Record) -> None:
        """Add a line to a file of records; what a kill left of an unfinished last line is cut."""
        with self.lock, (self.records / name).open("a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write((json.dumps(record) + "\n").encode())

    def read(self, name: str) -> list[Record]:
        """The whole lines of a file of records; none where there is no file."""
        path = self.records / name
        return read_records(path)[0] if path.exists() else []

    def restore(self, stage: str) -> None:
        """Bring back the lines of curve.jsonl that a cut file lacks: each checkpoint has its own.

        ValueError for lines of `stage` without its checkpoint: they could not be gone on with.
        """
        with self.lock:
            known: dict[str, list[Record]] = {}
            for record in self.read(CURVE):
                known.setdefault(record["stage"], []).append(record)
            paths = sorted(self.files.glob("*.pt"), key=lambda path: path.stat().st_mtime_ns)
            saved = {path.stem: self.load(path.stem) for path in paths}
            if stage in known and stage not in saved:
                raise ValueError(
                    f"run-id {self.id}: {self.records / CURVE} has stage {stage} up to step "
                    f"{known[stage][-1]['step']}, but {self.files} holds no checkpoint of it; "
                    "bring it back, or give this run another id"
                )
            curves = {name: c["curve"] for name, c in saved.items() if "curve" in c}
            if (whole := known | curves) != known:
                partial = self.records / "curve.partial"
                lines = (json.dumps(record) + "\n" for part in whole.values() for record in part)
                partial.write_text("".join(lines))
                os.replace(partial, self.records / CURVE)

    def save(self, name: str, content: Record) -> None:
        """A file under its own name only when it is whole."""
        partial = self.files / f"{name}.partial"
        torch.save(content, partial)
        partial.replace(self.files / f"{name}.pt")

    def load(self, name: str) -> Record | None:
        """What `save` wrote, on the CPU and read when it is used; None where it wrote nothing."""
        path = self.files / f"{name}.pt"
        if not path.exists():
            return None
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


@dataclass(frozen=True)
class Fit:
    """One training: `steps` batches of `batch` windows, AdamW, gradients clipped to norm `clip`.

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

    def share(self, step: int) -> float:
        """The learning rate of a step, counted from 0, over its peak."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return 0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2


def optimizer_at(
    model: nn.Module, fit: Fit, step: int = 0, state: Record | None = None
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """Optimizer and schedule ready for `step`; `state` is the optimizer's own then."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() == 2], "weight_decay": fit.weight_decay},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=fit.learning_rate, betas=fit.betas, fused=True)
    if state:
        optimizer.load_state_dict(state)
    return optimizer, LambdaLR(optimizer, fit.share, last_epoch=step - 1)


def train(
    run: TrainingRun,
    stage: str,
    model: nn.Module,
    fit: Fit,
    seed: int,
    step_tokens: int,
    loss_at: Callable[[int, torch.Generator], Tensor],
    validate: Callable[[int], Record],
    every: int = 100,
) -> Record:
    """Minimise loss_at(step, generator), a scalar, over what requires a gradient in `model`.

    Before the first step, after every `every` and after the last: a checkpoint of that name, then a
    line of curve.jsonl with what validate(steps done) found, in evaluation mode. Goes on from the
    checkpoint. A step depends on `seed` and its number alone, so a killed training ends as one that
    ran through. Returns the last line.
    """
    done, seconds, curve, state = 0, 0.0, [], None
    if saved := run.load(stage):
        model.load_state_dict(model.state_dict() | saved["model"])
        done, seconds, curve, state = (saved[k] for k in ("step", "seconds", "curve", "optimizer"))
    run.restore(stage)
    optimizer, schedule = optimizer_at(model, fit, done, state)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}

    def note(**spent: float) -> None:
        model.eval()
        head = {"stage": stage, "step": done, "tokens": done * step_tokens}
        with torch.no_grad():
            curve.append(head | spent | validate(done))
        model.train()
        weights = {name: w for name, w in model.state_dict().items() if name not in frozen}
        checkpoint = {"model": weights, "optimizer": optimizer.state_dict(), "curve": curve}
        with run.lock:  # nobody restores between the two
            run.save(stage, checkpoint | {"step": done, "seconds": seconds})
            run.append(CURVE, curve[-1])
        tqdm.write(json.dumps(curve[-1]))

    if not curve:
        note()
    model.train()
    total, counted, began = torch.zeros(()), 0, time.monotonic()
    for step in progress(range(done, fit.steps), stage, "step", 1, done):
        torch.manual_seed(seed + step)
        loss = loss_at(step, torch.Generator().manual_seed(seed + step))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), fit.clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        total, counted, done = total + loss.detach().double(), counted + 1, step + 1
        if done % every == 0 or done == fit.steps:
            mean = round(float(total) / counted, 4)
            seconds += time.monotonic() - began
            note(seconds=round(seconds, 1), training_loss=mean)
            total, counted, began = torch.zeros(()), 0, time.monotonic()
    return curve[-1]


def progress(items: Sequence, label: str, unit: str, scale: int = 1, done: int = 0) -> Iterable:
    """`items` with a bar, each worth `scale` units, after `done` before them; rarely in a log."""
    pace = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(
        items, label, len(items) + done, initial=done, unit=unit,
        unit_scale=scale > 1 and scale, mininterval=pace, maxinterval=2 * pace,
    )  # fmt: skip
