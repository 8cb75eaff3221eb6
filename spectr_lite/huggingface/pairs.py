"""Pairs from a model hub, or from folders of the same layout: any two models, one tokenizer.

    pair = load_pair("HuggingFaceTB/SmolLM2-1.7B", "HuggingFaceTB/SmolLM2-135M", device, dtype)

Every causal language model runs as transformers runs it, behind the loop's interface
(huggingface/causal_lm.py).

Models are often wider than their tokenizer: Qwen2.5 pads its vocabulary to 151,936 or 152,064 rows,
by size, for 151,665 tokens. Logits behind the tokenizer's last id are cut, so that both
distributions live on the same real tokens and no padding is ever drawn. Explained in chapter 8.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from spectr_lite.huggingface.causal_lm import CausalLM
from spectr_lite.models import END_OF_TEXT, ModelPair
from spectr_lite.models.weights import read_tokenizer

FETCH_AGAIN = "fetch or save a model with a fast tokenizer again"
FILES = ["config.json", "tokenizer.json", "model*.safetensors", "model.safetensors.index.json"]


def load_pair(
    target: str,
    draft: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ModelPair:
    """A pair by the hub names ("owner/name") or folders of two models; both in evaluation mode, frozen.

    Raises ValueError when the two do not share a vocabulary, when a model cannot be decoded with or
    its files are not whole, and FileNotFoundError when it is neither a folder nor to be had from
    the hub, or has no tokenizer.json.
    """
    folders = [folder_of(target, "target"), folder_of(draft, "draft")]
    tokenizer, other = (
        read_tokenizer(folder, {"file": "tokenizer.json", "sha256": None}, FETCH_AGAIN)
        for folder in folders
    )
    check_same_vocabulary(tokenizer, other)
    size = max(tokenizer.get_vocab().values()) + 1
    large, small = (load_model(folder, device, dtype, size) for folder in folders)
    return ModelPair(
        f"{target} + {draft}", large, small, tokenizer, end_token(folders[0], tokenizer)
    )


def load_model(
    folder: Path, device: str | torch.device, dtype: torch.dtype, vocab_size: int
) -> CausalLM:
    """The model in a folder that save_pretrained wrote, with logits for `vocab_size` tokens."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: transformers cannot load it ({error}); fetch or save the model again"
        ) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):  # else they would be random numbers
        raise ValueError(
            f"{folder}: {len(missing)} weights are missing, such as {missing[0]}; fetch or save the "
            "model again"
        )
    adapted = CausalLM(model.to(device).eval().requires_grad_(False), vocab_size)
    if vocab_size > adapted.own_size:
        raise ValueError(
            f"{folder}: the tokenizer has {vocab_size} tokens, the model {adapted.own_size}; "
            "give the model's own tokenizer"
        )
    return adapted


def folder_of(name: str, role: str) -> Path:
    """The folder itself, or the local copy of a hub's model, fetched where it is not there yet."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download  # slow to import

    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{role}: {name!r} is not a folder, and the hub did not give it "
            f"({type(error).__name__}: {error}). Check the name and the connection."
        ) from error


def check_same_vocabulary(target: Tokenizer, draft: Tokenizer) -> None:
    """ValueError unless every id is the same token for both."""
    ids = {id: token for token, id in target.get_vocab().items()}
    others = {id: token for token, id in draft.get_vocab().items()}
    if differ := [id for id in sorted(ids | others) if ids.get(id) != others.get(id)]:
        first = differ[0]
        raise ValueError(
            f"target and draft: {len(differ)} of {len(ids | others)} token ids differ, the first "
            f"is {first}: {ids.get(first)!r} and {others.get(first)!r}. Choose two models of one "
            "family, with one tokenizer."
        )


def end_token(folder: Path, tokenizer: Tokenizer) -> str:
    """The token that ends a text: config.json's eos_token_id, the first if there are many."""
    end = json.loads((folder / "config.json").read_text("utf-8")).get("eos_token_id")
    end = end[0] if isinstance(end, list) else end
    token = END_OF_TEXT if end is None else tokenizer.id_to_token(end)
    if token is None or tokenizer.token_to_id(token) is None:
        raise ValueError(
            f"{folder}: found eos_token_id={end!r} in config.json; give the id of the token of "
            "tokenizer.json that ends a text"
        )
    return token
