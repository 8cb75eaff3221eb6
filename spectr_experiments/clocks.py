"""How long the loop's turns take, stage by stage.

The first turn, which also reads the prompt, is left out everywhere. On a GPU every timed turn is a
replay: decoders are kept, and what a run will replay is recorded before its clock starts.
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
def kept_decoder(target: Any, draft: Any, rows: int, **settings: Any) -> Decoder:
    """One for each number of rows: another number would drop the buffers, and all graphs with them."""
    return Decoder(target, draft, **settings)


def ready_decoder(
    target: Any, draft: Any, rows: Sequence[Sequence[int]], new_tokens: int, **settings: Any
) -> Decoder:
    """A decoder that has recorded, on a GPU, the turn at every span these texts can come to.

    Its graphs call a step at the first use of a span and record it at the second, so each span that
    lacks a recording decodes a text of such a length, twice.
    """
    decoder = kept_decoder(target, draft, len(rows), **settings)
    if decoder.graphs.disabled:
        return decoder
    longest = max(map(len, rows))
    next(decoder.decode(rows, max_new_tokens=new_tokens))  # makes the buffers
    spans = {decoder.state.span(longest + n): longest + n for n in range(new_tokens)}
    for span, length in spans.items():
        texts = [(list(row) * length)[:length] for row in rows]
        for _ in range(2):
            if not decoder.graphs.disabled and span not in decoder.graphs.replays:
                left = longest + new_tokens - length
                next(decoder.decode(texts, max_new_tokens=left, generator=0))
    return decoder


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
    decoder = ready_decoder(target, draft, rows, new_tokens, **settings)
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


def stage_steps(
    decoder: Decoder, longest: Callable[[], int]
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, Any]]:
    """The stages of `decoder`'s turn as they run on the device, each a step of its own, and what they
    hand on to each other. `longest()`: the tokens of the longest text, or more."""
    rule, sampling, random = decoder.rule, decoder.sampling, decoder.random
    held: dict[str, Any] = {}

    def draft() -> Tensor:
        state = decoder.state
        places = held["places"] = state.places(state.span(longest()))
        held["drafted"], held["laws"] = state.tokens[:, None, :0], []
        if decoder.num_drafts:
            held["drafted"], held["laws"] = loop.draft_paths(
                decoder.models[1], state, places, decoder.draft_sampling, random
            )
        return held["drafted"]

    def score() -> Tensor:
        held["logits"] = loop.score_paths(
            decoder.models[0], decoder.state, held["places"], held["drafted"]
        )
        return held["logits"]

    def verify() -> Tensor:
        held["block"] = decoder.select(
            rule, held["drafted"], held["laws"], held["logits"], sampling, random
        )
        return held["block"][0]

    def commit() -> Tensor:
        block, accepted, path = held["block"]
        kept = loop.commit(decoder.state, block, path)
        held["report"] = torch.stack([accepted, kept], 1)
        return held["report"]

    return dict(zip(STAGES, (draft, score, verify, commit), strict=False)), held


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

    The stages are those of `Decoder`, called one by one here. On a GPU each replays a graph of its
    own, recorded once it has run, at the span of the whole texts. The sum is a little more than an
    undisturbed turn, and the clock inside a captured stage would see nothing: there the models' calls
    are not told apart.
    """
    device = torch.device(target.device)
    decoder = ready_decoder(target, draft, rows, new_tokens, **settings)
    most = max(map(len, rows)) + new_tokens
    longest, captured = most, not decoder.graphs.disabled
    steps, held = stage_steps(decoder, lambda: longest)
    watched = {"target": target} | ({"draft": draft} if decoder.num_drafts else {})
    if captured:
        watched = {}
        for name, step in steps.items():
            steps[name] = functools.partial(graphs.Captured(decoder.random), most, step)
        for _ in range(2):  # each runs, then is recorded
            for step in steps.values():
                step()
    steps["copy"] = lambda: held.update(host=held["report"].cpu())
    stream = decoder.decode(rows, max_new_tokens=new_tokens, generator=generator)
    first, seconds = next(stream), dict[str, float]()
    if not captured:
        longest = max(map(len, rows)) + int(first.kept.max())

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
            longest += 0 if captured else int(kept.max())
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
