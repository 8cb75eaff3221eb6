"""What the claims ledger, the reproducibility card and "Leaving one GPU" show of recorded runs.

Every number is read from a summary in spectr_lite/results or from the paper's own numbers
(spectr_lite/book/paper.json); a claim that no run has measured says so, and stops saying so by itself
when one has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from spectr_experiments.speeds import ONE, Estimate, Speeds
from spectr_lite import transport, verifiers
from spectr_lite.book.costs import Costs, acceptance_for
from spectr_lite.book.recorded import by_pair, cell, kind, paper, summary, table

THEIRS = {(row["num_drafts"], row["draft_length"]): row for row in paper()["table1"]}
WORST = ((Fraction(1, 3), Fraction(2, 3)), (Fraction(5, 9), Fraction(4, 9)))  # draft, target; k = 2


def link(run: dict[str, Any], experiment: str = "table1") -> str:
    return f"[`{run['run']}`](repo:results/{experiment}/{run['run']}/env.json)"


def value(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    low, high = row["interval"]
    return f"{row['block_efficiency']:.2f} [{low:.2f}, {high:.2f}]"


# --- claims ledger ---


def efficiencies(runs: list[dict[str, Any]]) -> str:
    """Block efficiency in the four cells of the paper's table, each from the run with most prompts."""
    shapes = [shape for shape in THEIRS if shape[0]]
    head = ["pair", *(f"{k} × {length}" for k, length in shapes), "prompts × seeds", "run"]
    rows = [["the paper", *(f"{THEIRS[s]['block_efficiency']['value']:.1f}" for s in shapes)]]
    rows[0] += [f"1,000 × {paper()['settings']['seeds']}", "Table 1"]
    for (pair, device), mine in by_pair(runs).items():
        cells = [cell(mine, *shape) for shape in shapes]
        found = [row for row in cells if row]
        counts = dict.fromkeys(
            f"{row['n']:,} × {row['continuations'] // row['n']}" for row in found
        )
        links = ", ".join(dict.fromkeys(map(link, found)))
        rows.append([f"{pair}, {device}", *map(value, cells), ", ".join(counts), links])
    return "{.wide-cells}\n" + table(head, rows)


def more_drafts(runs: list[dict[str, Any]]) -> str:
    """Whether eight drafts emit more than one, by intervals that do not touch."""
    if not runs:
        return "**Not yet measured.**\n"
    mine = by_pair(runs).values()
    both = [(cell(r, 1, length), cell(r, 8, length)) for r in mine for length in (4, 8)]
    both = [(one, many) for one, many in both if one and many]
    clear = sum(one["interval"][1] < many["interval"][0] for one, many in both)
    holds = clear == len(both)
    verdict = "**Holds, with other levels.**" if holds else "**Holds in part.**"
    return (
        f"{verdict} Eight drafts emit more than one in {clear} of {len(both)} recorded settings, by "
        "95% intervals that do not touch.\n"
    )


@dataclass(frozen=True)
class Timed:
    """K-SEQ's loop on a pair: times as fast as, and a turn in steps of, the loop without drafts; and
    where the turns were timed, under which load."""

    source: str
    kind: str
    drafts: int
    length: int
    speed: Estimate
    cost: Estimate


def timed(runs: list[dict[str, Any]]) -> list[Timed]:
    """One text at a time: each cell from the session that timed it under the lowest load."""
    benchmarks = summary("benchmark-decoding")["runs"]
    book, found = Speeds(runs, benchmarks), []
    for pair, where in dict.fromkeys((run["pair"], kind(run)) for run in (*runs, *benchmarks)):
        for k, length in (shape for shape in THEIRS if shape[0]):
            cost, speed = (f(pair, where, k, length) for f in (book.cost, book.speed))
            if cost and speed:
                session = cost[1]
                load = " to ".join(f"{value:.1f}" for value in session.load)
                source = f"{link({'run': session.run}, session.experiment)}, load {load}"
                found.append(Timed(source, where, k, length, speed, cost[0]))
    return found


def status(found: list[Timed], recorded: str) -> str:
    """How far a claim about time has been tested, and on what."""
    devices = {point.kind for point in found}
    if not devices:
        return "**Not yet measured**, on any device.\n"
    head = "**Measured on a GPU.**" if "GPU" in devices else "**Not yet measured on a GPU.**"
    return f"{head} Recorded:\n\n{recorded}"


def at_eight(found: list[Timed], over_one: bool, spell: Callable[..., str]) -> str:
    """A row for each run: `spell` of its loop with eight drafts, and with one if it is asked for."""
    ones = {(t.source, t.length): t for t in found if t.drafts == 1}
    many = [t for t in found if t.drafts == 8 and (not over_one or (t.source, t.length) in ones)]
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for t in many:
        rows.setdefault((t.source, t.kind), {})[t.length] = spell(t, ones.get((t.source, t.length)))
    cells = [[*run, *(row.get(length, "–") for length in (4, 8))] for run, row in rows.items()]
    return status(many, table(["timed by", "device", "8 × 4", "8 × 8"], cells))


def speeds(found: list[Timed], over: int) -> str:
    """Speed at eight drafts, relative to autoregressive (over=0) or speculative decoding (over=1)."""
    return at_eight(
        found, bool(over), lambda many, one: str(many.speed.over(one.speed) if over else many.speed)
    )


def more(ratio: Estimate) -> str:
    ends = "" if ratio.interval is None else " [{:+.0%}, {:+.0%}]".format(
        *(end - 1 for end in ratio.interval)
    )  # fmt: skip
    return f"{ratio.value - 1:+.0%}{ends}"


def drafts_cost(found: list[Timed]) -> str:
    """What a turn with eight drafts costs against one: the paper's, implied, and ours."""
    implied = {(r["num_drafts"], r["draft_length"]): r["steps"] for r in paper()["iteration_cost"]}
    theirs = " and ".join(
        f"{implied[8, length] / implied[1, length] - 1:.0%} more at $L = {length}$"
        for length in (4, 8)
    )
    ours = at_eight(found, True, lambda many, one: more(many.cost.over(one.cost)))
    return f"*Paper:* {theirs}, as its two columns imply.\n\n{ours}"


def one_call(latency: list[dict[str, Any]]) -> str:
    """Scoring many tokens against one: runs of Appendix E, and the fitted cost of one more token."""
    found, lines = [], []
    for run in latency:
        large = max((r for r in run["cells"] if r["num_drafts"]), key=lambda r: r["positions"])
        ratio, shape = large["score_ratio"], (large["num_drafts"], large["draft_length"])
        source = link(run, "appendix-e")
        found.append(Timed(source, kind(run), *shape, ONE, ONE))
        lines.append(
            f"a call that scores {large['positions']} tokens takes {ratio:.1f} times as long as one "
            f"for a single token, on a {kind(run)} ({source})"
        )
    for run in summary("benchmark-decoding")["runs"]:
        source = link(run, "benchmark-decoding")
        found.append(Timed(source, kind(run), 0, 0, ONE, ONE))
        lines.append(
            f"each further token in the target's call adds {run['costs']['score']:.3f} of a step, by "
            f"the fitted cost of a turn on a {kind(run)} ({source})"
        )
    return status(found, "\n".join(f"- {line}" for line in lines) + "\n")


def rules(runs: list[dict[str, Any]]) -> str:
    """Every rule's gain over K-SEQ at eight drafts, paired by prompt."""
    rows = []
    for run in runs:
        for length in (4, 8):
            for rule in ("recursive", "traversal", "optimal", "optimal-block"):
                row = cell([run], 8, length, rule)
                if row and row["gain"]:
                    low, high = row["gain"]["interval"]
                    gain = f"{row['gain']['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
                    rows.append([link(run), f"8 × {length}", rule, gain, str(row["n"])])
    if not rows:
        return "*Not yet measured.*\n"
    return table(
        ["run", "$K \\times L$", "rule", "tokens per call, against K-SEQ", "prompts"], rows
    )


def guarantee() -> str:
    """The worst pair known for two drafts, computed exactly here."""
    draft, target = ([float(x) for x in law] for law in WORST)
    kept = verifiers.get("kseq").acceptance(draft, target, 2)
    best = transport.optimal_acceptance(draft, target, 2)
    pair = [", ".join(str(x) for x in law) for law in WORST]
    return (
        f"For two drafts the guarantee is {1 - (1 - 1 / 2) ** 2:.4f} of the optimum. The worst pair we "
        f"know, $p = ({pair[0]})$ and $q = ({pair[1]})$, has {kept / best:.4f}.\n"
    )


def solver_times() -> str:
    """Recorded times of the optimum and of rho."""
    found = summary("benchmark-transport")
    rows = [
        [NAMES[row["job"]], f"{row['vocabulary']:,}", f"{row['median_ms']:.1f}"]
        for row in found.get("timings", [])
        if row["job"] in NAMES
    ]
    if not rows:
        return "*Not yet measured.*\n"
    note = f"\nMedian milliseconds, {found['drafts']} drafts; run {link(found, 'benchmark-transport')}, "
    note += f"{found['environment'][0]['device']}.\n"
    return table(["what", "tokens", "ms"], rows) + note


NAMES = {
    "optimum": "the optimum, by one sort",
    "rho": "K-SEQ's $\\rho^\\star$, exact",
    "rho-bisected": "K-SEQ's $\\rho^\\star$, bisected",
    "plan-512": "the optimal plan, 512 bins",
}


# --- reproducibility card ---


def card(runs: list[dict[str, Any]]) -> str:
    """The assessment's eight questions, the paper's answer and ours, as it stands."""
    devices = {kind(run) for run in runs}
    clocks = {point.kind for point in timed(runs)}
    where = " and ".join(sorted(devices)) or "no device"
    links = ", ".join(link(run) for run in runs) or "none yet"
    ratios = " and ".join(str(row["value"]) for row in paper()["abstract"])
    research = (
        f"Block efficiency **measured** on {where}; speed "
        + (f"**measured** on {' and '.join(sorted(clocks))}" if clocks else "**not measured yet**")
        + (". The two ratios are claims about an accelerator: " if "GPU" not in clocks else ". ")
        + ("**not tested on a GPU yet**. " if "GPU" not in clocks else "")
        + "[The table](../notebooks/09-the-reproduction.ipynb)"
    )
    full = [run for run in runs if run["prompts"] >= 1000 and len(run["seeds"]) >= 3]
    sizes = "; ".join(f"{run['prompts']:,} × {len(run['seeds'])} in {link(run)}" for run in runs)
    setup = "**In part**: one command has the paper's size"
    if full:
        setup = f"**Yes**, in {', '.join(map(link, full))}; more settings on fewer prompts"
    hardware = sorted({run["device"] for run in runs})
    rows = [
        ["Research type", f"Experimental: {ratios} times as fast", research],
        [
            "Pseudocode",
            "Yes: Algorithms 1 to 3",
            "**Yes**, and the code that runs them: Algorithms "
            "[1](repo:spectr_lite/verifiers/coupling.py), [2](repo:spectr_lite/verifiers/kseq.py) "
            "and [3](repo:spectr_lite/decoding/loop.py)",
        ],
        [
            "Open source code",
            "No",
            "**Yes**: [the repository](repo:README.md), Apache 2.0; the text is CC BY 4.0",
        ],
        [
            "Open models and data",
            "In part: LM1B is open, PaLM 2 is not",
            "**Yes**: [every pair](models.md) is open; measured are "
            f"{', '.join(sorted({run['pair'] for run in runs})) or 'none'}. Text in the public "
            "domain; [LM1B](repo:spectr_lite/models/prompts.py) can be asked for where the hub is "
            "reachable",
        ],
        [
            "Data set splits",
            'No: "test prompts"',
            "**Yes**: whole speeches are [held out](repo:training/corpus.py), [a thousand "
            "prompts](repo:spectr_lite/models/prompts.py) are cut by a fixed rule and come with the "
            "package; their hash is in every run",
        ],
        [
            "Hardware",
            'No: "TPUs and GPUs"',
            f"**Yes**, for every number: {'; '.join(hardware) or 'nothing recorded'}"
            + ("" if "GPU" in devices else ". **No GPU yet**"),
        ],
        [
            "Software versions",
            "No: Flax is named",
            f"**Yes**: in the record of each run ({links}); those of this site in "
            "[one file](repo:constraints.txt)",
        ],
        [
            "Experiment setup",
            "Yes: 1,000 prompts, three seeds, temperature 1",
            f"{setup}. Recorded, prompts × seeds: {sizes or 'none'}. "
            "Prompts and continuations of 32 tokens; what we have of the paper does not give theirs",
        ],
    ]
    return "{.wide-cells}\n" + table(["asked", "the paper", "this book"], rows)


# --- leaving one GPU ---


def projection(runs: list[dict[str, Any]]) -> str:
    """Recorded block efficiencies on the machine that the paper's Table 1 implies."""
    costs = Costs(**summary("benchmark-decoding")["paper"]["costs"])
    rows = []
    for mine in by_pair(runs).values():
        for shape in (s for s in THEIRS if s[0]):
            row = cell(mine, *shape)
            if row:
                cost = costs.turn(*shape)
                low, high = (f"{end / cost:.2f}" for end in row["interval"])
                speed = f"{row['block_efficiency'] / cost:.2f} [{low}, {high}]"
                rows.append(
                    [link(row), f"{shape[0]} × {shape[1]}", value(row), f"{cost:.2f}", speed]
                )
    numbers = f"c = {costs.fixed:.3f}, d = {costs.draft:.3f}, s = {costs.score:.4f}"
    fitted = (
        f"\nCosts: ${numbers}$, fitted to the four turns of the paper's Table 1, worst error "
        f"{costs.error:.1%}. **A projection**: nothing in the last column was timed, and its intervals "
        "are those of the block efficiency alone.\n"
    )
    head = ["run", "$K \\times L$", "block efficiency", "cost", "projected speed"]
    return table(head, rows) + fitted if rows else "*No run is recorded yet.*\n"


def overhead() -> str:
    """c + s, one token scored and all that every turn pays, where it was fitted to recorded turns."""
    found = summary("benchmark-decoding")
    theirs = Costs(**found["paper"]["costs"])
    ours = []
    for run in found["runs"]:
        costs = Costs(**run["costs"])
        source = link(run, "benchmark-decoding")
        ours.append(f"{costs.fixed + costs.score:.2f} on a {kind(run)} ({source})")
    return (
        f"How far from free they can be: $c + s$, fitted to recorded turns, is {', '.join(ours)}, and "
        f"{theirs.fixed + theirs.score:.2f} by the paper's own table.\n"
    )


def chains(runs: list[dict[str, Any]]) -> str:
    """What one chain, all that the engines take, loses against eight."""
    rows = []
    for run in runs:
        for length in (4, 8):
            one, eight = cell([run], 1, length), cell([run], 8, length)
            block = cell([run], 1, length, "block")
            best = cell([run], 8, length, "optimal-block")
            if one and eight and block:
                a = acceptance_for(one["block_efficiency"], length)
                rows.append(
                    [link(run), str(length), f"{a:.2f}", *map(value, (one, block, eight, best))]
                )
    head = ["run", "$L$", "$a$", "one chain", "as a block", "8, K-SEQ", "8, optimal + block"]
    return "{.wide-cells}\n" + table(head, rows) if rows else "*No run is recorded yet.*\n"


def runs() -> list[dict[str, Any]]:
    return summary("table1")["runs"]


FRAGMENTS = {
    "ledger_block_efficiency": lambda: efficiencies(runs()),
    "ledger_more_drafts": lambda: more_drafts(runs()),
    "ledger_speed": lambda: speeds(timed(runs()), over=0),
    "ledger_speed_over_one": lambda: speeds(timed(runs()), over=1),
    "ledger_drafts_cost": lambda: drafts_cost(timed(runs())),
    "ledger_one_call": lambda: one_call(summary("appendix-e")["runs"]),
    "ledger_rules": lambda: rules(runs()),
    "ledger_guarantee": guarantee,
    "ledger_times": solver_times,
    "reproducibility_card": lambda: card(runs()),
    "leaving_overhead": overhead,
    "leaving_projection": lambda: projection(runs()),
    "leaving_chains": lambda: chains(runs()),
}
