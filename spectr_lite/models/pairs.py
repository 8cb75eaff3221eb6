"""Language models to decode with; `load_pair` loads a target and draft that share a tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from spectr_lite.models import smollm2
from spectr_lite.models.transformer import Transformer
from spectr_lite.models.weights import REMEDY, architecture, from_weights, read, read_weights

END_OF_TEXT = "<|endoftext|>"
DATA = Path(__file__).parent / "data"
PAIRS = {"bundled": DATA / "sotu"}
ENTRIES = {  # of a pair's config.json
    "target": ("file", "sha256", "architecture"),
    "draft": ("file", "sha256", "architecture"),
    "tokenizer": ("file", "sha256"),
}


@dataclass(frozen=True)
class ModelPair:
    """A large `target`, a small `draft`, and the tokenizer of both."""

    name: str
    target: Transformer
    draft: Transformer
    tokenizer: Tokenizer
    end_token: str = END_OF_TEXT

    @property
    def end_of_text(self) -> int:
        """The id that ends a text and, as a first token, stands for the empty context."""
        return self.tokenizer.token_to_id(self.end_token)


def pair_names() -> tuple[str, ...]:
    return (*PAIRS, *smollm2.DRAFTS)


def load_pair(
    name: str = "bundled",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ModelPair:
    """A pair by its name, or from a directory laid out like models/data/sotu.

    "bundled" is in the package; the others need `make smollm2`; huggingface/pairs.py loads more.
    Models come in evaluation mode, frozen, on `device` in `dtype`. Raises ValueError for an unknown
    name, a file that is not the one config.json describes, or a vocabulary the three do not share;
    FileNotFoundError for a file that is missing.
    """
    if name in smollm2.DRAFTS:
        return ModelPair(name, *smollm2.load(name, device, dtype))
    directory = PAIRS.get(name, Path(name))
    if name not in PAIRS and not directory.is_dir():
        raise ValueError(
            f"name={name!r} is neither a known pair nor a directory; "
            f"known pairs: {', '.join(pair_names())}"
        )
    config = read_config(directory)
    tokenizer = read_tokenizer(directory, config["tokenizer"])
    target, draft = (
        load_model(directory, config[role], device, dtype) for role in ("target", "draft")
    )
    sizes = {
        "target": target.vocab_size,
        "draft": draft.vocab_size,
        "tokenizer": tokenizer.get_vocab_size(),
    }
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"pair {name!r}: target, draft and tokenizer must share one vocabulary, "
            f"got sizes {sizes}; use models trained with the same tokenizer"
        )
    return ModelPair(name, target, draft, tokenizer)


def read_config(directory: Path) -> dict:
    """config.json: which file each part is in, its SHA-256, the architecture of both models."""
    path = directory / "config.json"
    content = read(path)
    try:
        config = json.loads(content)
        for role, keys in ENTRIES.items():
            for key in keys:
                config[role][key]
            Path(config[role]["file"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not the description of a pair ({type(error).__name__}: {error}); it needs "
            f"{', '.join(f'{role} with {list(keys)}' for role, keys in ENTRIES.items())}, as in {DATA}"
        ) from error
    return config


def read_tokenizer(directory: Path, entry: dict) -> Tokenizer:
    path = directory / entry["file"]
    content = read(path, entry["sha256"])
    try:
        return Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is no tokenizer ({error}); {REMEDY}") from error


def load_model(
    directory: Path, entry: dict, device: str | torch.device, dtype: torch.dtype
) -> Transformer:
    """One model from its entry in config.json: {"file", "sha256", "architecture": {...}}."""
    path = directory / entry["file"]
    weights = read_weights(path, entry["sha256"])
    weights = {name: tensor.to(device, dtype) for name, tensor in weights.items()}
    return from_weights(architecture(entry["architecture"], path), weights, path)
