"""Probability vectors: checking them and drawing from them.

Every public function of the package accepts NumPy arrays, nested lists or torch tensors whose last
axis is the vocabulary. It answers with torch tensors if it was given one, and with NumPy arrays
otherwise. Inside, everything is a torch tensor. Explained in chapter 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Number

import numpy as np
import torch
from numpy import typing as npt
from torch import Tensor

MOST_DRAFTS = 1_000_000
BLOCK = 128  # tokens that `sample` counts as one at first, of a large vocabulary on a CPU
ArrayLike = Tensor | npt.ArrayLike  # what callers may pass
Array = Tensor | np.ndarray | float  # what they get back


@dataclass(frozen=True)
class CheckedPair:
    """A checked draft and target, each of shape (..., V); whether the caller passed torch tensors."""

    draft: Tensor
    target: Tensor
    is_torch: bool

    def restore(self, values: Tensor) -> Array:
        """`values` as the caller's kind: a torch tensor, a NumPy array, or a float if 0-dimensional."""
        if self.is_torch:
            return values
        return values.item() if values.ndim == 0 else values.numpy()


def as_tensor(values: ArrayLike, name: str, what: str) -> Tensor:
    """`values` as a dense tensor of real numbers; TypeError says that `name` expected `what`.

    A tensor passes through. What torch cannot hold is copied: other strides and byte orders, read-only
    arrays; fractions, decimals and long doubles, which become float64.
    """
    try:
        rows = values if isinstance(values, list | tuple) else [values]
        if any(isinstance(row, np.ma.MaskedArray) for row in rows):
            raise TypeError("masked entries have no value")
        if isinstance(values, Tensor):
            tensor = values
        else:
            array = np.asarray(values)
            if array.dtype == object and not all(isinstance(v, Number) for v in array.flat):
                raise TypeError("not all of it is numbers")
            wide = array.dtype == object or array.dtype == np.longdouble
            kind = np.dtype(np.float64) if wide else array.dtype.newbyteorder("=")
            tensor = torch.from_numpy(np.array(array, dtype=kind, order="C"))
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise TypeError(
            f"{name}: expected {what}, found {type(values).__name__} ({error}). "
            "Pass a NumPy array, a torch tensor or nested lists of numbers."
        ) from error
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise TypeError(
            f"{name}: expected {what}, found a tensor that is sparse, quantized or without values. "
            "Pass a dense one."
        )
    return tensor


def check_distribution(values: ArrayLike, name: str) -> Tensor:
    """`values` as a normalised float tensor of shape (..., V).

    NumPy arrays and lists become float64; torch keeps float32 and float64, and half precision is
    raised to float32. A row may miss 1 by what a softmax in float32 leaves, whatever holds it now (a
    float64 array, a list, a CSV file): V + 8 roundings of 2^-24, but at most 3.5e-4. In half precision
    it may miss sqrt(eps): 3% in float16. The row is then divided by its sum.

    Raises TypeError when `values` is not an array of real numbers, and ValueError when it has no
    vocabulary axis, a negative, NaN or infinite entry, or a row that does not sum to 1.

        >>> check_distribution([0.5, 0.25, 0.25], "draft")
        tensor([0.5000, 0.2500, 0.2500], dtype=torch.float64)
        >>> check_distribution([0.5, 0.6], "draft")
        Traceback (most recent call last):
        ValueError: draft: row 0 sums to 1.1, more than 6.0e-07 away from 1. ...
    """
    tensor = as_tensor(values, name, "an array of probabilities")
    given, half = tensor.dtype, tensor.dtype in (torch.float16, torch.bfloat16)
    known = half or given in (torch.float32, torch.float64)
    if tensor.is_complex() or given == torch.bool or (tensor.is_floating_point() and not known):
        raise TypeError(
            f"{name}: expected real probabilities, found dtype {given}. "
            "Pass float16, bfloat16, float32 or float64."
        )
    single = isinstance(values, Tensor) and (half or given == torch.float32)
    tensor = tensor.to(torch.float32 if single else torch.float64)
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
    rounding = min((tensor.shape[-1] + 8) * 2.0**-24, 3.5e-4)
    tolerance = torch.finfo(given).eps ** 0.5 if half else rounding
    total = tensor.sum(-1, dtype=torch.float64)
    miss = (total - 1).abs()
    if (miss > tolerance).any():
        row = int(miss.flatten().argmax())
        raise ValueError(
            f"{name}: row {row} sums to {total.flatten()[row].item():.12g}, more than {tolerance:.1e} "
            "away from 1. Normalise it, or apply softmax first if these are logits."
        )
    return tensor / total.unsqueeze(-1).to(tensor.dtype)


def check_pair(draft: ArrayLike, target: ArrayLike) -> CheckedPair:
    """Both distributions checked, on one device, in one dtype, broadcast to one shape (..., V).

    Raises what `check_distribution` raises, and ValueError when the vocabularies differ in size, the
    devices differ, or the leading shapes do not broadcast.
    """
    is_torch = isinstance(draft, Tensor) or isinstance(target, Tensor)
    p, q = check_distribution(draft, "draft"), check_distribution(target, "target")
    if p.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"draft and target: vocabularies of {p.shape[-1]} and {q.shape[-1]} tokens. Both models "
            "must share one vocabulary; pad the shorter distribution with zeros if its missing tokens "
            "can never be drawn."
        )
    if p.device != q.device:
        raise ValueError(
            f"draft and target: devices {p.device} and {q.device}. Move both to one device."
        )
    dtype = torch.promote_types(p.dtype, q.dtype)
    try:
        p, q = torch.broadcast_tensors(p.to(dtype), q.to(dtype))
    except RuntimeError as error:
        raise ValueError(
            f"draft and target: shapes {tuple(p.shape)} and {tuple(q.shape)} do not broadcast. Give "
            "both the same leading shape."
        ) from error
    return CheckedPair(p, q, is_torch)


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
    """A torch.Generator on `device`: from a seed, from a NumPy generator, or freshly seeded (None).

    Raises ValueError for a torch.Generator on another device, TypeError for anything else.
    """
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


def fixed_point(weights: Tensor) -> Tensor:
    """`weights` (each at most 1) in units of 2^-60, int64: their sums are exact in any order."""
    return (weights.to(torch.float64) * 2.0**60).to(torch.int64)


def draw(weights: Tensor, otherwise: Tensor, coin: Tensor) -> Tensor:
    """`sample` for a GPU: a coin (...), uniform in [0, 1), gives the same token every time.

    The sums are those of whole numbers, so that no order of threads changes them. A row without any
    weight draws from `otherwise` (..., V): rounding may leave nothing of a residual.
    """
    fixed = fixed_point(weights)
    empty = fixed.sum(-1, keepdim=True) <= 0
    cumulative = torch.where(empty, fixed_point(otherwise), fixed).cumsum(-1)
    total = cumulative[..., -1:]
    level = torch.minimum((coin.unsqueeze(-1) * total).to(torch.int64), total - 1)
    token = torch.searchsorted(cumulative, level, right=True).squeeze(-1)
    return token.clamp_max(weights.shape[-1] - 1)


def sample(weights: Tensor, generator: torch.Generator, count: int | None = None) -> Tensor:
    """Token ids drawn in proportion to `weights` (..., V): shape (...), or (..., count).

    Inverts the cumulative sum in float64, so a token of weight zero is never drawn. A row of zeros
    answers V - 1: such rows are residuals of which the caller makes no use.

        >>> sample(torch.tensor([0.0, 1.0, 0.0]), torch.Generator().manual_seed(0), count=4)
        tensor([1, 1, 1, 1])
    """
    vocabulary = weights.shape[-1]
    if vocabulary > BLOCK**2 and weights.device.type == "cpu":
        # One block by its sum, then a token of the block: the row is read once, in its own precision.
        whole = vocabulary - vocabulary % BLOCK
        sums = weights[..., :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
        rest = weights[..., whole:].sum(-1, keepdim=True)
        start = sample(torch.cat([sums, rest], -1), generator, count or 1) * BLOCK
        place = start.unsqueeze(-1) + torch.arange(BLOCK)
        inside = probability_of(weights, place.masked_fill(place >= vocabulary, -1).flatten(-2))
        token = start + sample(inside.view(place.shape), generator)
        token = token.clamp_max(vocabulary - 1)
        return token.squeeze(-1) if count is None else token
    cumulative = weights.to(torch.float64).cumsum(-1)
    total = cumulative[..., -1:]
    shape = (*weights.shape[:-1], 1 if count is None else count)
    level = uniform(shape, generator) * total
    # u * total may round up to total itself, past the last token that has any weight.
    level = torch.minimum(level, torch.nextafter(total, torch.zeros_like(total)))
    token = torch.searchsorted(cumulative, level, right=True).clamp_max(weights.shape[-1] - 1)
    return token.squeeze(-1) if count is None else token


def probability_of(probabilities: Tensor, tokens: Tensor) -> Tensor:
    """probabilities[..., tokens], shape (..., k): (..., V) and (..., k) are broadcast; -1 reads 0."""
    lead = torch.broadcast_shapes(probabilities.shape[:-1], tokens.shape[:-1])
    rows = probabilities.expand(*lead, -1)
    index = tokens.expand(*lead, -1)
    return rows.gather(-1, index.clamp_min(0)).masked_fill(index < 0, 0.0)
