"""What the records of advise.py say: tokens per call, cost and speed of every setting, and a verdict.

    speed = (tokens per call) / (cost of a turn),     cost in units of an autoregressive step

All intervals are 95%. Tokens per call: sum of expected tokens over number of turns, over texts. Cost:
the geometric mean of its ratio to the autoregressive step of the same round, over rounds; a few rounds
do not tell how much one setting varies, so all settings are taken to vary by the same share. The
relative errors of tokens and cost are independent, so their squares add up.
The largest of many predictions is, on average, a little too large: what the chosen setting then did
when it was decoded with stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats as students

from spectr_experiments import advice_report
from spectr_experiments.records import Record, Run, grouped, rounded
from spectr_lite import verifiers
from spectr_lite.distributions import IID
from spectr_lite.stats import Interval, mean_interval, ratio_interval

CELL = {"verifier": str, "num_drafts": int, "draft_length": int}
PLAIN = {"verifier": "autoregressive", "num_drafts": 0, "draft_length": 0}
SCHEMA = {
    "tokens": {"text": int, **CELL, "turns": int, "tokens": float},
    "nodes": {"text": int, "depth": int, "visits": int, "optimum": float, "acceptance": dict},
    "calls": {"model": str, "tokens": int, "round": int, "seconds": float},
    "turns": {**CELL, "round": int, "turns": int, "seconds": float},
    "decoded": {**CELL, "round": int, "turns": int, "emitted": int, "seconds": float},
}
KEYS = {
    "tokens": ("text", *CELL),
    "nodes": ("text", "depth"),
    "calls": ("model", "tokens", "round"),
    "turns": (*CELL, "round"),
    "decoded": (*CELL, "round"),
}


@dataclass(frozen=True)
class Advice:
    """The answer. Every number is a list: value, lower and upper end of its 95% interval.

    settings  one record for each rule and shape, the fastest first: tokens, cost and speed
    best      the setting to use; None if none is faster than autoregressive decoding
    depths    at each depth of the tree: the mean optimum, and each token rule's share of it
    calls     milliseconds of a call of each model against the number of tokens it reads
    decoded   the fastest setting as it really ran: tokens, cost and speed
    """

    config: Record
    settings: list[Record]
    best: Record | None
    depths: list[Record]
    calls: list[Record]
    decoded: Record | None

    def __str__(self) -> str:
        return "\n".join(lines_of(vars(self)))

    def save_report(self, path: str | Path) -> None:
        """Writes one self-contained HTML page."""
        Path(path).write_text(report(vars(self)), "utf-8")


def cells(config: Record) -> list[Record]:
    """Every rule with every shape that it decodes, once: of one draft there are only two rules,
    maximal coupling token by token ("kseq") and block verification ("block")."""
    found = {}
    for name in config["verifiers"]:
        rule = verifiers.get(name)
        for k in config["num_drafts"]:
            if IID not in rule.valid_for or rule.only_k not in (None, k):
                continue
            same = "block" if isinstance(rule, verifiers.TreeVerifier) else "kseq"
            for length in config["draft_lengths"]:
                cell = {
                    "verifier": same if k == 1 else name,
                    "num_drafts": k,
                    "draft_length": length,
                }
                found[tuple(cell.values())] = cell
    return list(found.values())


def summarise(run: Run, config: Record, sessions: list[Record]) -> Record:
    settings = settings_of(run, config)
    faster = settings[0]["speed"] is not None and settings[0]["speed"][1] > 1
    return rounded(
        {
            "config": config,
            "settings": settings,
            "best": settings[0] if faster else None,
            "depths": depths_of(run),
            "calls": calls_of(run),
            "decoded": decoded(run),
        }
    )


def settings_of(run: Run, config: Record) -> list[Record]:
    """Tokens per call, cost of a turn and speed of every setting; the fastest first.

    Without costs, as from a dump of logits, the one that emits most comes first.
    """
    tokens, turns = (grouped(run.read(kind), list(CELL)) for kind in ("tokens", "turns"))
    if not tokens:
        raise ValueError(f"{run.folder}: nothing is recorded yet; go on with more --minutes")
    plain = {r["round"]: r["seconds"] / r["turns"] for r in turns.get(tuple(PLAIN.values()), [])}
    ratios = {
        place: [r["seconds"] / r["turns"] / plain[r["round"]] for r in lines
                if r["round"] in plain and r["turns"]]
        for place, lines in turns.items() if place != tuple(PLAIN.values())
    }  # fmt: skip
    found = []
    for cell in cells(config):
        place = tuple(cell.values())
        emitted, calls = ([r[name] for r in tokens[place]] for name in ("tokens", "turns"))
        efficiency, _ = ratio_interval(emitted, calls)
        setting = cell | {"tokens": bounds(efficiency), "cost": None, "speed": None}
        if ratios.get(place):
            cost = geometric(ratios[place], list(ratios.values()))
            setting |= {"cost": bounds(cost), "speed": bounds(over(efficiency, cost))}
        found.append(setting)
    return sorted(found, key=lambda s: -(s["speed"] or s["tokens"])[0])


def depths_of(run: Run) -> list[Record]:
    found = []
    for (depth,), lines in sorted(grouped(run.read("nodes"), ["depth"]).items()):
        if len(lines) < 2:
            continue
        visits, optimum = ([line[name] for line in lines] for name in ("visits", "optimum"))
        shares = {
            name: bounds(ratio_interval([line["acceptance"][name] for line in lines], optimum)[0])
            for name in lines[0]["acceptance"]
        }
        mean = bounds(ratio_interval(optimum, visits)[0])
        found.append({"depth": depth, "visits": sum(visits), "optimum": mean, "shares": shares})
    return found


def calls_of(run: Run) -> list[Record]:
    return [
        {
            "model": role,
            "tokens": count,
            "milliseconds": bounds(mean_interval([1e3 * line["seconds"] for line in lines])),
        }
        for (role, count), lines in grouped(run.read("calls"), ["model", "tokens"]).items()
    ]


def decoded(run: Run) -> Record | None:
    by_cell = grouped(run.read("decoded"), list(CELL))
    plain = {r["round"]: r["seconds"] / r["turns"] for r in by_cell.pop(tuple(PLAIN.values()), [])}
    for cell, lines in by_cell.items():
        rounds = [r for r in lines if r["round"] in plain and r["turns"]]
        if len(rounds) > 1:
            tokens, _ = ratio_interval(
                *([r[name] for r in rounds] for name in ("emitted", "turns"))
            )
            paired = [r["seconds"] / r["turns"] / plain[r["round"]] for r in rounds]
            cost = geometric(paired, [paired])
            found = {"tokens": tokens, "cost": cost, "speed": over(tokens, cost)}
            shape = dict(zip(CELL, cell, strict=True))
            return shape | {name: bounds(value) for name, value in found.items()}
    return None


def bounds(found: Interval) -> list[float]:
    return [found.mean, found.low, found.high]


def geometric(ratios: Sequence[float], alike: Sequence[Sequence[float]]) -> Interval:
    """Geometric mean of ratios, with Student's interval of the mean of their logarithms.

    Their variance is that of all the samples in `alike` about their own means, `ratios` among them.
    """
    off = [np.log(sample) - np.log(sample).mean() for sample in alike if len(sample) > 1]
    degrees = sum(len(part) - 1 for part in off)
    if not degrees:
        raise ValueError("a single round tells no error; go on with more --minutes")
    spread = math.sqrt(sum(float(part @ part) for part in off) / degrees)
    half = float(students.t.ppf(0.975, degrees)) * spread / math.sqrt(len(ratios))
    mean = float(np.log(ratios).mean())
    return Interval(*np.exp([mean, mean - half, mean + half]).tolist(), len(ratios))


def over(tokens: Interval, cost: Interval) -> Interval:
    """Their ratio, from independent relative errors."""
    speed = tokens.mean / cost.mean
    half = math.hypot(math.log(tokens.high / tokens.mean), math.log(cost.high / cost.mean))
    return Interval(speed, speed * math.exp(-half), speed * math.exp(half), min(tokens.n, cost.n))


# --- in words -------------------------------------------------------------------------------------


def lines_of(found: Record, most: int = 12) -> Iterator[str]:
    """The advice as text: the best settings, and the verdict."""
    columns = [("tokens", "tokens per call"), ("cost", "cost of a turn"), ("speed", "speed")]
    yield f"{'rule':<16}{'K':>3}{'L':>3}" + "".join(f"{title:>21}" for _, title in columns)
    for setting in found["settings"][:most]:
        cell = "{verifier:<16}{num_drafts:>3}{draft_length:>3}".format(**setting)
        yield cell + "".join(f"{shown(setting[name]):>21}" for name, _ in columns)
    if len(found["settings"]) > most:
        yield f"... and {len(found['settings']) - most} more"
    yield ""
    yield from verdict(found)


def verdict(found: Record) -> list[str]:
    first = found["settings"][0]
    name = "{verifier} with {num_drafts} x {draft_length} drafts".format(**first)
    if first["speed"] is None:
        return [
            f"Most tokens per call: {name}, {shown(first['tokens'])}. The logits do not tell what a "
            "turn costs; whether this pays, only your device can say."
        ]
    speed = shown(first["speed"])
    if found["best"]:
        said = [f"Use {name}: predicted to be {speed} times as fast as autoregressive decoding."]
    elif first["speed"][0] <= 1:
        said = [f"Do not draft: even {name}, the fastest setting, is predicted at {speed} times."]
    else:
        said = [f"No setting is clearly faster: {name} is predicted at {speed} times."]
    if ran := found["decoded"]:
        said.append(
            "Decoded with {verifier} {num_drafts} x {draft_length}: ".format(**ran)
            + f"{shown(ran['tokens'])} tokens per call, {shown(ran['speed'])} times as fast."
        )
    return said


def shown(values: Sequence[float] | None) -> str:
    return "-" if values is None else "{:.2f} [{:.2f}, {:.2f}]".format(*values)


def report(found: Record) -> str:
    return advice_report.page(found, verdict(found))


def show(found: Record) -> None:
    print("\n".join(lines_of(found)))


def summary(found: list[Record]) -> Record:
    return {"command": "python -m spectr_lite advise", "runs": found}
