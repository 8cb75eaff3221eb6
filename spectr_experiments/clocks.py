"""How long the loop's turns take, stage by stage.

The first turn, which also reads the prompt, is left out everywhere. Decoders are kept, so that on a GPU
a second run with the same settings replays what the first one recorded: warm up with one.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectr_lite.decoding import Decoder, graphs, loop

STAGES = ("draft", "score", "verify", "commit", "copy")


def wait(device: torch.device) -> float:
    """The time, once the device has done all it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """How long one call takes, until the device has done all of it."""
    start = wait(device)
    call()
    return wait(device) - start


@torch.no_grad()
def call(model: Any, tokens: int, slots: int) -> Callable[[], float]:
    """A clock for one call of a model on so many tokens, beside a cache of so many slots: on a GPU
    recorded in a graph of its own, and replayed."""
    where = {"dtype": torch.int64, "device": model.device}
    ids, slot = torch.zeros(1, tokens, **where), torch.arange(tokens, **where)[None]
    mask = torch.ones(1, tokens, slots, dtype=torch.bool, device=model.device)
    run = torch.no_grad()(
        functools.partial(model, ids, slot, model.new_cache(1, slots), slot, mask)
    )
    if model.device.type == "cuda":
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            run()
        run = graph.replay
    return functools.partial(seconds_of, run, model.device)


def quartiles(values: Sequence[float]) -> list[float]:
    return np.quantile(values, [0.25, 0.75]).tolist()


@dataclass(frozen=True)
class Turns:
    """Turns of the loop, all rows of the batch in each: their number, their time, what they emitted.

    stages: seconds in each of STAGES and, as "draft forward" and "target forward", in the models'
    calls inside them; only from `stage_turns`.
    """

    count: int
    seconds: float
    emitted: int
    trace: list[loop.Turn]
    stages: Mapping[str, float]

    @property
    def per_turn(self) -> float:
        return self.seconds / self.count


@functools.lru_cache(maxsize=128)
def kept_decoder(target: Any, draft: Any, **settings: Any) -> Decoder:
    return Decoder(target, draft, **settings)


def run_turns(
    target: Any,
    draft: Any,
    rows: Sequence[Sequence[int]],
    *,
    new_tokens: int = 64,
    generator: int = 0,
    **settings: Any,
) -> Turns:
    """Decode `rows` and time the turns after the first, until a row nears its end of `new_tokens`.

    `generator` is a seed; `settings` are those of `Decoder`.
    """
    device = torch.device(target.device)
    decoder = kept_decoder(target, draft, **settings)
    stream = decoder.decode(rows, max_new_tokens=new_tokens, generator=generator)
    left = new_tokens - int(next(stream).kept.max())
    trace, start = [], wait(device)
    for turn in stream:
        trace.append(turn)
        left -= int(turn.kept.max())
        if left <= decoder.draft_length:  # the next turn could end a row
            break
    seconds = wait(device) - start
    stream.close()
    emitted = sum(int((turn.accepted + 1).sum()) for turn in trace)
    return Turns(len(trace), seconds, emitted, trace, {})


@torch.no_grad()
def stage_turns(
    target: Any,
    draft: Any,
    rows: Sequence[Sequence[int]],
    *,
    new_tokens: int = 64,
    generator: int = 0,
    **settings: Any,
) -> Turns:
    """`run_turns` with a clock around every stage, which waits for the device at both of its ends.

    The stages are those of `Decoder`, called one by one here; on a GPU each replays a graph of its
    own. The sum is a little more than an undisturbed turn, and the clock inside a captured stage
    would see nothing: there the models' calls are not told apart.
    """
    device = torch.device(target.device)
    decoder = kept_decoder(target, draft, **settings)
    stream = decoder.decode(rows, max_new_tokens=new_tokens, generator=generator)
    first = next(stream)
    state, held, seconds = decoder.state, {}, {}
    longest = max(map(len, rows)) + (new_tokens if device.type == "cuda" else int(first.kept.max()))

    def draft_stage() -> Tensor:
        places = held["places"] = state.places(state.span(longest))
        held["drafted"], held["laws"] = state.tokens[:, None, :0], []
        if decoder.num_drafts:
            held["drafted"], held["laws"] = loop.draft_paths(
                draft, state, places, decoder.sampling, decoder.random
            )
        return held["drafted"]

    def score_stage() -> Tensor:
        held["logits"] = loop.score_paths(target, state, held["places"], held["drafted"])
        return held["logits"]

    def verify_stage() -> Tensor:
        held["block"] = decoder.select(
            decoder.rule,
            held["drafted"],
            held["laws"],
            held["logits"],
            decoder.sampling,
            decoder.random,
        )
        return held["block"][0]

    def commit_stage() -> Tensor:
        block, accepted, path = held["block"]
        kept = loop.commit(state, block, path)
        held["report"] = torch.stack([accepted, kept], 1)
        return held["report"]

    steps = dict(zip(STAGES, (draft_stage, score_stage, verify_stage, commit_stage), strict=False))
    watched = {"target": target} | ({"draft": draft} if decoder.num_drafts else {})
    if device.type == "cuda":
        watched = {}
        for name, step in steps.items():
            (steps[name], _), _ = graphs.capture(step, decoder.random, None)
    steps["copy"] = lambda: held.update(host=held["report"].cpu())

    count, emitted, left = 0, 0, new_tokens - int(first.kept.max())
    with _timed_calls(watched, seconds):
        begin = wait(device)
        while left > decoder.draft_length:
            for name, step in steps.items():
                start = wait(device)
                step()
                seconds[name] = seconds.get(name, 0.0) + wait(device) - start
            accepted, kept = held["host"].unbind(1)
            count, emitted = count + 1, emitted + int((accepted + 1).sum())
            left -= int(kept.max())
            longest += int(kept.max()) if device.type == "cpu" else 0
        total = wait(device) - begin
    stream.close()
    return Turns(count, total, emitted, [], seconds)


@contextlib.contextmanager
def _timed_calls(
    models: Mapping[str, torch.nn.Module], seconds: dict[str, float]
) -> Iterator[None]:
    """Add up, as "<name> forward", the time of the models' calls on a CPU."""
    begun: dict[str, float] = {}
    with contextlib.ExitStack() as hooks:
        for name, model in models.items():

            def begin(*_: Any, name: str = name) -> None:
                begun[name] = time.perf_counter()

            def end(*_: Any, name: str = name) -> None:
                spent = time.perf_counter() - begun[name]
                seconds[f"{name} forward"] = seconds.get(f"{name} forward", 0.0) + spent

            hooks.callback(model.register_forward_pre_hook(begin).remove)
            hooks.callback(model.register_forward_hook(end).remove)
        yield
