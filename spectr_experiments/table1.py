"""Table 1: block efficiency and speed of autoregressive, speculative and SpecTr decoding, and beyond.

Block efficiency, tokens emitted per call of the large model, comes from batches of prompts. The batch
is the unit of work: its random numbers depend on the seed and its number alone, so that it is the same
whoever computes it and whenever. All cells of a batch and seed make a round, and a run that is out of
time ends with a whole round: all cells then stand on the same prompts and seeds.

Wall-clock is measured one prompt at a time, after one decode of every cell as warm-up. In each round
all cells take turns on the same prompt, in an order that rotates. The first turn of each, which also
reads the prompt, is left out (clocks.run_turns). Speed is relative to autoregressive decoding in the
same round; what is shown is the median over rounds, with quartiles.

Ways of drafting are compared by exact acceptance at one step: the optimum under each distribution,
at places of a text that the large model wrote.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from spectr_experiments import clocks
from spectr_experiments.records import (
    Phase,
    Plan,
    Record,
    Run,
    grouped,
    in_time,
    place,
    progress,
    weights_sha256,
)
from spectr_experiments.speeds import Estimate
from spectr_lite import transport, verifiers
from spectr_lite.book.recorded import paper
from spectr_lite.commands import pairs
from spectr_lite.commands.arguments import whole
from spectr_lite.decoding import decode
from spectr_lite.decoding.sampling import Sampling
from spectr_lite.decoding.state import Tree, estimate, free_bytes
from spectr_lite.distributions import IID, Drafting, TopM, WithoutReplacement
from spectr_lite.models import ModelPair
from spectr_lite.models import prompts as texts
from spectr_lite.stats import mean_interval, ratio_interval

RULES = ("kseq", "recursive", "optimal", "optimal-block", "traversal")
SEEDS = (0, 1, 2)
PROMPT_LENGTH = 32
NEW_TOKENS = 32
TIMED_TOKENS = 64
LARGE = 50_000_000  # parameters of a target that a CPU decodes slowly
FOLDER = "table1"
SUBSET_MINUTES = 20
PHASES = {"block-efficiency": "records", "timing": "timing", "draft-laws": "draft-laws"}
WHOLE = {"draft-laws"}  # phases of the whole setting, not of single cells
SHARES = {"block-efficiency": 0.65, "timing": 0.2, "draft-laws": 0.15}  # of the time, if limited

CELL = {"cell": str, "verifier": str, "num_drafts": int, "draft_length": int, "temperature": float}
FIELDS = list(CELL)[1:]
COUNTS = {"prompt": int, "calls": int, "emitted": int}
SCHEMA = {
    "records": {**CELL, "seed": int, **COUNTS},
    "timing": {**CELL, "round": int, **COUNTS, "seconds": float},
    "draft-laws": {"law": str, "rule": str, "k": int, "temperature": float, "prompt": int,
                   "places": int, "acceptance": float},
}  # fmt: skip
KEYS = {
    "records": ("cell", "seed", "prompt"),
    "timing": ("cell", "round"),
    "draft-laws": ("law", "rule", "k", "temperature", "prompt"),
}


@dataclass(frozen=True)
class Cell:
    verifier: str
    num_drafts: int
    draft_length: int
    temperature: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.verifier} K={self.num_drafts} L={self.draft_length} T={self.temperature}"

    def __str__(self) -> str:
        return self.name

    @property
    def argument(self) -> str:
        """As --cell takes it."""
        return f"{self.verifier}:{self.num_drafts}:{self.draft_length}:{self.temperature}"

    @classmethod
    def parse(cls, text: str) -> Cell:
        """ "RULE:K:L" or "RULE:K:L:TEMPERATURE"."""
        rule, *numbers = text.split(":")
        try:
            drafts, length, *rest = numbers
            (temperature,) = rest or ["1.0"]
            cell = cls(rule, int(drafts), int(length), float(temperature) + 0.0)  # no -0.0
        except ValueError as error:
            raise ValueError(
                f"--cell: found {text!r}. Give RULE:K:L or RULE:K:L:TEMPERATURE, such as kseq:8:4"
            ) from error
        try:
            Sampling(cell.temperature)
            if rule == "autoregressive":
                if cell.num_drafts or cell.draft_length:
                    raise ValueError("Give autoregressive:0:0, which drafts nothing")
                return cell
            made = verifiers.get(rule)
            if min(cell.num_drafts, cell.draft_length) < 1:
                raise ValueError("Give a K and an L of at least 1")
            made.check_drafts(cell.num_drafts)
            if IID not in made.valid_for:
                raise ValueError("Give a rule for i.i.d. drafts")
        except ValueError as error:
            raise ValueError(f"--cell: found {text!r}. {error}") from error
        return cell

    def record(self) -> Record:
        return {"cell": self.name, **asdict(self)}

    def settings(self) -> dict[str, Any]:
        """For decode. Without drafts no rule is asked."""
        alone = self.num_drafts == 0
        return {
            "verifier": "kseq" if alone else self.verifier,
            "num_drafts": self.num_drafts,
            "draft_length": self.draft_length,
            "temperature": self.temperature,
        }


def autoregressive(temperature: float = 1.0) -> Cell:
    return Cell("autoregressive", 0, 0, temperature)


def grid(
    drafts: Sequence[int], lengths: Sequence[int], temperatures: Sequence[float] = (1.0,)
) -> list[Cell]:
    """With one draft the rules are two: token by token, and block verification."""
    return [
        Cell(rule, k, length, temperature)
        for temperature in temperatures
        for length in lengths
        for k in drafts
        for rule in (RULES if k > 1 else ("kseq", "block"))
    ]


def setting(name: str, large: bool) -> tuple[list[Cell], int, int, int]:
    """Cells, prompts, rounds of timing, and prompts for the ways of drafting."""
    if name == "full":
        cells = grid((1, 2, 4, 8, 16), (2, 4, 8)) + grid((1, 8), (4, 8), (0.6, 0.8))
        return cells, 1000, 40, 64
    if large:
        return grid((1, 8), (4,)), 24, 6, 8
    return grid((1, 2, 4, 8, 16), (4, 8)) + grid((1, 8), (4,), (0.6, 0.8)), 160, 12, 32


def is_timed(cell: Cell) -> bool:
    """The paper's own cells, and the other rules at eight drafts."""
    return cell.draft_length > 2 and (
        cell.num_drafts == 8 or (cell.verifier == "kseq" and cell.num_drafts == 1)
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pairs.add_arguments(parser, nargs="+")
    parser.add_argument("--subset", action="store_true", help="fewer cells and prompts, for a CPU")
    parser.add_argument(
        "--cell", action="append", default=[], metavar="RULE:K:L[:T]",
        help="this cell instead of the setting's; may be repeated, such as --cell kseq:8:4",
    )  # fmt: skip
    count = whole(1, texts.MOST)
    parser.add_argument(
        "--prompts", type=count, metavar="N", help="instead of the setting's number"
    )
    parser.add_argument("--text", choices=list(texts.TEXTS), default="sotu", help="default: sotu")
    parser.add_argument(
        "--phase", nargs="+", choices=list(PHASES), default=list(PHASES), help="default: all"
    )


def plans(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Iterator[Plan]:
    cells = [*dict.fromkeys(map(Cell.parse, args.cell))]
    asked_pairs = pairs.names(args)
    names = {pairs.folder_name(name): name for name in asked_pairs}  # each ends in a run's name
    if len(names) < len(asked_pairs):
        raise ValueError(f"--pair: found {' '.join(asked_pairs)}. Give pairs with different names")
    asked = [phase for phase in PHASES if phase in args.phase and not (cells and phase in WHOLE)]
    if not asked:
        raise ValueError(f"--phase: found {args.phase[0]}, which has no cells. Leave --cell out")
    measures = dict(zip(PHASES, (block_efficiency, wall_clock, draft_laws), strict=True))
    setting_name = "subset" if args.subset else "full"
    stem = args.run_id or "-".join([device.type, *([c.argument for c in cells] or [setting_name])])
    if len(cells) > 3 and not args.run_id:
        stem = f"{device.type}-{len(cells)}-cells"
    for path in asked_pairs[1:]:
        pairs.load(
            path, "cpu", dtype
        )  # a pair that is not there is refused before the first one's run
    for name, path in names.items():
        pair = pairs.load(path, device, dtype)
        config = make_config(pair, device, setting_name, args.text, cells, args.prompts)
        phases = [
            Phase(
                phase, [PHASES[phase]], partial(measures[phase], config, pair),
                SHARES[phase], shared=phase == "block-efficiency",
            )
            for phase in asked
        ]  # fmt: skip
        minutes = SUBSET_MINUTES if args.subset else None
        yield Plan(f"{name}-{stem.replace(':', '-')}", config, phases, minutes)


def make_config(
    pair: ModelPair,
    device: torch.device,
    name: str,
    text: str,
    chosen: Sequence[Cell],
    count: int | None,
) -> dict[str, Any]:
    """All that decides what a run records. `chosen` cells take the place of the setting's."""
    weight = next(pair.target.parameters())
    large = device.type == "cpu" and sum(p.numel() for p in pair.target.parameters()) > LARGE
    cells, most, rounds, law_prompts = setting(name, large)
    cells = list(chosen) or cells
    most = count or most
    timed = [cell for cell in cells if chosen or is_timed(cell)]
    temperatures = sorted({cell.temperature for cell in cells}, reverse=True)
    alone = map(autoregressive, temperatures)
    held = texts.load(text, pair.tokenizer, count=most, length=PROMPT_LENGTH)
    label = "chosen cells" if chosen else "subset" if name == "subset" else "full setting"
    return {
        "pair": pair.name,
        "label": f"{'CPU' if device.type == 'cpu' else 'GPU'} {label}",
        "device": device.type,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "weights_sha256": {"target": weights_sha256(pair.target), "draft": weights_sha256(pair.draft)},
        "text": held.description,
        "text_name": text,
        "prompts": most,
        "prompt_length": PROMPT_LENGTH,
        "prompts_sha256": held.sha256,
        "seeds": list(SEEDS),
        "new_tokens": NEW_TOKENS,
        "batch": batch_size(pair, cells, device, most),
        "cells": [cell.argument for cell in cells],
        "timing": {
            "cells": [c.argument for c in dict.fromkeys([*alone, *timed])],
            "rounds": min(rounds, most),
            "new_tokens": TIMED_TOKENS,
        },
        "draft_laws": {
            "prompts": 0 if chosen else min(law_prompts, most),
            "places": 2 if large else 8,
            "k": [2, 4, 8],
            "temperatures": temperatures,
        },
    }  # fmt: skip


def batch_size(pair: ModelPair, cells: Sequence[Cell], device: torch.device, count: int) -> int:
    """Prompts side by side: as many as the largest cell leaves room for, by an estimate in bytes.

    A row holds both caches, about ten arrays of K (L + 1) distributions in float32 (drafted, scored,
    and what the rules for paths derive from them), and on a GPU the tables of the optimal plan.
    ValueError for a cell of which not one row fits.
    """
    free, rows = free_bytes(device), []
    for cell in cells:
        tree = Tree(max(cell.num_drafts, 1), cell.draft_length)
        held = estimate([pair.target, pair.draft], tree, 1, PROMPT_LENGTH + NEW_TOKENS)
        if free is not None and sum(held.values()) > free:
            sizes = ", ".join(f"{name}: {size / 2**20:,.0f} MiB" for name, size in held.items())
            raise ValueError(
                f"--cell: {cell.argument} takes {sizes}; free: {free / 2**20:,.0f} MiB. Lower K or L"
            )
        laws = 4 * pair.target.vocab_size * (cell.num_drafts * (cell.draft_length + 1) + 1)
        plans = cell.num_drafts * 8 * 257**2 * 8 if device.type == "cuda" else 0
        rows.append(next(iter(held.values())) + 10 * laws + plans)
    if device.type == "cuda":
        room, most = torch.cuda.get_device_properties(device).total_memory // 2, 125
    else:
        room, most = 2**30, 16
    return max(1, min(most, count, room // max(rows)))


# --- phases ---


def block_efficiency(config: Record, pair: ModelPair, run: Run, seconds: float | None) -> None:
    """Rank r decodes batches r, r + world, ... A batch whose records are all there is skipped."""
    rank, world, _ = ranks()
    held = _prompts(config, pair).tokens
    cells = [Cell.parse(text) for text in config["cells"]]
    size = config["batch"]
    starts = range(0, len(held), size)[rank::world]
    done = run.done("records")
    weights = [8 + cell.num_drafts * cell.draft_length for cell in cells]
    total = len(starts) * len(config["seeds"]) * sum(weights)
    rounds = [*itertools.product(starts, config["seeds"])]
    with progress(total, "block efficiency", seconds) as bar:
        for start, seed in in_time(rounds, seconds, bar=bar):
            rows = range(start, min(start + size, len(held)))
            for cell, weight in zip(cells, weights, strict=True):
                bar.set_postfix_str(cell.name, refresh=False)
                if any((cell.name, seed, row) not in done for row in rows):
                    made = _decode_batch(pair, cell, held, rows, seed, config["new_tokens"])
                    fresh = [r for r in made if (r["cell"], r["seed"], r["prompt"]) not in done]
                    run.append("records", rank, fresh)
                bar.update(weight)


def _decode_batch(
    pair: ModelPair, cell: Cell, held: list[list[int]], rows: range, seed: int, new_tokens: int
) -> list[Record]:
    """The generator is that of the seed and the batch, the same for all cells: their drafts begin
    alike, which narrows the interval of a difference."""
    calls = emitted = 0
    for turn in decode(
        pair.target,
        pair.draft,
        held[rows.start : rows.stop],
        max_new_tokens=new_tokens,
        generator=seed * 1_000_000 + rows.start,
        **cell.settings(),
    ):
        calls = calls + turn.active.long()
        emitted = emitted + (turn.accepted + 1) * turn.active
    return [
        {**cell.record(), "seed": seed, "prompt": row, "calls": int(c), "emitted": int(e)}
        for row, c, e in zip(rows, calls, emitted, strict=True)
    ]


def wall_clock(config: Record, pair: ModelPair, run: Run, seconds: float | None) -> None:
    """One prompt at a time, all cells in turn."""
    held = _prompts(config, pair).tokens
    asked = config["timing"]

    def turn(cell: Cell, number: int) -> Record:
        settings = {"generator": number, "new_tokens": asked["new_tokens"], **cell.settings()}
        turns = clocks.run_turns(pair.target, pair.draft, [held[number]], **settings)
        counts = {"prompt": number, "calls": turns.count, "emitted": turns.emitted}
        return {**counts, "seconds": turns.seconds}

    cells = [Cell.parse(text) for text in asked["cells"]]
    jobs = [(cell.record(), partial(turn, cell)) for cell in cells]
    run.rounds("timing", jobs, asked["rounds"], seconds)


def draft_laws(config: Record, pair: ModelPair, run: Run, seconds: float | None) -> None:
    """Exact one-step acceptance under each way of drafting, averaged over places of a sampled text."""
    asked = config["draft_laws"]
    held = _prompts(config, pair).tokens[: asked["prompts"]]

    def records_of(number: int) -> list[Record]:
        return [
            {"law": name, "rule": rule, "k": k, "temperature": temperature, "prompt": number,
             "places": asked["places"]}
            for temperature in asked["temperatures"] for k in asked["k"]
            for name, rule, _ in laws_of(k)
        ]  # fmt: skip

    def make(number: int) -> list[Record]:
        values = []
        for temperature in asked["temperatures"]:
            places = _places(pair, held[number], temperature, number, asked["places"])
            values += [v for k in asked["k"] for v in _acceptances(*places, k)]
        wanted = records_of(number)
        return [{**r, "acceptance": v} for r, v in zip(wanted, values, strict=True)]

    run.fill("draft-laws", range(len(held)), records_of, make, seconds)


def laws_of(k: int) -> list[tuple[str, str, Drafting]]:
    """Name, rule and distribution. top-m: m certain tokens, the others i.i.d.; m = k drafts nothing
    at random.
    """
    laws = [("iid", "kseq", IID()), ("iid", "optimum", IID())]
    laws += [("without-replacement", "optimum", WithoutReplacement())]
    return laws + [(f"top-{m}", "optimum", TopM(m)) for m in sorted({1, k // 2, k - 1, k})]


def _acceptances(draft: torch.Tensor, target: torch.Tensor, k: int) -> Iterator[float]:
    for _, rule, law in laws_of(k):
        if rule == "kseq":
            values = verifiers.get("kseq").acceptance(draft, target, k)
        else:
            values = transport.optimal_acceptance(draft, target, k, drafting=law)
        yield float(values.mean())


@torch.no_grad()
def _places(
    pair: ModelPair, tokens: list[int], temperature: float, number: int, places: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (places, V) of draft and target, float64, on the CPU, along two tokens per place
    that the target wrote."""
    text = list(tokens)
    cell = autoregressive(temperature).settings()
    new = 2 * places
    for turn in decode(pair.target, None, [tokens], max_new_tokens=new, generator=number, **cell):
        text += turn.tokens()
    ids = torch.tensor([text[:-1]], device=pair.target.device)
    draft, target = (
        (model(ids)[0, -new::2].cpu().double() / temperature).softmax(-1)
        for model in (pair.draft, pair.target)
    )
    return draft, target


def _prompts(config: Record, pair: ModelPair) -> texts.Prompts:
    count, length = config["prompts"], config["prompt_length"]
    return texts.load(config["text_name"], pair.tokenizer, count=count, length=length)


def ranks() -> tuple[int, int, int]:
    """Rank, number of ranks and local rank, as torchrun sets them; 0, 1, 0 without it."""
    return tuple(
        int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )


# --- summary ---


def summarise(run: Run, config: Record, sessions: list[Record]) -> Record:
    """One run of spectr_lite/results/table1.json."""
    records, timed = run.read("records"), run.read("timing")
    by_cell = {Cell(*key): lines for key, lines in grouped(records, FIELDS).items()}
    timings = _timings(timed)
    cells = [Cell.parse(text) for text in config["timing"]["cells"] if text.startswith("auto")]
    chosen = map(Cell.parse, config["cells"])
    cells += [c for c in chosen if c.num_drafts and (c in by_cell or c in timings)]
    influences: dict[Cell, dict[int, float]] = {}
    turns = _turns(timed)
    rows = []
    for cell in cells:
        row: Record = asdict(cell)
        row |= _efficiency(by_cell.get(cell, []), influences.setdefault(cell, {}))
        if cell.num_drafts == 0:
            row |= {"block_efficiency": 1.0, "interval": [1.0, 1.0]}  # one token per call
        other = influences.get(Cell("kseq", *list(asdict(cell).values())[1:]), {})
        row["gain"] = None
        if cell.verifier != "kseq" and influences[cell] and influences[cell].keys() == other.keys():
            gain = mean_interval([v - other[p] for p, v in influences[cell].items()])
            row["gain"] = {
                "over": "kseq",
                "difference": gain.mean,
                "interval": [gain.low, gain.high],
            }
        row["command"] = (
            f"python -m spectr_lite reproduce table1 {pairs.words(config['pair'])} "
            f"--cell {cell.argument} --prompts 16"
        )
        rows.append(row | timings.get(cell, {"timing": None, "steps": None}))
    by_name = {Cell(*place(row, FIELDS)): row for row in rows}
    for cell, row in by_name.items():
        kseq = Cell("kseq", *list(asdict(cell).values())[1:])
        row["speed_over_kseq"] = None
        if row["gain"] and turns.get(cell, {}).keys() & turns.get(kseq, {}).keys():
            found = _over((row, by_name[kseq]), (influences[cell], influences[kseq]),
                          (turns[cell], turns[kseq]))  # fmt: skip
            row["speed_over_kseq"] = found.record()
    return {
        "run": run.folder.name,
        "pair": config["pair"],
        "device": sessions[-1]["device"],
        "label": config["label"],
        "text": config["text"],
        "new_tokens": config["new_tokens"],
        "seeds": sorted({record["seed"] for record in records}),
        "prompts": len({record["prompt"] for record in records}),
        "config": config,
        "environment": sessions,
        "cells": rows,
        "draft_laws": _law_rows(run.read("draft-laws")),
    }


def _efficiency(records: list[Record], influence: dict[int, float]) -> Record:
    """Prompts are the independent units: the seeds of a prompt are summed before anything else."""
    sums: dict[int, np.ndarray] = {}
    for record in records:
        counts = np.array([record["emitted"], record["calls"]])
        sums[record["prompt"]] = sums.get(record["prompt"], 0) + counts
    if not sums:
        return {"n": 0, "continuations": 0, "block_efficiency": None, "interval": None}
    found, values = ratio_interval(*np.stack(list(sums.values())).T)
    influence |= dict(zip(sums, values.tolist(), strict=True))
    return {
        "n": found.n,
        "continuations": len(records),
        "block_efficiency": found.mean,
        "interval": [found.low, found.high],
    }


def _turns(timed: list[Record]) -> dict[Cell, dict[int, float]]:
    """Seconds of a turn, by cell and round."""
    return {
        Cell(*key): {record["round"]: record["seconds"] / record["calls"] for record in lines}
        for key, lines in grouped(timed, FIELDS).items()
    }


def _paired(mine: dict[int, float], other: dict[int, float]) -> Estimate:
    return Estimate.of_rounds([mine[n] / other[n] for n in sorted(mine.keys() & other.keys())])


def _timings(timed: list[Record]) -> dict[Cell, Record]:
    found, turns = {}, _turns(timed)
    for key, lines in grouped(timed, FIELDS).items():
        cell = Cell(*key)
        token = [r["seconds"] / r["emitted"] for r in lines]
        row: Record = {"timing": None, "steps": None}
        row["timing"] = {"n": len(lines), "seconds_per_token": statistics.median(token),
                         "quartiles": clocks.quartiles(token),
                         "seconds_per_call": statistics.median(turns[cell].values())}  # fmt: skip
        base = turns.get(autoregressive(cell.temperature), {})
        if turns[cell].keys() & base.keys():
            row["steps"] = _paired(turns[cell], base).record()
        found[cell] = row
    return found


def _over(
    rows: Sequence[Record], values: Sequence[dict[int, float]], turns: Sequence[dict[int, float]]
) -> Estimate:
    """The first cell's speed over the second's: tokens paired by prompt, cost by round."""
    level, base = (row["block_efficiency"] for row in rows)
    mine, other = values
    logs = mean_interval([v / level - other[p] / base for p, v in mine.items()])
    tokens = Estimate.of_interval(1.0, [1 + logs.low, 1 + logs.high], logs.n)
    return replace(tokens, value=level / base).over(_paired(*turns))


def _law_rows(records: list[Record]) -> list[Record]:
    """Acceptance at one place, and its step over two other ways, paired by prompt: "over" K-SEQ with
    i.i.d. drafts ("kseq") and the optimum with them ("optimum")."""
    fields, rows = ("law", "rule", "k", "temperature"), []
    by_key = {
        key: {record["prompt"]: record["acceptance"] for record in lines}
        for key, lines in grouped(records, fields).items()
    }
    for key, mine in by_key.items():
        mean, over = mean_interval(list(mine.values())), {}
        for rule in ("kseq", "optimum"):
            base = by_key.get(("iid", rule, *key[2:]), {})
            if base is not mine and (shared := mine.keys() & base.keys()):
                step = mean_interval([mine[p] - base[p] for p in sorted(shared)])
                over[rule] = {"difference": step.mean, "interval": [step.low, step.high]}
        found = {"n": mean.n, "acceptance": mean.mean, "interval": [mean.low, mean.high]}
        rows.append(dict(zip(fields, key, strict=True)) | found | {"over": over})
    return rows


def summary(found: list[Record]) -> Record:
    return {"command": "python -m spectr_lite reproduce table1", "runs": found}


def show(found: Record) -> None:
    """The run's rows, with the paper's number where it has one."""
    theirs = {(r["num_drafts"], r["draft_length"]): r for r in paper()["table1"]}
    print(f"{found['run']}: {found['label']}, {found['prompts']} prompts, {found['device']}")
    print("  block efficiency [95%]      speed   cell                          paper's table 1")
    for row in found["cells"]:
        low, high = row["interval"] or (float("nan"),) * 2
        ours = f"{row['block_efficiency'] or float('nan'):8.3f} [{low:.3f}, {high:.3f}]"
        known = row["steps"] and row["block_efficiency"]
        speed = f"{known / row['steps']['value']:5.2f}x" if known else "     -"
        same = row["verifier"] in ("kseq", "autoregressive") and row["temperature"] == 1
        paper_row = theirs.get((row["num_drafts"], row["draft_length"])) if same else None
        beside = (
            f"{paper_row['block_efficiency']['value']}, {paper_row['speed']['value']}x"
            if paper_row
            else ""
        )
        print(f"{ours:<28} {speed}   {Cell(*place(row, FIELDS)).name:<28}  {beside}".rstrip())
