"""What the front page shows: one figure, three numbers and the tables.

The exact numbers are computed by the package at the time of the build. The measured ones are read from
the summaries of recorded runs; one that has not been recorded yet is not shown.
"""

from __future__ import annotations

import itertools
from importlib import resources

import numpy as np
from matplotlib.figure import Figure
from scipy.special import softmax

from spectr_lite import distributions, transport, verifiers
from spectr_lite.book import plotting
from spectr_lite.book.recorded import cell, summary, table
from spectr_lite.stats import Interval, mean_interval

RECORDED = resources.files("spectr_lite") / "results" / "next-token-laws.npz"
VOCABULARY = 32_000
DRAFTS = np.array([1, 2, 3, 4, 6, 8, 12, 16])


def acceptances(draft: np.ndarray, target: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
    """Of one draft, of K-SEQ and of the optimum; () or, for places (P, V), (P,)."""
    single = verifiers.get("coupling").acceptance(draft, target, 1)
    kseq = verifiers.get("kseq").acceptance(draft, target, k)
    optimum = transport.optimal_acceptance(draft, target, k)
    return tuple(map(np.asarray, (single, kseq, optimum)))


def by_drafts(draft: np.ndarray, target: np.ndarray) -> str:
    """One pair (V,), or places (P, V), whose means then have a 95% interval over the places."""
    rows = []
    for k in (1, 2, 4, 8, 16):
        found = [np.atleast_1d(values) for values in acceptances(draft, target, k)]
        spans = [mean_interval(values) for values in found]
        rows.append([str(k), *(f"{s.mean:.4f}" if s.n == 1 else interval(s) for s in spans)])
    return table(["drafts $k$", "one draft", "K-SEQ", "exact optimum"], rows)


def interval(span: Interval) -> str:
    return f"{span.mean:.3f} [{span.low:.3f}, {min(span.high, 1):.3f}]"


def question() -> str:
    """The opening question's answers: three tokens, two drafts."""
    draft, target = distributions.three_tokens()
    answers = acceptances(draft, target, 2)
    program = transport.solve_lp(draft, target, 2).acceptance
    if abs(program - answers[-1]) > 1e-8:
        raise AssertionError(f"linear program {program}, cut formula {answers[-1]}")
    rules = (
        "draft once; keep the draft as often as possible",
        "draft twice; K-SEQ, the paper's Algorithm 2",
        "draft twice; the best that any rule can do",
    )
    rows = [[rule, f"{value:.4f}"] for rule, value in zip(rules, answers, strict=True)]
    return table(["rule", "the emitted token was drafted"], rows)


def acceptance_figure() -> Figure:
    """Acceptance against k."""
    laws = distributions.zipf(VOCABULARY)
    (single, *_), kseq, optimum = zip(*(acceptances(*laws, int(k)) for k in DRAFTS), strict=True)
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.subplots()
    axes.axhline(single, color=plotting.COLORS["coupling"], linestyle="--")
    axes.fill_between(DRAFTS, kseq, optimum, color=plotting.COLORS["kseq"], alpha=0.12, linewidth=0)
    axes.plot(DRAFTS, optimum, "o-", color=plotting.COLORS["optimal"], clip_on=False)
    axes.plot(DRAFTS, kseq, "s-", color=plotting.COLORS["kseq"], clip_on=False)
    axes.set_xscale("log", base=2)
    axes.set_xticks(DRAFTS, [str(k) for k in DRAFTS], minor=False)
    axes.minorticks_off()
    axes.set(xlim=(1, 16), ylim=(0.6, 1), xlabel="drafts $k$", ylabel="acceptance $P(Y \\in S)$")
    axes.annotate(
        "exact optimum", (3, optimum[2]), (-8, 10), ha="right", textcoords="offset points"
    )
    axes.annotate("K-SEQ", (6, kseq[4]), (10, -16), textcoords="offset points")
    axes.annotate("one draft", (12, single), (0, 8), ha="center", textcoords="offset points")
    return figure


def pretrained_probs() -> list[np.ndarray]:
    """Recorded next-token distributions: SmolLM2 without six layers, and SmolLM2."""
    laws = np.load(RECORDED)
    return [softmax(laws[name].astype(float), axis=-1) for name in ("drop6", "target")]


def pretrained_cost() -> str:
    """What the table's draft costs, and that no speed comes of it."""
    drafts = {row["draft"]: row for row in summary("smollm2-drafts")["drafts"]}
    dropped, distilled = (drafts[name]["cost"] for name in ("smollm2", "smollm2-distilled"))
    return (
        f"This draft shows the gap between the rules, and could not save time: one token of it costs "
        f"{dropped:.0%} of a call of its target. The distilled draft costs {distilled:.0%} and is "
        "accepted less ([the models](models.md)).\n"
    )


def numbers() -> str:
    """Three numbers, each with where it comes from, as three cards."""
    cards = "\n".join((optimum_in_time(), gap_closed(), saved_calls()))
    return f"::::{{grid}} 1 1 3 3\n:gutter: 3\n\n{cards}\n::::\n"


def chapter(name: str) -> str:
    return f"[chapter {int(name[:2])}](../notebooks/{name}.ipynb)"


def card(number: str, text: str, place: str, run: str) -> str:
    source = f"{place} · [the run](repo:results/{run}/env.json)"
    return f":::{{grid-item-card}}\n:class-card: number\n**{number}**\n\n{text}.\n\n{source}\n:::\n"


def optimum_in_time() -> str:
    """The largest vocabulary for which the exact optimum was timed."""
    found = summary("benchmark-transport")
    timed = [row for row in found["timings"] if row["job"] == "optimum"]
    largest = max(timed, key=lambda row: row["vocabulary"])
    return card(
        f"{largest['median_ms']:.0f} ms",
        f"for the exact optimum at a vocabulary of {largest['vocabulary']:,}: "
        "one sort on one core, no solver",
        chapter("03-the-optimum-without-a-solver"),
        f"benchmark-transport/{found['run']}",
    )


def gap_closed() -> str:
    """What the optimal rule adds to K-SEQ with eight drafts, where the draft is cheap: in one token."""
    found = summary("smollm2-drafts")
    draft = next(row for row in found["drafts"] if row["draft"] == "smollm2-distilled")
    text = draft["texts"]["own"]
    fewer = text["fewer_misses"]
    low, high = (f"{end:.0%}" for end in fewer["interval"])
    return card(
        f"{fewer['value']:.0%} fewer",
        f"tokens at which no draft is kept, 95% interval {low} to {high} over {fewer['n']} texts: with "
        f"eight drafts for SmolLM2 the best rule accepts {text['optimum']['8']:.3f}, K-SEQ "
        f"{text['kseq']['8']:.3f}. The draft costs {draft['cost']:.0%} of its target's call",
        "[the models](models.md)",
        f"smollm2-drafts/{found['run']}",
    )


def saved_calls() -> str:
    """Block efficiency of SpecTr against speculative decoding; a word where it is not recorded."""
    runs = summary("table1")["runs"]
    for name, length in itertools.product(("smollm2-distilled", "bundled"), (8, 4)):
        for run in (run for run in runs if run["pair"] == name):
            one, eight = cell([run], 1, length), cell([run], 8, length)
            if one and eight:
                spans = " and ".join(
                    "{:.2f} to {:.2f}".format(*row["interval"]) for row in (one, eight)
                )
                return card(
                    f"{one['block_efficiency']:.2f} → {eight['block_efficiency']:.2f}",
                    "tokens for each call of the large model, from one draft to eight by K-SEQ, each "
                    f"{length} tokens long (pair {name}; 95% intervals {spans}, over {eight['n']:,} "
                    "prompts)",
                    chapter("09-the-reproduction"),
                    f"table1/{run['run']}",
                )
    missing = "tokens for each call of the large model: not recorded yet."
    return f":::{{grid-item-card}}\n:class-card: number\n**?**\n\n{missing}\n:::\n"


def usage() -> str:
    """What the front page's example prints. The page includes its source from here."""
    # shown: begin
    from spectr_lite import check

    table = check.compare(
        draft=[0.5, 0.3, 0.2],
        target=[0.2, 0.3, 0.5],
        ks=(2, 4),
        verifiers=["kseq", "recursive", "optimal"],
    )
    print(table)
    # shown: end
    return f"```text\n{table}\n```\n"


FRAGMENTS = {
    "front_question": question,
    "front_numbers": numbers,
    "front_glance": lambda: by_drafts(*distributions.zipf(VOCABULARY)),
    "front_pretrained": lambda: by_drafts(*pretrained_probs()),
    "front_pretrained_cost": pretrained_cost,
    "front_check": usage,
}
FIGURES = {"acceptance.svg": acceptance_figure}
