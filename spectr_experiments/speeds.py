"""Speed: the one estimator behind every "times as fast" on the pages.

    speed = tokens per call / cost of a turn

Tokens per call are those of all prompts: of the largest run of Table 1 that has the cell, else of the
decoding benchmark's texts. The cost of a turn is in autoregressive steps,
    exp mean_r log(seconds of a turn / seconds of a step), r the rounds that timed both,
from the session under the lowest load that timed the cell. The two come from different texts, so the
variances of their logs add; intervals are 95%, Student's, with Welch's degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from spectr_lite.book import recorded

Record = dict[str, Any]
CELL = ("verifier", "num_drafts", "draft_length", "temperature")


@dataclass(frozen=True)
class Estimate:
    """A positive number: `error` is the standard error of its log, None for a single round."""

    value: float
    error: float | None
    degrees: float

    @classmethod
    def of(cls, record: Record) -> Estimate:
        return cls(record["value"], record["error"], record["degrees"])

    @classmethod
    def of_rounds(cls, values: Sequence[float] | np.ndarray) -> Estimate:
        """The geometric mean of one number for each round."""
        logs = np.log(np.asarray(values, np.float64))
        error = float(stats.sem(logs)) if len(logs) > 1 else None
        return cls(float(np.exp(logs.mean())), error, len(logs) - 1)

    @classmethod
    def of_interval(cls, value: float, interval: Sequence[float], n: int) -> Estimate:
        """A mean of n units with its 95% interval, as `spectr_lite.stats` gives it."""
        if n < 2:
            return cls(value, None, n - 1)
        half = (interval[1] - interval[0]) / 2
        return cls(value, half / value / float(stats.t.ppf(0.975, n - 1)), n - 1)

    @property
    def interval(self) -> list[float] | None:
        if self.error is None:
            return None
        half = float(stats.t.ppf(0.975, self.degrees)) * self.error
        return [self.value * float(np.exp(-half)), self.value * float(np.exp(half))]

    def over(self, other: Estimate) -> Estimate:
        """The ratio of two independent estimates."""
        value = self.value / other.value
        if self.error is None or other.error is None:
            return Estimate(value, None, 0)
        parts = [(e.error or 0.0) ** 2 for e in (self, other)]
        if not sum(parts):
            return Estimate(value, 0.0, min(self.degrees, other.degrees))
        spent = sum(p**2 / e.degrees for p, e in zip(parts, (self, other), strict=True))
        return Estimate(value, sum(parts) ** 0.5, sum(parts) ** 2 / spent)

    def record(self) -> Record:
        return {**vars(self), "interval": self.interval}

    def __str__(self) -> str:
        ends = "" if self.interval is None else " [{:.2f}, {:.2f}]".format(*self.interval)
        return f"{self.value:.2f}{ends}"


ONE = Estimate(1.0, 0.0, np.inf)  # the loop without drafts: one token a call, one step a turn


@dataclass(frozen=True)
class Session:
    """A recorded session that timed turns: where, its load averages, and each cell's cost."""

    run: str
    experiment: str
    pair: str
    kind: str
    load: tuple[float, ...]
    costs: dict[tuple, Estimate]  # by CELL and the number of rows


class Speeds:
    """Tokens, costs and speeds of recorded runs; by default of all that the package ships."""

    def __init__(self, runs: list[Record] | None = None, benchmarks: list[Record] | None = None):
        self.runs = recorded.summary("table1")["runs"] if runs is None else runs
        if benchmarks is None:
            benchmarks = recorded.summary("benchmark-decoding")["runs"]
        self.benchmarks = benchmarks
        self.sessions = [*map(_of_table1, self.runs), *map(_of_benchmark, benchmarks)]

    def tokens(
        self, pair: str, drafts: int, length: int, rule: str = "kseq", temperature: float = 1.0
    ) -> Estimate | None:
        """Tokens per call; None where no run has the cell."""
        if not drafts:
            return ONE
        mine = [run for run in self.runs if run["pair"] == pair]
        row = recorded.cell(mine, drafts, length, rule, temperature)
        if row:
            return Estimate.of_interval(row["block_efficiency"], row["interval"], row["n"])
        for run in self.benchmarks:
            for row in run["methods"]:
                key = row["verifier"], row["num_drafts"], row["draft_length"], row["rows"]
                same = key == (rule, drafts, length, 1) and run["pair"] == pair
                if same and run["config"]["temperature"] == temperature:
                    value, error = row["block_efficiency"], row["block_efficiency_error"]
                    error = None if error is None else error / value
                    return Estimate(value, error, run["rounds"] - 1)
        return None

    def session(self, pair: str, kind: str, cell: tuple) -> Session | None:
        """Of the sessions that timed the cell, the one that began under the lowest load."""
        found = [s for s in self.sessions if (s.pair, s.kind) == (pair, kind) and cell in s.costs]
        return min(found, key=lambda s: s.load[0], default=None)

    def cost(
        self, pair: str, kind: str, drafts: int, length: int, rule: str = "kseq",
        temperature: float = 1.0, rows: int = 1,
    ) -> tuple[Estimate, Session] | None:  # fmt: skip
        cell = (rule, drafts, length, temperature, rows)
        session = self.session(pair, kind, cell)
        return session and (session.costs[cell], session)

    def speed(
        self, pair: str, kind: str, drafts: int, length: int, rule: str = "kseq",
        temperature: float = 1.0, rows: int = 1,
    ) -> Estimate | None:  # fmt: skip
        tokens = self.tokens(pair, drafts, length, rule, temperature)
        cost = self.cost(pair, kind, drafts, length, rule, temperature, rows)
        return tokens.over(cost[0]) if tokens and cost else None


def _of_table1(run: Record) -> Session:
    costs = {
        (*(row[name] for name in CELL), 1): Estimate.of(row["steps"])
        for row in run["cells"]
        if row["steps"]
    }
    loads = [entry for entry in run["environment"] if entry.get("phase") == "timing"]
    return Session(
        run["run"], "table1", run["pair"], recorded.kind(run), _loads(loads), costs
    )  # fmt: skip


def _of_benchmark(run: Record) -> Session:
    temperature = run["config"]["temperature"]
    costs = {
        (row["verifier"], row["num_drafts"], row["draft_length"], temperature, row["rows"]):
            Estimate.of(row["steps"])
        for row in run["methods"]
        if row["num_drafts"]
    }  # fmt: skip
    loads = _loads([run["environment"]])
    return Session(run["run"], "benchmark-decoding", run["pair"], recorded.kind(run), loads, costs)


def _loads(sessions: Iterable[Record]) -> tuple[float, ...]:
    """Load averages at the start of the first session and, where known, at the end of the last."""
    known = [
        entry[name]
        for entry in sessions
        for name in ("load_average", "load_average_end")
        if entry.get(name) is not None
    ]
    return tuple(known) or (float("inf"),)
