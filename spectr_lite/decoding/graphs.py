"""A step of fixed shapes, recorded once on a GPU and replayed: one launch for a thousand kernels.

A small model's kernel runs for microseconds, and Python takes longer to ask for it. A CUDA graph asks
once. The price: every address and every number the host gave is frozen, so a step must write into
tensors that stay where they are, may not look at a value, and may not decide anything.

On a CPU a step is simply called. The tests run the same steps through a recorder that replays as a
graph would (tests/test_graphs.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DEVICES = {"cuda"}  # where steps are recorded
LOOK = "called a synchronizing CUDA operation"  # what torch says of a step that waits for a value


class Captured:
    """Runs a step as it is at its key's first call, records it at the second, then replays it.

    The first call is a step like any other and warms up what libraries set up lazily. While it runs
    torch reports every wait for the device. Where a step waits, or cannot be recorded, steps are run
    as they are ever after, with one warning: slower, and the same result; `disabled` says so from the
    start, without one. `generator` gives the steps their random numbers; a replay goes on where the
    last one stopped.
    """

    def __init__(self, generator: torch.Generator, disabled: bool = False) -> None:
        self.generator = generator
        self.disabled = disabled or generator.device.type not in DEVICES
        self.forget()

    def forget(self) -> None:
        """Drop what was recorded, because its tensors are gone."""
        self.seen: set[int] = set()
        self.replays: dict[int, tuple[Callable[[], Any], Tensor]] = {}
        self.pool: Any = None  # memory that the graphs share, for one runs at a time

    def __call__(self, key: int, step: Callable[[], Tensor]) -> Tensor:
        """What the step returns; a replay overwrites what the one before it returned."""
        if self.disabled:
            return step()
        if key not in self.seen:
            self.seen.add(key)
            result, complaint = watched(step, self.generator.device)
            self._refuse(complaint)
            return result
        if key not in self.replays:
            try:
                self.replays[key], self.pool = capture(step, self.generator, self.pool)
            except RuntimeError as error:
                self._refuse(str(error).splitlines()[0])
                return step()
        replay, result = self.replays[key]
        replay()
        return result

    def _refuse(self, complaint: str | None) -> None:
        if complaint is not None:
            self.disabled = True
            warnings.warn(
                f"decoding without CUDA graphs, which is slower: {complaint}", stacklevel=2
            )


def watched(step: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, str | None]:
    """The step's result, run on a side stream as a capture will be; and why it cannot be captured."""
    stream, mode = torch.cuda.Stream(device), torch.cuda.get_sync_debug_mode()
    stream.wait_stream(torch.cuda.current_stream(device))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with torch.cuda.stream(stream):
                result = step()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    torch.cuda.current_stream(device).wait_stream(stream)
    looks = [seen for seen in caught if LOOK in str(seen.message)]
    for seen in caught:
        if seen not in looks:
            warnings.warn_explicit(seen.message, seen.category, seen.filename, seen.lineno)
    place = f"{looks[0].filename}:{looks[0].lineno} waits for the device" if looks else None
    return result, place


def capture(
    step: Callable[[], Tensor], generator: torch.Generator, pool: Any
) -> tuple[tuple[Callable[[], Any], Tensor], Any]:
    """Record a step without running it: (replay, its result), and the memory pool it lives in.

    Raises RuntimeError when it cannot be recorded, and leaves stream and generators as they were: a
    capture that broke off would keep the device's own generator from ever drawing again.
    """
    device = generator.device
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    index = torch.cuda.current_device() if device.index is None else device.index
    generators = [generator, torch.cuda.default_generators[index]]
    copies = [each.clone_state() for each in generators]
    stream = torch.cuda.current_stream(device)
    try:
        with torch.cuda.graph(graph, pool=pool):
            result = step()
    except RuntimeError:
        torch.cuda.set_stream(stream)
        for each, copy in zip(generators, copies, strict=True):
            each.graphsafe_set_state(copy)
        raise
    return (graph.replay, result), graph.pool()
