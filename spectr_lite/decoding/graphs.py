"""Record one turn on a GPU as a CUDA graph, then replay it. Explained in chapter 8.

A kernel of a small model runs for microseconds, and Python takes longer to launch it. A graph launches
a thousand kernels at once. In return every address, and every number that came from the host, is
frozen: a recorded step must write into tensors that stay in place, read no value on the host, and
branch on none.

On a CPU, where synchronising costs nothing, a step is simply called. The tests run the same steps
through a recorder that replays as a graph would (tests/test_graphs.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spectr_lite.verifiers import paths

SYNCHRONIZED = "called a synchronizing CUDA operation"  # torch's warning in sync debug mode
NOTICE = "Synchronization debug mode is a prototype feature"  # torch's, of that mode itself


class Captured:
    """Calls a step when its key is new, records it at the key's second use, replays it from then on.

    The first call also warms up what libraries set up lazily, and torch reports in it where the step
    synchronises with the host. A step that does, or that cannot be recorded, is only called from then
    on: slower, with the same result and one warning. `disabled`=True says so from the start, without
    a warning. So does a device of `paths.SYNC_IS_FREE`, where there is nothing to gain.

    `generator` gives the steps their random numbers, and a replay continues its stream.
    """

    def __init__(self, generator: torch.Generator, disabled: bool = False) -> None:
        self.generator = generator
        self.disabled = disabled or generator.device.type in paths.SYNC_IS_FREE
        self.forget()

    def forget(self) -> None:
        """Drop what was recorded, because its tensors are gone."""
        self.seen: set[int] = set()
        self.replays: dict[int, tuple[Callable[[], Any], Tensor]] = {}
        self.pool: Any = None  # one memory pool for all graphs: only one of them runs at a time

    def __call__(self, key: int, step: Callable[[], Tensor]) -> Tensor:
        """What `step` returns. The next replay overwrites it."""
        if self.disabled:
            return step()
        if key not in self.seen:
            self.seen.add(key)
            result, complaint = first_run(step, self.generator.device)
            if complaint is not None:
                self._disable(complaint)
            return result
        if key not in self.replays:
            try:
                self.replays[key], self.pool = capture(step, self.generator, self.pool)
            except RuntimeError as error:
                self._disable(str(error).splitlines()[0])
                return step()
        replay, result = self.replays[key]
        replay()
        return result

    def _disable(self, complaint: str) -> None:
        self.disabled = True
        warnings.warn(f"decoding without CUDA graphs, which is slower: {complaint}", stacklevel=3)


def first_run(step: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, str | None]:
    """The step's result, and where it synchronised with the host, if it did.

    It runs on a side stream, as a capture will.
    """
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
    place = None
    for found in caught:
        if SYNCHRONIZED in str(found.message):
            place = place or f"{found.filename}:{found.lineno} waits for the device"
        elif not str(found.message).startswith(NOTICE):
            warnings.warn_explicit(found.message, found.category, found.filename, found.lineno)
    return result, place


def capture(
    step: Callable[[], Tensor], generator: torch.Generator, pool: Any
) -> tuple[tuple[Callable[[], Any], Tensor], Any]:
    """Record a step without running it: (replay, its result), and the memory pool it lives in.

    Raises RuntimeError when it cannot be recorded. Then the current stream and the generators are put
    back: after a broken capture the device's default generator would refuse to draw.
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
