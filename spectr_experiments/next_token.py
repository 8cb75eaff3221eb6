"""A small sample of real next-token distributions: SmolLM2-135M and two drafts cut out of it.

    make smollm2
    python -m spectr_lite reproduce next-token-laws [--run-id NAME]

Each distribution is the model's, at temperature 1, after one held-out prompt of the bundled pair's
text (State of the Union addresses, public domain). Log-probabilities are kept in float16 and read
back with a softmax: that is then the distribution, to the last digit. A run is
results/next-token-laws/<run-id>/; the distributions of the newest, as arrays, are
spectr_lite/results/next-token-laws.npz. An older run has that file itself.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from spectr_experiments.records import Phase, Plan, Record, Run
from spectr_lite.models import load_pair, prompts, smollm2

FOLDER = "next-token-laws"
CPU_ONLY = True
PLACES = 12
SCHEMA = {"records": {"model": str, "place": int, "float16": str}}  # (V,) little-endian, in base64
KEYS = {"records": ("model", "place")}
MODELS = ("target", "drop6", "drop3")


def plans(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Iterator[Plan]:
    six, three = load_pair("smollm2"), load_pair("smollm2-drop3")
    models = dict(zip(MODELS, (six.target, six.draft, three.draft), strict=True))
    held = prompts.load("sotu", six.tokenizer, count=PLACES)
    config = {
        "target": "SmolLM2-135M-Instruct",
        "target_sha256": smollm2.SHA256,
        "drafts": {"drop6": smollm2.DROPPED["smollm2"], "drop3": smollm2.DROPPED["smollm2-drop3"]},
        "prompts": held.documents,
        "prompts_sha256": held.sha256,
        "temperature": 1.0,
        "dtype": "float32",
        "stored": "float16 log-probabilities",
    }
    recording = partial(measure, models, held.tokens)
    yield Plan(args.run_id or "smollm2", config, [Phase("laws", ["records"], recording)])


@torch.no_grad()
def measure(
    models: dict[str, torch.nn.Module], held: list[list[int]], run: Run, seconds: float | None
) -> None:
    def records_of(number: int) -> list[Record]:
        return [{"model": name, "place": number} for name in models]

    def make(number: int) -> list[Record]:
        tokens, found = torch.tensor([held[number]]), records_of(number)
        for record in found:
            law = models[record["model"]](tokens)[0, -1].double().log_softmax(-1)
            packed = base64.b64encode(law.numpy().astype("<f2").tobytes())
            record["float16"] = packed.decode()
        return found

    run.fill("records", range(len(held)), records_of, make, seconds)


def summarise(run: Run, config: Record, sessions: list[Record]) -> bytes:
    """The .npz file: float16 log-probabilities (places, V) of the target and of both drafts."""
    old = run.folder / "laws.npz"
    if old.exists():
        content = old.read_bytes()
        wanted, found = config["file_sha256"], hashlib.sha256(content).hexdigest()
        if found != wanted:
            raise ValueError(f"{old}: SHA-256 {found[:16]} and not {wanted[:16]}; restore it")
        return content
    laws: dict[str, list[np.ndarray]] = {name: [] for name in MODELS}
    for record in run.read("records"):
        packed = base64.b64decode(record["float16"])
        laws[record["model"]].append(np.frombuffer(packed, "<f2").astype(np.float16))
    file = io.BytesIO()
    np.savez_compressed(file, **{name: np.stack(rows) for name, rows in laws.items()})
    return file.getvalue()
