"""Recorded logits of scored trees, in one safetensors file: what `advise --dump` reads.

    paths           (N, K, L) int64          K drafted sequences of L tokens at each of N contexts
    draft_logits    (N, K, L, V)             of the draft after i tokens of each path, i < L
    target_logits   (N, K, L + 1, V)         of the target, i <= L
    text            (N,) int64               which text each context is from: intervals are over texts
    metadata        provenance               JSON: models, revision, dtype, engine, whatever tells it

Logits may be log-probabilities, in float16, bfloat16 or float32; -inf is a token that is never said.
The paths must have been drawn from the draft at the temperature that they are then judged at, each by
itself: they are i.i.d. samples. Explained on the page "Your own models".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spectr_experiments.replay import ScoredTree
from spectr_lite.decoding.sampling import Sampling

FIELDS = {"paths": 3, "draft_logits": 4, "target_logits": 4, "text": 1}  # name: dimensions


def write(path: Path, found: Iterable[tuple[int, Tensor, Tensor, Tensor]], **told: Any) -> None:
    """A dump of (text, paths, draft_logits, target_logits) per context; `told` is its provenance."""
    texts, *columns = zip(*found, strict=True)
    names = ("paths", "draft_logits", "target_logits")
    fields = {name: torch.stack(rows) for name, rows in zip(names, columns, strict=True)}
    save_file(
        {**fields, "text": torch.tensor(texts)}, path, metadata={"provenance": json.dumps(told)}
    )


def check(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every field. ValueError for a file that is no dump, with what is wrong."""
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"--dump: {path} is no safetensors file ({error})") from None
    for name, dimensions in FIELDS.items():
        if len(shapes.get(name, ())) != dimensions:
            found = shapes.get(name, "nothing")
            raise ValueError(
                f"--dump: {path} needs a field {name!r} of {dimensions} dimensions, found {found}. It "
                f"must hold {', '.join(FIELDS)}"
            )
    count, drafts, length = shapes["paths"]
    vocabulary = shapes["draft_logits"][-1]
    wanted = {
        "draft_logits": (count, drafts, length, vocabulary),
        "target_logits": (count, drafts, length + 1, vocabulary),
        "text": (count,),
    }
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise ValueError(f"--dump: {path}, {name} has shape {shapes[name]}, expected {shape}")
    return shapes


def texts(path: Path) -> list[int]:
    """The numbers of the texts that a dump has contexts of, in order."""
    with safe_open(path, "pt") as file:
        return sorted(set(file.get_tensor("text").tolist()))


def trees(path: Path, text: int, sampling: Sampling) -> Iterator[ScoredTree]:
    """The trees of one text. ValueError for a token outside the vocabulary, or logits that give no
    probabilities, with their place."""
    with safe_open(path, "pt") as file:
        for row in (file.get_tensor("text") == text).nonzero()[:, 0].tolist():
            paths = file.get_slice("paths")[row].long()
            rows = []
            for name in ("draft_logits", "target_logits"):
                probs = sampling.probs(file.get_slice(name)[row].double())
                if not torch.isfinite(probs).all() or (probs.sum(-1) - 1).abs().max() > 1e-6:
                    raise ValueError(
                        f"--dump: {path}, {name}[{row}] holds logits that give no probabilities (nan, "
                        "inf, or -inf for every token). Record them again"
                    )
                rows.append(probs / probs.sum(-1, keepdim=True))
            if not ((paths >= 0) & (paths < rows[0].shape[-1])).all():
                raise ValueError(
                    f"--dump: {path}, paths[{row}] holds a token outside 0 to {rows[0].shape[-1] - 1}"
                )
            yield ScoredTree(paths, *rows)
