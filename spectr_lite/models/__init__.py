"""Language models to decode with; `load_pair` loads a target and draft that share a tokenizer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load
from tokenizers import Tokenizer

from spectr_lite.models import smollm2
from spectr_lite.models.transformer import KVCache, Transformer, TransformerConfig

__all__ = [
    "END_OF_TEXT",
    "KVCache",
    "Pair",
    "Transformer",
    "TransformerConfig",
    "load_pair",
    "pair_names",
]

END_OF_TEXT = "<|endoftext|>"
DATA = Path(__file__).parent / "data"
PAIRS = {"bundled": DATA / "sotu"}
ENTRIES = {  # of a pair's config.json
    "target": ("file", "sha256", "architecture"),
    "draft": ("file", "sha256", "architecture"),
    "tokenizer": ("file", "sha256"),
}


@dataclass(frozen=True)
class Pair:
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
) -> Pair:
    """A pair by its name, or from a directory laid out like models/data/sotu.

    "bundled" is in the package; the others need `make smollm2`; models/hub.py loads more.
    Models come in evaluation mode, frozen, on `device` in `dtype`. Raises ValueError for an unknown
    name, a file that is not the one config.json describes, or a vocabulary the three do not share;
    FileNotFoundError for a file that is missing.
    """
    if name in smollm2.DRAFTS:
        return Pair(name, *smollm2.load(name, device, dtype))
    directory = PAIRS.get(name, Path(name))
    if name not in PAIRS and not directory.is_dir():
        raise ValueError(
            f"name={name!r} is neither a known pair nor a directory; "
            f"known pairs: {', '.join(pair_names())}"
        )
    config = read_config(directory)
    tokenizer_file = config["tokenizer"]
    content = read(directory, tokenizer_file["file"], tokenizer_file["sha256"])
    tokenizer = Tokenizer.from_buffer(content)
    target, draft = (
        load_model(directory, config[role]).to(device, dtype) for role in ("target", "draft")
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
    return Pair(name, target, draft, tokenizer)


def read_config(directory: Path) -> dict:
    """config.json: which file each part is in, its SHA-256, the architecture of both models."""
    path, content = directory / "config.json", read(directory, "config.json")
    try:
        config = json.loads(content)
        for role, keys in ENTRIES.items():
            for key in keys:
                config[role][key]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not the description of a pair ({type(error).__name__}: {error}); it needs "
            f"{', '.join(f'{role} with {list(keys)}' for role, keys in ENTRIES.items())}, as in {DATA}"
        ) from error
    return config


def load_model(directory: Path, entry: dict) -> Transformer:
    """One model from its entry in config.json: {"file", "sha256", "architecture": {...}}."""
    weights = load(read(directory, entry["file"], entry["sha256"]))
    try:
        model = Transformer(TransformerConfig(**entry["architecture"]))
        model.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{directory / entry['file']} does not fit the architecture in config.json; {error}"
        ) from error
    return model.eval().requires_grad_(False)


def read(directory: Path, file: str, sha256: str | None = None) -> bytes:
    """The bytes of a file, which must exist and, where a SHA-256 is given, match it."""
    path = directory / file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; reinstall spectr-lite or train the pair again")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, found):
        raise ValueError(
            f"{path} is corrupt: config.json promises SHA-256 {sha256}, found {found}; "
            f"reinstall spectr-lite or train the pair again"
        )
    return content
