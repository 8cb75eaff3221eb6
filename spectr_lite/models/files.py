"""The package's own files: there, whole, and fitting the model they are for."""

from __future__ import annotations

import hashlib
import textwrap
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from spectr_lite.models.transformer import Transformer, TransformerConfig, rotary_tables

REMEDY = "reinstall spectr-lite or train the pair again"


def read(path: Path, sha256: str | None = None, remedy: str = REMEDY) -> bytes:
    """The bytes of a file: FileNotFoundError without it, ValueError if it is not the one promised."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {remedy}")
    content = path.read_bytes()
    if sha256 not in (None, found := hashlib.sha256(content).hexdigest()):
        raise ValueError(
            f"{path} is corrupt: SHA-256 {sha256} is promised, found {found}; {remedy}"
        )
    return content


def read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file."""
    try:
        return safetensors.torch.load(read(path, sha256))
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}); {REMEDY}") from error


def architecture(values: dict, source: Path) -> TransformerConfig:
    """A configuration from config.json's "architecture"."""
    try:
        for name in ("vocab_size", "layers", "heads", "kv_heads", "ffn", "context", "norm_eps"):
            if not values[name] > 0:
                raise ValueError(f"{name} must be above 0")
        return TransformerConfig(**values)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{source} does not fit an architecture of ours: found {values} in config.json "
            f"({type(error).__name__}: {error}); {REMEDY}"
        ) from error


def fill(model: Transformer, weights: dict[str, Tensor], source: str | Path) -> Transformer:
    """`model`, made on the meta device, with `weights` themselves, not a copy; frozen."""
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 300, placeholder=" ...")
        raise ValueError(f"{source}: the weights do not fit its architecture. {reason}") from error
    model.cos, model.sin = (
        table.to(model.embed_tokens.weight) for table in rotary_tables(model.config)
    )
    return model.eval().requires_grad_(False)


def from_weights(
    config: TransformerConfig, weights: dict[str, Tensor], source: str | Path
) -> Transformer:
    """A Transformer that holds `weights`; ValueError if they misfit."""
    with torch.device("meta"):  # no memory, no random start
        model = Transformer(config)
    return fill(model, weights, source)
