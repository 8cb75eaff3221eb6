"""What decoding should cost on a GPU, before one is at hand: a prediction, never a measurement.

    python -m spectr_lite reproduce predict     spectr_lite/results/prediction.json, and a table

Counted: the stages of the very turn that is timed (clocks.stage_steps), traced with fake tensors, which
have shapes and no values; so models known only by their sizes are traced as well. An operation that
makes or writes a tensor is a kernel; views are none. What CUDA does in one kernel and torch's CPU
operations in several is traced as one (`as_on_a_gpu`); a call of a Triton kernel is one, where Triton
is installed.

    time of a kernel = max(floor, bytes / bandwidth, floating-point operations / peak)
    time of a turn   = the sum over its kernels, replayed in one graph

Bytes are those of operands and results; of a table that is looked up or written at some places, those
places; of a Triton kernel all tensors it is given, though it may skip parts. Left out: kernels that
overlap, caches between them, and the one copy to the host. Expect an error of 30%.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from spectr_experiments import clocks, speeds
from spectr_experiments.records import Record, environment, now, rounded, write_json
from spectr_lite import kernels
from spectr_lite.book import recorded
from spectr_lite.decoding import Decoder
from spectr_lite.decoding.state import State
from spectr_lite.models import pairs
from spectr_lite.models.smollm2 import SHIPPED, NarrowDraft
from spectr_lite.models.transformer import Transformer, TransformerConfig
from spectr_lite.models.weights import read_architecture, read_config
from spectr_lite.transport import nested
from spectr_lite.verifiers import paths

aten = torch.ops.aten
NO_KERNEL = {  # views that torch does not mark as such, and operations that only reserve memory
    aten._reshape_alias, aten._unsafe_view, aten.detach, aten.lift_fresh, aten.scalar_tensor,
    aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty,
}  # fmt: skip
READS_PLACES = {aten.embedding, aten.gather, aten.index, aten.index_select}
WRITES_PLACES = {aten.index_copy_, aten.index_put_, aten.scatter_}

# Seconds a kernel takes at least, when a graph replays it: assumed. Bytes a second: 87% and 81% of
# the data sheet's. Operations a second, by bytes of a number: the data sheet's, without sparsity.
# Sources: NVIDIA's data sheets of the H100 SXM5 and the T4.
DEVICES: dict[str, Record] = {
    "H100": {"floor": 2.2e-6, "bandwidth": 2.9e12, "memory": 80e9,
             "peak": {2: 989e12, 4: 67e12, 8: 34e12}},
    "T4": {"floor": 3.2e-6, "bandwidth": 0.26e12, "memory": 15e9,
           "peak": {2: 65e12, 4: 8.1e12, 8: 0.25e12}},
}  # fmt: skip
TEXT, ROOM = 64, 96  # tokens of the text in the predicted turn, and of the longest

# Sizes as the models' authors publish them: SmolLM2 (arXiv 2502.02737), Qwen2.5 (arXiv 2412.15115). Of
# Qwen2.5 without the biases of q, k and v, and with the vocabulary of the larger model for both.
SMOLLM2 = TransformerConfig(49_152, 576, 30, 9, 3, 1_536, 8_192)
SMOLLM2_LARGE = TransformerConfig(49_152, 2_048, 24, 32, 32, 8_192, 8_192)
QWEN = TransformerConfig(152_064, 896, 24, 14, 2, 4_864, 32_768)
QWEN_LARGE = TransformerConfig(152_064, 3_584, 28, 28, 4, 18_944, 32_768)
PAIRS = ("smollm2-distilled", "smollm2", "bundled", "SmolLM2-1.7B + 135M", "Qwen2.5-7B + 0.5B")
RULES = ("kseq", "recursive", "optimal", "optimal-block")
CELLS = [
    *(("kseq", k, length) for k in (1, 2, 4, 8) for length in (2, 4, 8)),
    *((rule, 8, length) for rule in RULES[1:] for length in (4, 8)),
]


# --- counting -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """One launch: its operation, the bytes it reads and writes, its arithmetic, and in which width."""

    name: str
    bytes: int
    flops: int
    width: int

    def seconds(self, device: Record) -> float:
        arithmetic = self.flops / device["peak"][self.width] if self.flops else 0.0
        return max(device["floor"], self.bytes / device["bandwidth"], arithmetic)


class Kernels(TorchDispatchMode):
    """The kernels of all operations inside it, in order; Triton's are counted and not run."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[Kernel] = []
        self.patches = contextlib.ExitStack()

    def __enter__(self) -> Kernels:
        if importlib.util.find_spec("triton") is not None:
            from triton.runtime.jit import JITFunction

            def launch(kernel: Any, *args: Any, **settings: Any) -> None:
                given = [part for part in args if isinstance(part, Tensor)]
                self.launched.append(Kernel(kernel.__name__, bytes_of(None, given, []), 0, 4))

            self.patches.enter_context(patch.object(JITFunction, "run", launch))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.patches.close()
        super().__exit__(*error)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = operation(*args, **(kwargs or {}))
        results = [part for part in tree_leaves(made) if isinstance(part, Tensor)]
        packet = operation.overloadpacket
        if results and not operation.is_view and packet not in NO_KERNEL:
            operands = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
            formula = flop_registry.get(packet)
            flops = formula(*args, **(kwargs or {}), out_val=made) if formula else 0
            size = bytes_of(packet, operands, results)
            self.launched.append(Kernel(str(packet), size, flops, results[0].itemsize))
        return made


def bytes_of(packet: Any, operands: list[Tensor], results: list[Tensor]) -> int:
    """What an operation moves. Of a table with places, as many as are named: they are the others'."""
    unique = {id(tensor): held(tensor) for tensor in operands}
    if packet in READS_PLACES:
        return sum(map(held, operands[1:])) + 2 * sum(map(held, results))
    if packet in WRITES_PLACES:
        return 2 * sum(map(held, operands[1:]))
    return sum(unique.values()) + sum(map(held, results))


def held(tensor: Tensor) -> int:
    """Bytes of the different numbers in a tensor: along a stride of 0 there is but one."""
    count = tensor.itemsize
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride or not size else 1
    return count


def one_norm(x: Tensor, shape: Any, weight: Tensor, eps: float) -> Tensor:
    return x * weight


def one_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor) -> Tensor:
    mask = attn_mask.expand(-1, key.shape[1], -1, -1)
    return aten._scaled_dot_product_efficient_attention(query, key, value, mask, False)[0]


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Fake tensors, the way that the code takes on a GPU, and its norm and attention as one kernel."""
    take, triton = kernels.take, importlib.util.find_spec("triton") is not None
    with (
        patch.object(kernels, "ready", lambda: triton),  # a GPU's machine has a compiler
        patch.object(kernels, "take", lambda rule, _: take(rule, torch.device("cuda"))),
        FakeTensorMode(),
        patch.object(paths, "SYNC_IS_FREE", set()),
        patch.dict(nested.DENSE_LIMIT, cpu=nested.DENSE_LIMIT["cuda"]),
        patch.object(F, "rms_norm", one_norm),
        patch.object(F, "scaled_dot_product_attention", one_attention),
    ):
        yield


@torch.no_grad()
def trace(target: Any, draft: Any, **settings: Any) -> dict[str, list[Kernel]]:
    """The kernels of a turn, by stage. Models and the call itself within `as_on_a_gpu`."""
    decoder = Decoder(target, draft, **settings)
    decoder.state = State.new(decoder.models, decoder.tree, 1, ROOM)
    steps, _ = clocks.stage_steps(decoder, lambda: TEXT)
    found = {}
    for name, step in steps.items():
        with Kernels() as counted:
            step()
        found[name] = counted.launched
    return found


# --- models ---------------------------------------------------------------------------------------


def sizes(pair: str) -> tuple[TransformerConfig, TransformerConfig] | None:
    """Of target and draft; None for a pair whose sizes are not known here."""
    if pair == "bundled":
        entry = read_config(folder := pairs.PAIRS["bundled"], ["target", "draft"])
        return tuple(read_architecture(folder, entry[role]) for role in ("target", "draft"))
    if pair == "smollm2-distilled":
        return SMOLLM2, read_architecture(SHIPPED, read_config(SHIPPED, ["draft"])["draft"])
    return {
        "smollm2": (SMOLLM2, replace(SMOLLM2, layers=24)),
        "smollm2-drop3": (SMOLLM2, replace(SMOLLM2, layers=27)),
        "smollm2-trigram": (SMOLLM2, SMOLLM2),
        "SmolLM2-1.7B + 135M": (SMOLLM2_LARGE, SMOLLM2),
        "Qwen2.5-7B + 0.5B": (QWEN_LARGE, QWEN),
    }.get(pair)


def fake_models(pair: str) -> list[Transformer]:
    """Of those sizes, in 16 bits, within `as_on_a_gpu`."""
    large, small = sizes(pair)
    make = {"smollm2-distilled": narrow}.get(pair, Transformer)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # a fake model cannot be converted
    try:
        return [m.eval().requires_grad_(False) for m in (Transformer(large), make(small))]
    finally:
        torch.set_default_dtype(before)


def narrow(config: TransformerConfig) -> NarrowDraft:
    return NarrowDraft(config, SMOLLM2.width, read_config(SHIPPED, ["draft"])["draft"]["proposed"])


def step_bytes(pair: str, dtype: torch.dtype, rows: int, slots: int) -> int | None:
    """What an autoregressive step must read: the target's weights once, and the cache of every row."""
    found = sizes(pair)
    if found is None:
        return None
    with torch.device("meta"):
        target = Transformer(found[0]).to(dtype)
        cache = target.new_cache(rows, slots).entries
    return sum(weight.nbytes for weight in target.parameters()) + cache.nbytes


# --- the prediction -------------------------------------------------------------------------------


def predict(pair: str) -> Record:
    """Kernels, bytes and milliseconds of the turn of each of CELLS, by stage, and the speed."""
    with as_on_a_gpu():
        target, draft = fake_models(pair)
        weights = sum(w.nbytes for model in (target, draft) for w in model.parameters())
        devices = {name: d for name, d in DEVICES.items() if weights < d["memory"]}
        step = staged(trace(target, None, num_drafts=0), devices)
        cells = []
        for rule, k, length in CELLS:
            settings = {"verifier": rule, "num_drafts": k, "draft_length": length}
            turn = staged(trace(target, draft, **settings), devices)
            tokens = speeds.Speeds().tokens(pair, k, length, rule)
            cost = {name: turn["turn"][name] / step["turn"][name] for name in devices}
            cells.append(
                {
                    **settings,
                    **turn,
                    "cost": cost,
                    "block_efficiency": tokens and tokens.value,
                    "speed": tokens and {name: tokens.value / cost[name] for name in devices},
                }
            )
    large, small = sizes(pair)
    return {"pair": pair, "target": asdict(large), "draft": asdict(small), "step": step,
            "cells": cells}  # fmt: skip


def staged(found: dict[str, list[Kernel]], devices: dict[str, Record]) -> Record:
    stages = {
        name: {
            "kernels": len(launched),
            "bytes": sum(kernel.bytes for kernel in launched),
            "milliseconds": {
                device: 1e3 * sum(kernel.seconds(constants) for kernel in launched)
                for device, constants in devices.items()
            },
        }
        for name, launched in found.items()
    }
    turn = {d: sum(stage["milliseconds"][d] for stage in stages.values()) for d in devices}
    return {"stages": stages, "turn": turn}


def write(root: Path, sources: Any) -> None:
    """The file in the package of a checkout, and a table of it."""
    where = environment(root, sources, ("torch",))
    found = {
        "command": "python -m spectr_lite reproduce predict",
        "is": "a prediction, not a measurement",
        "made": now(),
        **{name: where[name] for name in ("commit", "dirty", "versions")},
        "devices": DEVICES,
        "text": TEXT,
        "pairs": [predict(pair) for pair in PAIRS],
    }
    write_json(root / "spectr_lite" / "results" / "prediction.json", rounded(found))
    show(found, recorded.summary("benchmark-decoding")["runs"])


def show(found: Record, runs: list[Record]) -> None:
    """Every cell, and beside it, where a GPU has timed it, the measured time over the predicted."""
    print(f"{found['is']}; made {found['made']} at {found['commit']}")
    for pair in found["pairs"]:
        for device, step in pair["step"]["turn"].items():
            print(f"\n{pair['pair']}, {device}: a step {step:.2f} ms")
            measured = measured_turns(pair["pair"], device, runs)
            for cell in pair["cells"]:
                where = "{verifier:14} {num_drafts} x {draft_length}".format(**cell)
                kernels = sum(stage["kernels"] for stage in cell["stages"].values())
                turn, speed = cell["turn"][device], cell["speed"]
                line = (
                    f"{where}  {kernels:5} kernels {turn:7.2f} ms {cell['cost'][device]:6.2f} steps"
                )
                line += f"  {speed[device]:.2f} times as fast" if speed else ""
                if seconds := measured.get(tuple(cell[n] for n in CELL)):
                    line += f"  measured / predicted {1e3 * seconds / turn:.2f}"
                print(line)


CELL = ("verifier", "num_drafts", "draft_length")


def measured_turns(pair: str, device: str, runs: list[Record]) -> dict[tuple, float]:
    """Seconds of a turn of one text, by cell, in the decoding benchmark's runs on such a device."""
    return {
        tuple(row[name] for name in CELL): row["block_efficiency"] / row["tokens_per_second"]["median"]
        for run in runs
        if run["pair"] == pair and device in run["environment"]["device"].split()
        for row in run["methods"]
        if row["rows"] == 1
    }  # fmt: skip
