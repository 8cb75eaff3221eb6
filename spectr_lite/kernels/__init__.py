"""A turn's verification in a few launches: Triton kernels, a page each, for what nodes.py does in torch.

    probabilities   of the target at all nodes, from its logits (with top_k or top_p: plain torch)
    discount        K-SEQ's rho at all nodes, in three rounds
    histogram, plan the optimal plan at all nodes
    walk, winners   from the root down, by K-SEQ and by the plan
    last            what is left of the target where the walk stopped, and one token from it

Given the same uniform numbers the kernels choose the tokens of `nodes.in_three_steps`, which is their
specification; only a coin within rounding of its threshold could fall the other way. Not yet run on a
GPU: the tests run the kernels in Triton's interpreter, and compile them for sm_75, sm_80 and sm_90.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spectr_lite.distributions import uniform
from spectr_lite.verifiers import Coupling, KSeq, Optimal, OptimalBlock, Verifier

if TYPE_CHECKING:
    from spectr_lite.decoding.sampling import Sampling

CHUNK = 2048  # tokens that one program sums over
MOST_CLASSES = 511  # of the optimal plan
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}


def take(rule: Verifier, device: torch.device) -> bool:
    """Are there kernels for this rule here? Not for a rule derived from one of these."""
    if device.type != "cuda" or not ready():
        return False
    plan = rule.selection if type(rule) is OptimalBlock else rule
    if type(plan) is Optimal:
        return plan.classes is not None and plan.classes <= MOST_CLASSES
    return type(rule) is Coupling or (type(rule) is KSeq and rule.rho is None)


@cache
def ready() -> bool:
    """Is Triton here, and a C compiler, without which it starts no kernel? If not: nodes.py."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return importlib.util.find_spec("triton") is not None and compiler is not None


def verify(
    rule: Verifier,
    drafted: Tensor,
    draft_probs: list[Tensor],
    logits: Tensor,
    sampling: Sampling,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Block (B, L+1), accepted (B,) and path (B,), as in `Turn`: steps 3 and 4 of a turn."""
    rows, count, length = drafted.shape
    per_depth = {Optimal: count + 2, OptimalBlock: count + 1}.get(type(rule), count)
    width = length * per_depth + (2 if isinstance(rule, OptimalBlock) else 1)
    coins = uniform((rows, width), generator)
    with torch.cuda.device_of(drafted):  # where Triton launches
        target, missing = target_probs(logits, sampling)
        return in_kernels(rule, torch.stack(draft_probs, 2), target, missing, drafted, coins)


def target_probs(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Probabilities (B, n, V), uniform where there are none; and where that is, (B, n)."""
    from spectr_lite.kernels.probabilities import probabilities

    if sampling.top_k is not None or sampling.top_p is not None or logits.dtype == torch.float64:
        return sampling.probs_or_uniform(logits)
    logits = logits.contiguous()
    probs = torch.empty_like(logits, dtype=torch.float32)
    missing = torch.empty(logits.shape[:-1], dtype=torch.bool, device=logits.device)
    limits = torch.finfo(torch.float32)
    temperature = min(max(float(sampling.temperature), limits.tiny), limits.max / 2)
    vocabulary, rows = logits.shape[-1], missing.numel()
    block = min(4096, power_of_2(vocabulary))
    options = OPTIONS | {"num_warps": 8}
    probabilities[rows,](logits, probs, missing, temperature, vocabulary, BLOCK=block, **options)
    return probs, missing


def in_kernels(
    rule: Verifier, draft: Tensor, target: Tensor, missing: Tensor, paths: Tensor, coins: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """draft (B, K, L, V), target and missing (B, 1 + K L, ...), paths (B, K, L); `coins` (B, n): those
    of `in_three_steps` of nodes.py, or of optimal_block.py, in that order."""
    from spectr_lite.kernels.last import draw, left_sums
    from spectr_lite.kernels.walk import walk
    from spectr_lite.kernels.winners import winners

    (rows, count, length), device = paths.shape, draft.device
    block_rule, kseq = type(rule) is OptimalBlock, not isinstance(rule, Optimal | OptimalBlock)
    stops, parts, width = (
        length + 1 if block_rule else 1,
        -(-draft.shape[-1] // CHUNK),
        coins.shape[1],
    )
    shape = count, length, draft.shape[-1]
    stop = torch.empty(rows, stops, 3, dtype=torch.int32, device=device)
    weights = torch.empty(rows, stops, dtype=torch.float64, device=device)
    kp, wide = power_of_2(count), power_of_2(parts)
    if kseq:
        sums, starts = search_discounts(draft, target, paths, parts)
        table, classes = (stop, weights), 1  # not looked at
        walk[rows,](draft, target, paths, coins, sums, starts, stop, weights, *shape, parts, width,
                    KP=kp, PARTS=wide, **OPTIONS)  # fmt: skip
    else:
        plan = rule.selection if isinstance(rule, OptimalBlock) else rule
        assert isinstance(plan, Optimal) and plan.classes is not None
        classes = min(plan.classes, MOST_CLASSES)
        class_of, activation, slope = make_plans(draft, target, paths, parts, classes)
        table = class_of, slope
        winners[rows,](draft, target, paths, coins, class_of, activation, slope, stop, weights,
                       *shape, classes, width, KP=kp, EP=power_of_2(classes + 1),
                       BLOCK_RULE=block_rule, **OPTIONS)  # fmt: skip
    sizes = {"EP": power_of_2(classes + 1), "CHUNK": CHUNK, "KSEQ": kseq}
    left = torch.empty(rows, stops, parts, 2, dtype=torch.float64, device=device)
    left_sums[rows * stops, parts](draft, target, *table, stop, weights, left, *shape, stops, parts,
                                   **sizes, **OPTIONS)  # fmt: skip
    block = torch.empty(rows, length + 1, dtype=torch.int64, device=device)
    accepted, path = torch.empty(2, rows, dtype=torch.int64, device=device)
    draw[rows,](draft, target, *table, paths, stop, weights, left, coins, missing, block, accepted,
                path, *shape, stops, parts, width, **sizes, LP=power_of_2(length + 1), PARTS=wide,
                BLOCK_RULE=block_rule, **OPTIONS)  # fmt: skip
    return block, accepted, path


def search_discounts(
    draft: Tensor, target: Tensor, paths: Tensor, parts: int
) -> tuple[Tensor, Tensor]:
    """The sums and the starts of the last round: from them `walk` takes rho at each node."""
    from spectr_lite.kernels.discount import EDGES, STEPS, search

    rows, count, length = paths.shape
    nodes, device = rows * count * length, draft.device
    sums = torch.empty(2, nodes, parts, EDGES.value, dtype=torch.float64, device=device)
    starts = torch.empty(2, nodes, dtype=torch.int32, device=device)
    units = (STEPS.value // 32, STEPS.value // 1024, 1) if count > 1 else ()
    for turn, unit in enumerate(units):
        now, before = turn % 2, (turn + 1) % 2
        search[nodes, parts](
            draft, target, paths, sums[before], starts[before], sums[now], starts[now], unit,
            count, length, draft.shape[-1], parts, KP=power_of_2(count), PARTS=power_of_2(parts),
            CHUNK=CHUNK, BLOCK=min(CHUNK, 64), FIRST=turn == 0, **OPTIONS,
        )  # fmt: skip
    return sums[0], starts[0]


def make_plans(
    draft: Tensor, target: Tensor, paths: Tensor, parts: int, classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each node, with EP > `classes` places a row: class of each cell, activation times, slopes."""
    from spectr_lite.kernels import histogram, plan

    rows, count, length = paths.shape
    nodes, device, levels = rows * count * length, draft.device, 16
    shape, kp, ep = (count, length), power_of_2(count), power_of_2(classes + 1)
    cells = histogram.CELLS.value

    def table(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty(nodes, *size, dtype=dtype, device=device)

    class_of, vertex = table(cells, dtype=torch.int32), table(ep, dtype=torch.int32)
    cuts, activation, slope = table(3, ep), table(ep), table(ep)
    if count == 1:
        return class_of, activation, slope  # one draft wins for certain
    held = torch.zeros(nodes, 2, cells, dtype=torch.int64, device=device)
    batches, edges = -(-classes // levels), classes + 1
    by_level = table(batches, ep)
    histogram.histogram[nodes, parts](draft, target, paths, held, *shape, draft.shape[-1], KP=kp,
                                      CHUNK=CHUNK, BLOCK=min(CHUNK, 512), **OPTIONS)  # fmt: skip
    histogram.classes[nodes,](paths, held, class_of, cuts, *shape, classes, KP=kp, EP=ep, BLOCK=1024,
                              **OPTIONS)  # fmt: skip
    plan.hull[nodes, -(-edges // 8)](paths, cuts, vertex, *shape, classes, KP=kp, EP=ep,
                                               MINE=8, **OPTIONS)  # fmt: skip
    plan.times[nodes, -(-edges // 4)](paths, cuts, vertex, activation, *shape, classes, KP=kp, EP=ep,
                                      MINE=4, **OPTIONS | {"num_warps": 8})  # fmt: skip
    plan.slopes[nodes, batches](paths, cuts, activation, by_level, *shape, classes, batches, KP=kp,
                                EP=ep, LEVELS=levels, MINE=4, **OPTIONS)  # fmt: skip
    plan.added[nodes,](paths, by_level, slope, *shape, batches, KP=kp, EP=ep, **OPTIONS)
    return class_of, activation, slope


def power_of_2(size: int) -> int:
    """The least power of 2 that is at least `size`, and at least 2."""
    return max(2, 1 << (size - 1).bit_length())
