"""Table 1's four cells with drafts on the reader's own machine, in ten minutes. Used by chapter 9.

The pair is the largest of PAIRS whose weights take at most half of the GPU's free memory; the other half
is for caches, logits and graphs. Without a GPU or a network it is the pair in the package. What is
measured, and how, is table1.py: block efficiency first, then turns by the clock.

Parameters, in billions, of both models, as on their pages of the Hugging Face hub: SmolLM2 (arXiv
2502.02737) and Qwen2.5 (arXiv 2412.15115). All are stored in 16 bits, and decoded in 16 bits on a GPU.
"""

from __future__ import annotations

import importlib.metadata
import math
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from spectr_experiments import clocks, table1
from spectr_experiments.records import Record, Run
from spectr_experiments.speeds import Estimate, Speeds
from spectr_lite.book import recorded
from spectr_lite.commands import pairs
from spectr_lite.decoding.state import free_bytes
from spectr_lite.models import ModelPair

MINUTES = 10.0
SHARES = {"block efficiency": 0.7, "timing": 0.3}
AT_ONCE = 16  # prompts; fewer need less memory
BYTES, SLOW_LINE = 2, 60e6  # of a parameter; bytes a second
HUB = ("huggingface.co", 443)


@dataclass(frozen=True)
class Choice:
    """What is measured: `name` as `pairs.load` takes it, how many prompts and timed rounds at most,
    and in how many minutes (None: all of them)."""

    name: str
    billions: float = 0.0
    prompts: int = 1000
    rounds: int = 40
    minutes: float | None = MINUTES

    @property
    def weights(self) -> float:
        """Bytes of both models: to download, and on the device."""
        return 1e9 * self.billions * BYTES

    def __str__(self) -> str:
        if not self.billions:
            said = "The pair in the package: nothing to download."
        else:
            wait = math.ceil(self.weights / SLOW_LINE / 60)
            said = (
                f"{self.name}: {self.weights / 1e9:.1f} GB to download, {wait} min at "
                f"{SLOW_LINE / 1e6:.0f} MB/s; nothing if they are here already."
            )
        if self.minutes is None:
            return f"{said} Four cells, {self.prompts} prompts: less than a minute."
        return (
            f"{said} Then four cells, up to {self.prompts:,} prompts, as many as fit {self.minutes:g} "
            "minutes."
        )


PAIRS = (  # the largest first
    Choice("Qwen/Qwen2.5-14B + Qwen/Qwen2.5-0.5B", 14.77 + 0.49),
    Choice("Qwen/Qwen2.5-7B + Qwen/Qwen2.5-0.5B", 7.62 + 0.49),
    Choice("HuggingFaceTB/SmolLM2-1.7B + HuggingFaceTB/SmolLM2-135M", 1.71 + 0.135),
)
BUNDLED = {"cuda": Choice("bundled", prompts=200, rounds=20),
           "cpu": Choice("bundled", prompts=8, rounds=2, minutes=None)}  # fmt: skip


def choose(device: torch.device) -> Choice:
    """The choice for this machine; says why, where no model of the hub can be had."""
    if device.type != "cuda":
        return choose_pair(None, online=False)
    if problem := hub_problem():
        print(problem)
    return choose_pair(free_bytes(device), online=problem is None)


def choose_pair(free: int | None, online: bool) -> Choice:
    """`free`: bytes of the GPU's memory that can be allocated, None without a GPU."""
    fitting = [pair for pair in PAIRS if online and free and pair.weights <= free / 2]
    return next(iter(fitting), BUNDLED["cpu" if free is None else "cuda"])


def hub_problem() -> str | None:
    """Why models of the hub cannot be loaded now, and what to do; None if they can."""
    needed = "Models of the hub need transformers 5: %pip install -U transformers, then restart."
    try:
        if int(importlib.metadata.version("transformers").partition(".")[0]) < 5:
            return needed
        socket.create_connection(HUB, timeout=5).close()
    except importlib.metadata.PackageNotFoundError:
        return needed
    except OSError as error:
        return f"{HUB[0]} cannot be reached ({error}), so no model is downloaded."
    return None


def load(choice: Choice, device: torch.device, dtype: torch.dtype) -> tuple[Choice, ModelPair]:
    """The chosen pair; the one in the package, with a sentence that says why, if the hub does not give
    it or the device has no room for it. Raises what `pairs.load` raises for a model that is not whole.
    """
    try:
        return choice, pairs.load(choice.name, device, dtype)
    except (FileNotFoundError, ImportError, torch.OutOfMemoryError) as error:
        print(f"{choice.name} is not loaded. {error}\nGoing on with the pair in the package.")
    free_what_is_kept(device)
    bundled = BUNDLED[device.type]
    return bundled, pairs.load(bundled.name, device, dtype)


def measure(
    choice: Choice, pair: ModelPair, device: torch.device, at_once: int = AT_ONCE
) -> Record:
    """One run, as table1.summarise gives it, of the paper's four cells and autoregressive decoding.

    A cell for which there is no memory is left out of what is still to be measured, and what to lower is
    printed.
    """
    began = time.monotonic()
    shapes = [(row["num_drafts"], row["draft_length"]) for row in recorded.paper()["table1"]]
    cells = [table1.Cell("kseq", *shape) for shape in sorted(shapes, key=lambda s: s[0] * s[1])]
    del cells[0]  # autoregressive decoding, which is timed anyway
    config = table1.make_config(pair, device, "full", "sotu", cells, choice.prompts)
    config |= {"seeds": [0], "batch": min(config["batch"], at_once)}
    config["timing"]["rounds"] = min(choice.rounds, choice.prompts)
    phases = zip(SHARES, (table1.block_efficiency, table1.wall_clock), strict=True)
    end = 0.0
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), table1.SCHEMA, table1.KEYS)
        for name, phase in phases:
            end += SHARES[name]
            while cells:
                names = [cell.argument for cell in cells]
                alone = config["timing"]["cells"][:1]
                timing = config["timing"] | {"cells": alone + names}
                seconds = None
                if choice.minutes is not None:
                    seconds = max(60 * choice.minutes * end - (time.monotonic() - began), 0.0)
                try:
                    phase(config | {"cells": names, "timing": timing}, pair, run, seconds)
                    break
                except torch.OutOfMemoryError as error:
                    lost = cells.pop()
                    print(
                        f"{name}, {lost.num_drafts} x {lost.draft_length}: {error} Here: at_once="
                        f"{config['batch']}. Going on without this cell."
                    )
                free_what_is_kept(device)
        name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
        return table1.summarise(run, config, [{"device": name}])


def free_what_is_kept(device: torch.device) -> None:
    clocks.kept_decoder.cache_clear()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def beside_paper(run: Record) -> str:
    """A Markdown table: the paper's rows of Table 1, and the run's under them with 95% intervals."""
    rows = [row for row in recorded.paper()["table1"] if row["num_drafts"]]
    shapes = [(row["num_drafts"], row["draft_length"]) for row in rows]
    book, device = Speeds([run], []), recorded.kind(run)
    tokens = [book.tokens(run["pair"], *shape) for shape in shapes]
    speeds = [book.speed(run["pair"], device, *shape) for shape in shapes]
    theirs = {
        name: [str(row[name]["value"]) for row in rows] for name in ("block_efficiency", "speed")
    }
    head = ["", *(f"${drafts} \\times {length}$" for drafts, length in shapes)]
    ours = f"{run['pair']}, {run['device']}"
    return recorded.table(head, [
        ["tokens per call, the paper", *theirs["block_efficiency"]],
        [f"tokens per call, {ours}", *map(_shown, tokens)],
        ["speed, the paper", *theirs["speed"]],
        [f"speed, {ours}", *map(_shown, speeds)],
    ])  # fmt: skip


def _shown(value: Estimate | None) -> str:
    return "–" if value is None else str(value).replace(", ", ",\u00a0")  # not broken in a table
