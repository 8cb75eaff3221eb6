"""What the exact optimum costs: the cut formula, the plans, K-SEQ's rho, and the linear program.

    python -m spectr_experiments.transport --run-id NAME [--rounds 15]
    python -m spectr_experiments.transport --summarise

Three parts, one CPU core, float64. Timings: all jobs take turns within a round, so that a slow moment
touches all of them. Memory and linear programs: one process per size, whose peak resident memory is
compared with what it held before. Records are appended to
results/benchmark-transport/<run-id>/records.jsonl, and the same run id goes on where it was stopped.
The summary of the latest run ships in spectr_lite/results/; tests/test_benchmark_summary.py compares
it with the records.
"""

from __future__ import annotations

import os

os.environ.update(
    dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
)

import argparse
import datetime
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from spectr_experiments import records
from spectr_lite import distributions, transport
from spectr_lite.distributions import IID, check_pair
from spectr_lite.transport import nested
from spectr_lite.verifiers import kseq, optimal

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "benchmark-transport"
SUMMARY = ROOT / "spectr_lite" / "results" / "benchmark-transport.json"
MEASURED = ["spectr_lite/distributions", "spectr_lite/transport", "spectr_lite/verifiers",
            "spectr_experiments/transport.py"]  # fmt: skip

CONFIG = {
    "pair": "distributions.zipf(vocabulary, exponent=1.0, mismatch=1.0, seed=0)",
    "dtype": "float64",
    "drafts": 8,
    "warm_up": 2,
    # What each job should stay below, in milliseconds.
    "goal_ms": {"optimum 50000": 15, "optimum 256000": 120, "plan-512 32000": 25, "rho 256000": 120},
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


def timed_jobs(k: int) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """(job, vocabulary, call). Every call starts from two float64 arrays or tensors of shape (V,)."""

    def tensors(vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.as_tensor(law) for law in distributions.zipf(vocabulary))

    for vocabulary in (50_000, 256_000):
        pair = distributions.zipf(vocabulary)
        p, q = tensors(vocabulary)
        yield "optimum", vocabulary, lambda pair=pair: transport.optimal_acceptance(*pair, k)
        yield "sort-alone", vocabulary, lambda p=p, q=q: IID().order(p, q, k)
        yield "optimum-by-cells", vocabulary, lambda pair=pair: optimum_by_cells(*pair, k)
    p, q = tensors(32_000)
    yield "plan-512", 32_000, lambda p=p, q=q: nested.plan(p, q, k, 512)
    yield "plan-exact", 32_000, lambda p=p, q=q: nested.plan(p, q, k, None)
    p, q = tensors(256_000)
    yield "rho", 256_000, lambda p=p, q=q: kseq.optimal_rho(p, q, k)
    yield "rho-bisected", 256_000, lambda p=p, q=q: kseq.bisected_rho(p, q, k)


def accuracy(k: int) -> Iterator[dict]:
    """What the timed jobs answer, next to the exact value."""
    for vocabulary in (50_000, 256_000):
        pair = distributions.zipf(vocabulary)
        value, looked_at = optimum_by_cells(*pair, k)
        exact = transport.optimal_acceptance(*pair, k)
        yield {"job": "optimum-by-cells", "vocabulary": vocabulary, "value": value,
               "difference": abs(value - exact), "tokens_sorted": looked_at}  # fmt: skip
    pair = distributions.zipf(32_000)
    exact = transport.optimal_acceptance(*pair, k)
    for job, classes in (("plan-512", 512), ("plan-exact", None)):
        value = optimal.Optimal(classes=classes).acceptance(*pair, k)
        yield {"job": job, "vocabulary": 32_000, "value": value, "difference": abs(exact - value)}
    p, q = (torch.as_tensor(law) for law in distributions.zipf(256_000))
    rho, bisected = float(kseq.optimal_rho(p, q, k)), float(kseq.bisected_rho(p, q, k))
    yield {"job": "rho", "vocabulary": 256_000, "value": rho, "difference": abs(rho - bisected)}


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


def memory_of_optimum(vocabulary: int, k: int) -> dict:
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


def one_program(vocabulary: int, k: int, formulation: str) -> dict:
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


def _answer(connection, task: Callable[..., dict], arguments: tuple) -> None:
    connection.send(task(*arguments))


def in_a_process(
    task: Callable[..., dict], arguments: tuple, limit: float | None = None
) -> dict | None:
    """task(*arguments) in a fresh process; None when it takes longer than `limit` seconds."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sending, task, arguments))
    process.start()
    sending.close()
    try:
        return receiving.recv() if receiving.poll(limit) else None
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()


# --- records ---


def environment() -> dict:
    packages = ("torch", "numpy", "scipy", "cvxpy", "highspy")
    command = f"python -m spectr_experiments.transport {' '.join(sys.argv[1:])}"
    return {"command": command, **records.environment(ROOT, MEASURED, packages)}


def read(folder: Path) -> list[dict]:
    path = folder / "records.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def measure(folder: Path, rounds: int) -> None:
    k, past = CONFIG["drafts"], read(folder)
    with (folder / "records.jsonl").open("a", encoding="utf-8") as out:

        def write(kind: str, record: dict) -> None:
            load = round(os.getloadavg()[0], 2)
            out.write(json.dumps({"kind": kind, **record, "load": load}) + "\n")
            out.flush()

        if not any(record["kind"] == "accuracy" for record in past):
            for record in accuracy(k):
                write("accuracy", record)

        jobs = list(timed_jobs(k))
        for _, _, call in jobs * CONFIG["warm_up"]:
            call()
        first = 1 + max((r["round"] for r in past if r["kind"] == "time"), default=-1)
        for turn in range(first, rounds):
            for job, vocabulary, call in jobs:
                begin = time.perf_counter()
                call()
                seconds = time.perf_counter() - begin
                record = {"job": job, "vocabulary": vocabulary, "round": turn, "seconds": seconds}
                write("time", record)
            print(f"round {turn + 1} of {rounds}", flush=True)

        seen = {r["vocabulary"] for r in past if r["kind"] == "memory"}
        for vocabulary in CONFIG["memory"]:
            if vocabulary not in seen:
                found = in_a_process(memory_of_optimum, (vocabulary, k))
                write("memory", {"vocabulary": vocabulary, **found})

        limit = CONFIG["program_limit_seconds"]
        old = [record for record in past if record["kind"] == "program"]
        seen = {(r["formulation"], r["vocabulary"], r["drafts"]) for r in old}
        slow = {(r["formulation"], r["drafts"]) for r in old if (r["seconds"] or limit) >= limit}
        for formulation, sizes in CONFIG["programs"].items():
            for vocabulary, drafts in sizes:
                key = {"formulation": formulation, "vocabulary": vocabulary, "drafts": drafts}
                if tuple(key.values()) in seen or (formulation, drafts) in slow:
                    continue
                patience = limit + 15  # the process starts and loads first
                found = in_a_process(one_program, (vocabulary, drafts, formulation), patience)
                size = transport.lp_size(vocabulary, drafts, formulation)
                write("program", {**key, **(found or {"variables": size, "seconds": None})})
                print(formulation, vocabulary, drafts, found, flush=True)
                if found is None or found["seconds"] >= limit:
                    slow.add((formulation, drafts))


# --- summary ---


def summarise() -> dict:
    """The latest run: medians, quartiles, and the ratios between jobs of that run."""
    folders = [path.parent for path in RESULTS.glob("*/records.jsonl")]
    if not folders:
        raise FileNotFoundError(f"results: no run in {RESULTS.relative_to(ROOT)}. Make one first.")
    envs = {folder: json.loads((folder / "env.json").read_text()) for folder in folders}
    folder = max(folders, key=lambda path: (envs[path]["sessions"][0]["start"], path.name))
    records = read(folder)

    times: dict[tuple[str, int], list[float]] = {}
    for record in records:
        if record["kind"] == "time":
            times.setdefault((record["job"], record["vocabulary"]), []).append(record["seconds"])
    timings = []
    for (job, vocabulary), values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        goal = CONFIG["goal_ms"].get(f"{job} {vocabulary}")
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

    ratios = {
        **{f"sort / optimum, V={v}": ratio("sort-alone", "optimum", v) for v in (50_000, 256_000)},
        **{f"optimum / optimum by cells, V={v}": ratio("optimum", "optimum-by-cells", v)
           for v in (50_000, 256_000)},
        "rho bisected / rho, V=256000": ratio("rho-bisected", "rho", 256_000),
        "plan exact / plan-512, V=32000": ratio("plan-exact", "plan-512", 32_000),
    }  # fmt: skip
    kept = {"memory": [], "program": [], "accuracy": []}
    for record in records:
        if record["kind"] in kept:
            fields = {key: value for key, value in record.items() if key not in ("kind", "load")}
            kept[record["kind"]].append(fields)
    for row in kept["memory"]:
        row["bytes_per_token"] = round(row["peak_bytes"] / row["vocabulary"], 1)
    for row in kept["program"]:
        if row["seconds"] is not None:
            row["seconds"] = round(row["seconds"], 3)
            row["bytes_per_variable"] = round(row["peak_bytes"] / row["variables"])
    loads = [record["load"] for record in records]
    return {
        "command": "python -m spectr_experiments.transport",
        "run": folder.name,
        "environment": envs[folder]["sessions"],
        "load": {"median": statistics.median(loads), "largest": max(loads)},
        "drafts": CONFIG["drafts"],
        "program_limit_seconds": CONFIG["program_limit_seconds"],
        "timings": timings,
        "ratios": ratios,
        "accuracy": kept["accuracy"],
        "memory": kept["memory"],
        "programs": kept["program"],
    }


def summary_text() -> str:
    return json.dumps(summarise(), indent=1) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-id", default=None, help="folder name; the same one resumes a run")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--summarise", action="store_true", help="only rewrite the summary")
    options = parser.parse_args()
    if not options.summarise:
        torch.set_num_threads(1)
        folder = RESULTS / (
            options.run_id or f"cpu-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"
        )
        folder.mkdir(parents=True, exist_ok=True)
        config = {**CONFIG, "rounds": options.rounds}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        path = folder / "env.json"
        sessions = json.loads(path.read_text())["sessions"] if path.exists() else []
        sessions.append({**environment(), "start": records.now(), "end": None})
        path.write_text(json.dumps({"sessions": sessions}, indent=1) + "\n", encoding="utf-8")
        measure(folder, options.rounds)
        sessions[-1]["end"] = records.now()
        path.write_text(json.dumps({"sessions": sessions}, indent=1) + "\n", encoding="utf-8")
    SUMMARY.parent.mkdir(parents=True, exist_ok=True)
    SUMMARY.write_text(summary_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
