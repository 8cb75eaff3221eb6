"""What the exact optimum costs: the cut formula, the plans, K-SEQ's rho, and the linear program.

    python -m spectr_lite reproduce transport --run-id NAME

Three parts, one CPU core, float64. Timings: all jobs take turns within a round, so that a slow moment
touches all of them. Memory and linear programs: one process per size, whose peak resident memory is
compared with what it held before. A run is results/benchmark-transport/<run-id>/; the summary of the
newest ships in spectr_lite/results/.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from spectr_experiments import clocks
from spectr_experiments.records import Phase, Plan, Record, Run, grouped
from spectr_lite import distributions, transport
from spectr_lite.distributions import IID, check_pair
from spectr_lite.transport import nested
from spectr_lite.verifiers import kseq, optimal

FOLDER = "benchmark-transport"
CPU_ONLY = True
COMMON = {"kind": str | None, "load": float}  # older records name their kind; the machine's load
SCHEMA = {
    "accuracy": {"job": str, "vocabulary": int, "value": float, "difference": float,
                 "tokens_sorted": int | None, **COMMON},
    "time": {"job": str, "vocabulary": int, "round": int, "seconds": float, **COMMON},
    "memory": {"vocabulary": int, "peak_bytes": int, **COMMON},
    "program": {"formulation": str, "vocabulary": int, "drafts": int, "seconds": float | None,
                "peak_bytes": int | None, "difference": float | None, "variables": int, **COMMON},
}  # fmt: skip
KEYS = {
    "accuracy": ("job", "vocabulary"),
    "time": ("job", "vocabulary", "round"),
    "memory": ("vocabulary",),
    "program": ("formulation", "vocabulary", "drafts"),
}

VOCABULARIES = (32_000, 50_000, 256_000)
CONFIG = {
    "pair": "distributions.zipf(vocabulary, exponent=1.0, mismatch=1.0, seed=0)",
    "dtype": "float64",
    "drafts": 8,
    "warm_up": 2,
    # What each job should stay below, in milliseconds.
    "goal_ms": {"optimum 50000": 15, "optimum 256000": 120, "plan-512 32000": 25, "rho 256000": 120},
    "rounds": 15,
    "memory": [250_000, 1_000_000, 4_000_000],
    # Vocabulary and drafts. A program over the limit is recorded, and larger ones with as many drafts
    # are left out.
    "program_limit_seconds": 60,
    "programs": {
        "literal": [[10, 2], [20, 2], [30, 2], [40, 2], [20, 3], [60, 2], [25, 3], [80, 2],
                    [100, 2], [30, 3]],
        "reduced": [[20, 2], [50, 2], [10, 4], [20, 3], [100, 2], [30, 3], [170, 2], [20, 4], [45, 3],
                    [10, 5], [250, 2], [60, 3], [350, 2], [25, 4], [75, 3], [500, 2], [15, 5]],
    },
}  # fmt: skip

# --- the optimum without a sort ---

MANTISSA_BITS = 7  # cells per octave of target/draft: 2^7 = 128, each less than 0.8% wide
SHIFT = 52 - MANTISSA_BITS
FIRST = int(np.float64(2.0**-24).view(np.int64) >> SHIFT)
CELLS = 48 << MANTISSA_BITS
EDGES = np.concatenate([[0.0], (np.arange(FIRST + 1, FIRST + CELLS) << SHIFT).view(np.float64)])
UPPER = np.append(EDGES[1:], np.inf)


def optimum_by_cells(draft: np.ndarray, target: np.ndarray, k: int) -> tuple[float, int]:
    """alpha as in transport.optimal_acceptance, without sorting the vocabulary; and the tokens sorted.

    The leading bits of a positive float64 are its exponent and first binary digits, and they are in the
    same order as the numbers: shifted down they are the cell of a histogram. One pass gives the draft
    and target mass below each cell edge. Inside a cell from (U_a, R_a) to (U_b, R_b), with ratios
    between lo and hi, every prefix (u, r) has
        r >= R_a + lo (u - U_a)   and   r >= R_b - hi (U_b - u),
    and the loss u^k - r is convex along both lines, so it is largest at their crossing or at an edge.
    Only cells whose bound beats the best edge are sorted. O(V) plus those few tokens.
    """
    pair = check_pair(draft, target)
    p, q = pair.draft.numpy(), pair.target.numpy()
    ratio = np.zeros_like(q)
    drafted = p > 0
    np.divide(q, p, out=ratio, where=drafted)
    cell = np.clip((ratio.view(np.int64) >> SHIFT) - FIRST, 0, CELLS - 1)
    p_in = np.bincount(cell, p, CELLS)
    q_in = np.bincount(cell, q if drafted.all() else np.where(drafted, q, 0.0), CELLS)
    tail = np.append(np.cumsum(p_in[::-1])[::-1], 0.0)  # mass from each edge on: 1 - U
    tail /= tail[0]
    r = np.append(0.0, np.cumsum(q_in))

    def loss(tail: np.ndarray, r: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.exp(k * np.log1p(-np.clip(tail, 0, 1))) - r

    best = max(float(loss(tail, r).max()), 0.0)
    width = tail[:-1] - tail[1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        # How far the crossing lies from U_a; an unbounded cell has it at U_b.
        run = width - np.nan_to_num((r[1:] - r[:-1] - EDGES * width) / (UPPER - EDGES))
    run = np.clip(run, 0, width)
    bound = loss(tail[:-1] - run, r[:-1] + EDGES * run)
    open_cells = np.flatnonzero((bound > best) & (width > 0))
    looked_at = 0
    if len(open_cells):
        tokens = np.flatnonzero(np.isin(cell, open_cells) & drafted)
        tokens = tokens[np.argsort(ratio[tokens])]
        looked_at = len(tokens)
        for c in open_cells:
            mine = tokens[cell[tokens] == c]
            inside = loss(tail[c] - np.cumsum(p[mine]), r[c] + np.cumsum(q[mine]))
            best = max(best, float(inside.max()))
    return 1 - best, looked_at


# --- what is timed ---


def plans(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Iterator[Plan]:
    config = CONFIG | {"vocabularies": list(VOCABULARIES)}
    timing = partial(measure, config)
    yield Plan(args.run_id or "cpu", config, [Phase("transport", list(SCHEMA), timing)])


def timed_jobs(k: int) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """(job, vocabulary, call). Every call starts from two float64 arrays or tensors of shape (V,)."""

    def tensors(vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.as_tensor(law) for law in distributions.zipf(vocabulary))

    small, *others = VOCABULARIES
    for vocabulary in others:
        pair = distributions.zipf(vocabulary)
        p, q = tensors(vocabulary)
        yield "optimum", vocabulary, lambda pair=pair: transport.optimal_acceptance(*pair, k)
        yield "sort-alone", vocabulary, lambda p=p, q=q: IID().order(p, q, k)
        yield "optimum-by-cells", vocabulary, lambda pair=pair: optimum_by_cells(*pair, k)
    p, q = tensors(small)
    yield "plan-512", small, lambda p=p, q=q: nested.plan(p, q, k, 512)
    yield "plan-exact", small, lambda p=p, q=q: nested.plan(p, q, k, None)
    p, q = tensors(others[-1])
    yield "rho", others[-1], lambda p=p, q=q: kseq.optimal_rho(p, q, k)
    yield "rho-bisected", others[-1], lambda p=p, q=q: kseq.bisected_rho(p, q, k)


def answered() -> list[Record]:
    """Jobs whose answers are compared with the exact ones."""
    small, *others = VOCABULARIES
    sizes = {"optimum-by-cells": others, "plan-512": [small], "plan-exact": [small],
             "rho": others[-1:]}  # fmt: skip
    return [{"job": job, "vocabulary": v} for job, found in sizes.items() for v in found]


def accuracy(job: str, vocabulary: int, k: int) -> Record:
    """What a timed job answers, next to the exact value."""
    pair, more = distributions.zipf(vocabulary), {}
    if job == "rho":
        p, q = map(torch.as_tensor, pair)
        value, exact = float(kseq.optimal_rho(p, q, k)), float(kseq.bisected_rho(p, q, k))
    else:
        exact = transport.optimal_acceptance(*pair, k)
        if job == "optimum-by-cells":
            value, more["tokens_sorted"] = optimum_by_cells(*pair, k)
        else:
            classes = 512 if job == "plan-512" else None
            value = optimal.Optimal(classes=classes).acceptance(*pair, k)
    answer = {"job": job, "vocabulary": vocabulary, "value": value}
    return {**answer, "difference": abs(value - exact), **more}


# --- memory, one process per size ---


class PeakMemory:
    """How far resident memory rose above its value on entry, in `bytes`."""

    def __enter__(self) -> PeakMemory:
        try:  # Linux forgets an earlier peak when asked to
            Path("/proc/self/clear_refs").write_text("5")
            self.before = self._status("VmRSS")
        except OSError:
            self.before = None
            self.earlier_peak = self._largest()
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is None:
            self.bytes = self._largest() - self.earlier_peak
        else:
            self.bytes = self._status("VmHWM") - self.before

    def _status(self, field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])

    def _largest(self) -> int:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_of_optimum(vocabulary: int, k: int) -> Record:
    torch.set_num_threads(1)
    transport.optimal_acceptance(*distributions.zipf(1_000), k)
    # Made in place: memory that was freed before the measurement would be used again, unseen.
    rng = np.random.default_rng(0)
    draft, target = rng.random(vocabulary), rng.random(vocabulary)
    draft /= draft.sum()
    target /= target.sum()
    with PeakMemory() as peak:
        transport.optimal_acceptance(draft, target, k)
    return {"peak_bytes": peak.bytes}


def one_program(vocabulary: int, k: int, formulation: str) -> Record:
    torch.set_num_threads(1)
    transport.solve_lp(*distributions.zipf(3), 2, formulation)  # loads the solver
    pair = distributions.zipf(vocabulary)
    with PeakMemory() as peak:
        begin = time.perf_counter()
        solved = transport.solve_lp(*pair, k, formulation)
        seconds = time.perf_counter() - begin
    difference = abs(solved.acceptance - transport.optimal_acceptance(*pair, k))
    return {"seconds": seconds, "peak_bytes": peak.bytes, "difference": difference,
            "variables": solved.variables}  # fmt: skip


def _answer(connection, task: Callable[..., Record], arguments: tuple) -> None:
    connection.send(task(*arguments))


def in_a_process(
    task: Callable[..., Record], arguments: tuple, limit: float | None = None
) -> Record | None:
    """task(*arguments) in a fresh process; None when it takes longer than `limit` seconds."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sending, task, arguments))
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is the parent's
    process.start()
    signal.signal(signal.SIGINT, handler)
    sending.close()
    try:
        return receiving.recv() if receiving.poll(limit) else None
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()


# --- records ---


def measure(config: Record, run: Run, seconds: float | None) -> None:
    """`seconds` are for the timings; each program has a limit of its own."""
    k, limit = config["drafts"], config["program_limit_seconds"]
    # numpy and the solver of the processes started below read these when they are loaded
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    os.environ.update(dict.fromkeys(names, "1"))

    def loaded(record: Record) -> Record:
        return record | {"load": round(os.getloadavg()[0], 2)}

    def turn(call: Callable[[], object], _: int) -> Record:
        return loaded({"seconds": clocks.seconds_of(call, torch.device("cpu"))})

    run.fill("accuracy", answered(), lambda job: [job],
             lambda job: [loaded(accuracy(**job, k=k))], None)  # fmt: skip
    jobs = [({"job": job, "vocabulary": vocabulary}, partial(turn, call))
            for job, vocabulary, call in timed_jobs(k)]  # fmt: skip
    run.rounds("time", jobs, config["rounds"], seconds, config["warm_up"], least=2)

    def peak(vocabulary: int) -> list[Record]:
        found = in_a_process(memory_of_optimum, (vocabulary, k))
        if found is None:
            raise MemoryError(f"the process for {vocabulary} tokens ended without an answer")
        return [loaded({"vocabulary": vocabulary, **found})]

    run.fill("memory", config["memory"], lambda v: [{"vocabulary": v}], peak, None)

    past = run.read("program")
    slow = {(r["formulation"], r["drafts"]) for r in past if (r["seconds"] or limit) >= limit}

    def solve(size: Record) -> list[Record]:
        formulation, vocabulary, drafts = size.values()
        if (formulation, drafts) in slow:
            return []
        patience = limit + 15  # the process starts and loads first
        found = in_a_process(one_program, (vocabulary, drafts, formulation), patience)
        if found is None or found["seconds"] >= limit:
            slow.add((formulation, drafts))
        variables = transport.lp_size(vocabulary, drafts, formulation)
        return [loaded({**size, **(found or {"variables": variables, "seconds": None})})]

    sizes = [
        {"formulation": formulation, "vocabulary": vocabulary, "drafts": drafts}
        for formulation, found in config["programs"].items()
        for vocabulary, drafts in found
    ]
    run.fill("program", sizes, lambda size: [size], solve, None)


# --- summary ---


def summarise(run: Run, config: Record, sessions: list[Record]) -> Record:
    """Medians, quartiles, and the ratios between jobs of the run."""
    records = {kind: run.read(kind) for kind in SCHEMA}
    timed = grouped(records["time"], ["job", "vocabulary"])
    timings = []
    for (job, vocabulary), lines in timed.items():
        values = [record["seconds"] for record in lines]
        low, middle, high = statistics.quantiles(values, n=4)
        goal = config["goal_ms"].get(f"{job} {vocabulary}")
        row = {
            "job": job,
            "vocabulary": vocabulary,
            "median_ms": round(1e3 * middle, 3),
            "quartiles_ms": [round(1e3 * low, 3), round(1e3 * high, 3)],
            "rounds": len(values),
        }
        timings.append(row | ({"goal_ms": goal} if goal else {}))
    median = {(row["job"], row["vocabulary"]): row["median_ms"] for row in timings}

    def ratio(job: str, other: str, vocabulary: int) -> float:
        return round(median[job, vocabulary] / median[other, vocabulary], 3)

    small, *others = VOCABULARIES
    large = others[-1]
    ratios = {
        **{f"sort / optimum, V={v}": ratio("sort-alone", "optimum", v) for v in others},
        **{f"optimum / optimum by cells, V={v}": ratio("optimum", "optimum-by-cells", v)
           for v in others},
        f"rho bisected / rho, V={large}": ratio("rho-bisected", "rho", large),
        f"plan exact / plan-512, V={small}": ratio("plan-exact", "plan-512", small),
    }  # fmt: skip
    kept = {
        kind: [{n: v for n, v in record.items() if n not in COMMON} for record in records[kind]]
        for kind in ("memory", "program", "accuracy")
    }
    for row in kept["memory"]:
        row["bytes_per_token"] = round(row["peak_bytes"] / row["vocabulary"], 1)
    for row in kept["program"]:
        if row["seconds"] is not None:
            row["seconds"] = round(row["seconds"], 3)
            row["bytes_per_variable"] = round(row["peak_bytes"] / row["variables"])
    loads = [record["load"] for found in records.values() for record in found]
    return {
        "command": "python -m spectr_lite reproduce transport",
        "run": run.folder.name,
        "environment": sessions,
        "load": {"median": statistics.median(loads), "largest": max(loads)},
        "drafts": config["drafts"],
        "program_limit_seconds": config["program_limit_seconds"],
        "timings": timings,
        "ratios": ratios,
        "accuracy": kept["accuracy"],
        "memory": kept["memory"],
        "programs": kept["program"],
    }
