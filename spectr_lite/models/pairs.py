"""The pairs of models to decode with: `load_pair` gives a target and a draft that share a tokenizer.

Explained in chapter 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from spectr_lite.models import smollm2
from spectr_lite.models.interface import LanguageModel
from spectr_lite.models.weights import read_config, read_model, read_tokenizer

END_OF_TEXT = "<|endoftext|>"
DATA = Path(__file__).parent / "data"
PAIRS = {"bundled": DATA / "sotu"}


@dataclass(frozen=True)
class ModelPair:
    """A large `target`, a small `draft`, and the tokenizer of both."""

    name: str
    target: LanguageModel
    draft: LanguageModel
    tokenizer: Tokenizer
    end_token: str = END_OF_TEXT

    @property
    def end_of_text(self) -> int:
        """The id that ends a text and, as a first token, stands for the empty context."""
        return self.tokenizer.get_vocab()[self.end_token]


def pair_names() -> tuple[str, ...]:
    return (*PAIRS, *smollm2.DRAFTS)


def load_pair(
    name: str = "bundled",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ModelPair:
    """A pair by its name, or from a folder laid out like models/data/sotu.

    "bundled" is in the package; the others need `make smollm2`; huggingface/pairs.py loads more.
    Models come in evaluation mode, frozen, on `device` in `dtype`. Raises ValueError for an unknown
    name, a file that is not the one config.json describes, or a vocabulary the three do not share;
    FileNotFoundError for a file that is missing.
    """
    if name in smollm2.DRAFTS:
        return ModelPair(name, *smollm2.load(name, device, dtype))
    folder = PAIRS.get(name, Path(name))
    if name not in PAIRS and not (name and folder.is_dir()):
        raise ValueError(
            f"name={name!r} is neither a known pair nor a directory; known pairs: "
            f"{', '.join(pair_names())}. Two models of the Hugging Face hub make a pair with "
            "spectr_lite.huggingface.load_pair(target, draft)"
        )
    config = read_config(folder, ("target", "draft", "tokenizer"))
    tokenizer = read_tokenizer(folder, config["tokenizer"])
    target, draft = (
        read_model(folder, config[role], device, dtype) for role in ("target", "draft")
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
