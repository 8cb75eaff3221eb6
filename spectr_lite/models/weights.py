"""A model's files: checked against the SHA-256 they were published with, and read.

A model or pair is a folder: config.json says in which file each part is, its SHA-256 and, of a
model, the architecture. Weights are .safetensors, the tokenizer is a tokenizer.json. A file that is
missing raises FileNotFoundError; one that is not what config.json promises, ValueError.
Explained in chapter 8.
"""

from __future__ import annotations

import copy
import hashlib
import json
import textwrap
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from spectr_lite.models.transformer import Transformer, TransformerConfig, rotary_tables

Model = TypeVar("Model", bound=Transformer)
REINSTALL = "reinstall spectr-lite or train the pair again"
MODELS = ("target", "draft")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, sha256: str | None = None, remedy: str = REINSTALL) -> None:
    """FileNotFoundError if there is no file, ValueError if its hash is not `sha256`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {remedy}")
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        raise ValueError(
            f"{path} is corrupt: SHA-256 {sha256} is promised, found {found}; {remedy}"
        )


def read_config(folder: Path, parts: Collection[str], remedy: str = REINSTALL) -> dict[str, Any]:
    """config.json of a folder, which must describe `parts`, such as "target" and "tokenizer"."""
    path = folder / "config.json"
    check_file(path, remedy=remedy)
    needed = {
        part: ["file", "sha256", *(["architecture"] if part in MODELS else [])] for part in parts
    }
    try:
        config = json.loads(path.read_text("utf-8"))
        for part, keys in needed.items():
            for key in keys:
                config[part][key]
            Path(config[part]["file"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not describe {', '.join(parts)} ({type(error).__name__}: {error}); it "
            f"needs {', '.join(f'{part} with {keys}' for part, keys in needed.items())}; "
            f"{remedy}"
        ) from error
    return config


def read_tokenizer(folder: Path, entry: Mapping[str, Any], remedy: str = REINSTALL) -> Tokenizer:
    """The tokenizer that an entry of config.json describes: {"file", "sha256"}."""
    path = folder / entry["file"]
    check_file(path, entry["sha256"], remedy)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is no tokenizer ({error}); {remedy}") from error


def read_weights(
    folder: Path, entry: Mapping[str, Any], remedy: str = REINSTALL
) -> dict[str, Tensor]:
    """The tensors, by name, of the .safetensors file that an entry of config.json describes.

    They lie in the file until they are touched: copy what is to stay.
    """
    path = folder / entry["file"]
    check_file(path, entry["sha256"], remedy)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}); {remedy}") from error


def read_model(
    folder: Path,
    entry: Mapping[str, Any],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    remedy: str = REINSTALL,
) -> Transformer:
    """The model that an entry of config.json describes: {"file", "sha256", "architecture"}."""
    weights = read_weights(folder, entry, remedy)
    weights = {name: tensor.to(device, dtype, copy=True) for name, tensor in weights.items()}
    return from_weights(read_architecture(folder, entry, remedy), weights, folder / entry["file"])


def read_architecture(
    folder: Path, entry: Mapping[str, Any], remedy: str = REINSTALL
) -> TransformerConfig:
    """The sizes of the Transformer that an entry of config.json describes."""
    values = entry["architecture"]
    try:
        for name in ("vocab_size", "layers", "heads", "kv_heads", "ffn", "context", "norm_eps"):
            if not values[name] > 0:
                raise ValueError(f"{name} must be above 0")
        return TransformerConfig(**values)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder / entry['file']} does not fit an architecture of ours: found {values} in "
            f"config.json ({type(error).__name__}: {error}); {remedy}"
        ) from error


def from_weights(
    config: TransformerConfig, weights: dict[str, Tensor], source: str | Path
) -> Transformer:
    """A Transformer of these sizes with these weights; `source` names them in an error message.

    The tensors become the model's own, uncopied but for those that it joins. It is frozen and in
    evaluation mode. ValueError for weights of other names or shapes, and as of `check_finite`.
    """
    with torch.device("meta"):  # no memory, no random start
        model = Transformer(config)
    return set_weights(model, weights, source)


def set_weights(model: Model, weights: dict[str, Tensor], source: str | Path) -> Model:
    """Give a model that was made on torch's meta device, without memory, its weights.

    Returns that model, as `from_weights` does, and raises as it does.
    """
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 300, placeholder=" ...")
        raise ValueError(f"{source}: the weights do not fit its architecture. {reason}") from error
    model.cos, model.sin = (
        table.to(model.embed_tokens.weight) for table in rotary_tables(model.config)
    )
    probe = torch.linspace(0, model.vocab_size - 1, 32, device=model.device).long().view(16, 2)
    check_finite(model.eval().requires_grad_(False), lambda: model.hidden(probe), source)
    return model


def check_finite(model: nn.Module, read: Callable[[], object], source: str | Path) -> None:
    """ValueError, with its name, for a weight or a layer's output in `read` that is not finite.

    float16 ends at 65,504. On another text than `read` gives the model it may still overflow.
    """

    def check(name: str, tensor: object) -> None:
        if isinstance(tensor, Tensor) and not tensor.isfinite().all():
            remedy = "load the model in bfloat16 or float32, or other weights"
            raise ValueError(f"{source}: {name} is not finite in {tensor.dtype}; {remedy}")

    for item in model.state_dict().items():
        check(*item)
    names = {layer: f"the output of {name}" for name, layer in model.named_modules()}

    def check_layer(layer: nn.Module, _: object, found: object) -> None:
        check(names.get(layer, f"the output of {type(layer).__name__}"), found)

    with register_module_forward_hook(check_layer):
        read()


def drop_layers(model: Transformer, layers: Collection[int]) -> Transformer:
    """`model` without some of its layers: an untrained draft that shares every tensor it keeps.

    Raises ValueError when a layer does not exist or none would be left.
    """
    count = model.config.layers
    kept = [layer for layer in range(count) if layer not in set(layers)]
    if len(kept) != count - len(set(layers)) or not kept:
        raise ValueError(
            f"layers: found {sorted(layers)}; give numbers from 0 to {count - 1}, and not all"
        )
    own = {id(weight): nn.Parameter(weight.data, False) for weight in model.parameters()}
    short = copy.deepcopy(model, own)  # other modules around the same memory
    short.layers = nn.ModuleList(short.layers[layer] for layer in kept)
    short.config = replace(model.config, layers=len(kept))
    return short.eval()
