"""Verification at temperature 0, for every rule: compare the drafted tokens with the target's best ones.

Neither model leaves anything to chance, so all K paths are one, and each token of it is accepted as
long as it is the target's best. Ten kernels on a GPU, whatever the rule.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectr_lite.decoding.sampling import Sampling
from spectr_lite.verifiers.base import Verifier


def compare(
    rule: Verifier,
    drafted: Tensor,
    draft_probs: list[Tensor],
    logits: Tensor,
    sampling: Sampling,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Block (B, L+1), accepted (B,) and path (B,), as in `Turn`, by the first of the paths (B, K, L).

    A node whose best logit is no finite number has no best token: the block has -1 from there on.
    """
    length = drafted.shape[2]
    best, block = logits[:, : length + 1].max(-1)
    block = torch.where(best.abs() < torch.inf, block, -1)
    stopped = (block[:, :-1] != drafted[:, 0]).view(torch.uint8).cummax(1).values
    block[:, 1:].masked_fill_(stopped.view(torch.bool), -1)
    accepted = length - stopped.sum(1)
    return block, accepted, torch.zeros_like(accepted)
