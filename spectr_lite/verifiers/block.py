"""Block verification: one drafted path is judged as a whole.

    w_0 = 1,   w_i = min(1, w_{i-1} target(x_i) / draft(x_i))                       along the path
    h_i = Z_i / (Z_i + 1 - w_i),   Z_i = sum_x (w_i target(x | x_1..x_i) - draft(x | x_1..x_i))+
    h_L = w_L;   keep the LARGEST i that passes its own coin of bias h_i; then
    Y ~ (w_i target - draft)+   if i < L,   Y ~ target   if i = L

A token that fails its own coin is kept if a later coin succeeds. Stopping at the first coin that fails
would bias the output. With L = 1 it is maximal coupling.
Source: Sun et al. (arXiv 2403.10444). The code is `paths.verify_path`, which other rules use too.
Explained in chapter 10.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectr_lite.distributions import Drafting
from spectr_lite.verifiers.base import TreeVerifier
from spectr_lite.verifiers.paths import BlockGivenPaths, verify_path


class BlockVerification(TreeVerifier):
    """Optimal among the rules for one path; defined for one path only."""

    name = "block"
    only_k = 1

    def _given_paths(
        self, draft_probs: Tensor, target_probs: Tensor, paths: Tensor
    ) -> BlockGivenPaths:
        stop, extra = verify_path(
            draft_probs[..., 0, :, :], target_probs[..., 0, :, :], paths[..., 0, :]
        )
        return BlockGivenPaths(stop.unsqueeze(-2), extra.unsqueeze(-3))

    def _acceptance(self, draft: Tensor, target: Tensor, k: int, drafting: Drafting) -> Tensor:
        return torch.minimum(draft, target).sum(-1)
