"""What the decoding loop asks of a language model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

# The `config` of a model that reads texts of any length.
ANY_LENGTH = SimpleNamespace(context=2**31)

# Every kernel of attention but cuDNN's, torch's own choice on an H100: it plans for each new shape,
# which takes tens of milliseconds and cannot be recorded in a CUDA graph.
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class LanguageModel(Protocol):
    """What the loop asks of a model: a Transformer and a MarkovModel both offer it.

    A call gives logits (B, N, V); its arguments are those of `Transformer.hidden`. A model may also
    have `fill`, which takes the same arguments, writes the cache and makes no logits: prompts are read
    with it. A model whose calls wait for the device has an attribute `synchronizes`, True, and decodes
    without CUDA graphs.
    """

    config: Any  # with .context, the number of positions the model knows

    @property
    def vocab_size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def new_cache(self, batch: int, slots: int) -> Any: ...

    def __call__(
        self, tokens: Tensor, positions: Tensor, cache: Any, slots: Tensor, mask: Tensor
    ) -> Tensor: ...
