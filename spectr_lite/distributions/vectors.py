"""Probability vectors: checking them, drawing from them, and the pairs this book works with.

Every public function of the package accepts NumPy arrays, nested lists or torch tensors whose last axis
is the vocabulary, and answers in the kind it was given. Inside, everything is a torch tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_DRAFTS = 1_000_000
ArrayLike = Any  # a NumPy array, a torch tensor, or nested lists of numbers


@dataclass(frozen=True)
class Checked:
    """A checked draft and target, each of shape (..., V), and the way back to the caller's kind."""

    draft: Tensor
    target: Tensor
    is_torch: bool

    def restore(self, values: Tensor) -> Any:
        """`values` as the caller's kind: torch stays torch; otherwise NumPy, or a float when 0-d."""
        if self.is_torch:
            return values
        return values.item() if values.ndim == 0 else values.numpy()


def _as_float_tensor(values: ArrayLike, name: str) -> tuple[Tensor, float]:
    """`values` as a float tensor, and how far from 1 its rows may sum."""
    try:
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name}: expected an array of probabilities, found {type(values).__name__} ({error}). "
            "Pass a NumPy array, a torch tensor or nested lists of numbers."
        ) from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(
            f"{name}: expected real probabilities, found dtype {tensor.dtype}. "
            "Pass float16, bfloat16, float32 or float64."
        )
    tolerance = (
        torch.finfo(tensor.dtype if tensor.is_floating_point() else torch.float64).eps ** 0.5
    )
    if not isinstance(values, Tensor) or not tensor.is_floating_point():
        return tensor.to(torch.float64), tolerance
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.to(torch.float32), tolerance
    return tensor, tolerance


def check_distribution(values: ArrayLike, name: str) -> Tensor:
    """`values` as a normalised float tensor of shape (..., V).

    NumPy arrays and lists become float64; torch keeps float32 and float64, and half precision is
    raised to float32. A row may miss 1 by sqrt(eps) of the given dtype (1.5e-8 in float64, 3.5e-4 in
    float32, 3% in float16), and is then divided by its sum.

    Raises TypeError when `values` is not an array of real numbers, and ValueError when it has no
    vocabulary axis, a negative, NaN or infinite entry, or a row that does not sum to 1.
    """
    tensor, tolerance = _as_float_tensor(values, name)
    if tensor.ndim == 0 or tensor.shape[-1] == 0:
        raise ValueError(
            f"{name}: shape {tuple(tensor.shape)} has no vocabulary. "
            "The last axis must hold at least one token's probability."
        )
    wrong = ~torch.isfinite(tensor) | (tensor < 0)
    if wrong.any():
        index = tuple(int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"{name}: entry {list(index)} is {tensor[index].item()}. Probabilities must be finite and "
            "not negative; apply softmax first if these are logits."
        )
    total = tensor.sum(-1, dtype=torch.float64)
    miss = (total - 1).abs()
    if (miss > tolerance).any():
        row = int(miss.flatten().argmax())
        raise ValueError(
            f"{name}: row {row} sums to {total.flatten()[row].item():.12g}, more than {tolerance:.1e} "
            "away from 1. Normalise it, or apply softmax first if these are logits."
        )
    return tensor / total.unsqueeze(-1).to(tensor.dtype)


def check_pair(draft: ArrayLike, target: ArrayLike) -> Checked:
    """Both distributions checked, on one device, in one dtype, broadcast to one shape.

    Raises ValueError when the vocabularies differ in size or the leading shapes do not broadcast.
    """
    is_torch = isinstance(draft, Tensor) or isinstance(target, Tensor)
    checked_draft = check_distribution(draft, "draft")
    checked_target = check_distribution(target, "target")
    if checked_draft.shape[-1] != checked_target.shape[-1]:
        raise ValueError(
            f"draft and target: vocabularies of {checked_draft.shape[-1]} and "
            f"{checked_target.shape[-1]} tokens. Both models must share one vocabulary; pad the "
            "shorter distribution with zeros if its missing tokens can never be drawn."
        )
    if checked_draft.device != checked_target.device:
        raise ValueError(
            f"draft and target: devices {checked_draft.device} and {checked_target.device}. "
            "Move both to one device."
        )
    dtype = torch.promote_types(checked_draft.dtype, checked_target.dtype)
    try:
        checked_draft, checked_target = torch.broadcast_tensors(
            checked_draft.to(dtype), checked_target.to(dtype)
        )
    except RuntimeError as error:
        raise ValueError(
            f"draft and target: shapes {tuple(checked_draft.shape)} and "
            f"{tuple(checked_target.shape)} do not broadcast. Give both the same leading shape."
        ) from error
    return Checked(checked_draft, checked_target, is_torch)


def check_count(value: int, name: str, least: int = 1, most: int = 2**63 - 1) -> int:
    """`value` as an int from `least` to `most`; TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(
            f"{name}: expected a whole number, found {value!r} ({type(value).__name__})."
        )
    if value < least:
        raise ValueError(f"{name}: found {value}. It must be at least {least}.")
    if value > most:
        raise ValueError(f"{name}: found {value}. It must be at most {most:,}.")
    return int(value)


def as_generator(
    generator: int | np.random.Generator | torch.Generator | None, device: torch.device
) -> torch.Generator:
    """A torch.Generator on `device`: from a seed, from a NumPy generator, or freshly seeded."""
    if isinstance(generator, torch.Generator):
        if generator.device.type != device.type:
            raise ValueError(
                f"generator: it lives on {generator.device}, the distributions on {device}. "
                f"Make it with torch.Generator('{device.type}')."
            )
        return generator
    fresh = torch.Generator(device)
    if generator is None:
        fresh.seed()
    elif isinstance(generator, np.random.Generator):
        fresh.manual_seed(int(generator.integers(2**63 - 1)))
    elif isinstance(generator, int | np.integer) and not isinstance(generator, bool):
        fresh.manual_seed(int(generator) % 2**64)
    else:
        raise TypeError(
            f"generator: expected None, a seed, numpy.random.Generator or torch.Generator, "
            f"found {type(generator).__name__}."
        )
    return fresh


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1) in float64: float32 has too few of them for a large vocabulary."""
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)


def sample(weights: Tensor, generator: torch.Generator, count: int | None = None) -> Tensor:
    """Token ids drawn in proportion to `weights`, shape (..., V); `count` adds a last axis.

    Inverts the cumulative sum in float64, so a token of weight zero is never drawn. A row of zeros
    answers V - 1: such rows are residuals that a caller then does not use.
    """
    cumulative = weights.to(torch.float64).cumsum(-1)
    total = cumulative[..., -1:]
    shape = (*weights.shape[:-1], 1 if count is None else count)
    level = uniform(shape, generator) * total
    # u * total may round up to total itself, past the last token that has any weight.
    level = torch.minimum(level, torch.nextafter(total, torch.zeros_like(total)))
    token = torch.searchsorted(cumulative, level, right=True).clamp_max(weights.shape[-1] - 1)
    return token.squeeze(-1) if count is None else token


def probability_of(probabilities: Tensor, tokens: Tensor) -> Tensor:
    """probabilities[..., tokens] with the leading dimensions broadcast; a dead draft (-1) reads 0."""
    lead = torch.broadcast_shapes(probabilities.shape[:-1], tokens.shape[:-1])
    rows = probabilities.expand(*lead, -1)
    index = tokens.expand(*lead, -1)
    return rows.gather(-1, index.clamp_min(0)).masked_fill(index < 0, 0.0)
