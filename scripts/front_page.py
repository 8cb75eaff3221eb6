"""Compute what the front page shows: one figure, three numbers and the tables, into book/_generated.

The exact numbers are computed by the package at the time of the build. The measured ones are read from
the summaries of recorded runs; one that has not been recorded yet is not shown.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from spectr_lite import distributions, transport, verifiers
from spectr_lite.book import plotting

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "book" / "_generated"
RESULTS = ROOT / "spectr_lite" / "results"
RECORDED = RESULTS / "next-token-laws.npz"
VOCABULARY = 32_000
DRAFTS = np.array([1, 2, 3, 4, 6, 8, 12, 16])


def question() -> str:
    """The opening question's answers: three tokens, two drafts."""
    draft, target = distributions.three_tokens()
    program = transport.solve_lp(draft, target, 2)
    optimum = transport.optimal_acceptance(draft, target, 2)
    if abs(program.acceptance - optimum) > 1e-8:
        raise AssertionError(f"linear program {program.acceptance}, cut formula {optimum}")
    rows = {
        "draft once; keep the draft as often as possible": verifiers.get("coupling").acceptance(
            draft, target, 1
        ),
        "draft twice; K-SEQ, the paper's Algorithm 2": verifiers.get("kseq").acceptance(
            draft, target, 2
        ),
        "draft twice; the best that any rule can do": optimum,
    }
    lines = ["| rule | the emitted token was drafted |", "|---|---|"]
    lines += [f"| {rule} | {value:.4f} |" for rule, value in rows.items()]
    return "\n".join(lines) + "\n"


def glance() -> str:
    """Draw acceptance against k at a real vocabulary's size; return the same as a table."""
    draft, target = distributions.zipf(VOCABULARY)
    single = verifiers.get("coupling").acceptance(draft, target, 1)
    kseq = [verifiers.get("kseq").acceptance(draft, target, int(k)) for k in DRAFTS]
    optimum = [transport.optimal_acceptance(draft, target, int(k)) for k in DRAFTS]

    plotting.use_style()
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
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
    figure.savefig(OUT / "acceptance.svg")

    lines = ["| drafts $k$ | one draft | K-SEQ | exact optimum |", "|---|---|---|---|"]
    for k, ours, best in zip(DRAFTS, kseq, optimum, strict=True):
        if k in (1, 2, 4, 8, 16):
            lines.append(f"| {k} | {single:.4f} | {ours:.4f} | {best:.4f} |")
    return "\n".join(lines) + "\n"


def pretrained_probs() -> tuple[torch.Tensor, torch.Tensor]:
    """Recorded next-token distributions: SmolLM2 without six layers, and SmolLM2."""
    laws = np.load(RECORDED)
    draft, target = (
        torch.as_tensor(laws[name], dtype=torch.float64).softmax(-1) for name in ("drop6", "target")
    )
    return draft, target


def numbers() -> str:
    """Three numbers, each with where it comes from, as three cards."""
    return "\n".join(
        [
            "::::{grid} 1 1 3 3",
            ":gutter: 3",
            "",
            optimum_in_time(),
            gap_closed(),
            saved_calls(),
            "::::\n",
        ]
    )


def card(number: str, text: str, chapter: str, run: str) -> str:
    link = f"[chapter {int(chapter[:2])}](../notebooks/{chapter}.ipynb)"
    source = f"{link} · [the run](repo:results/{run}/env.json)"
    return f":::{{grid-item-card}}\n:class-card: number\n**{number}**\n\n{text}.\n\n{source}\n:::\n"


def optimum_in_time() -> str:
    """The largest vocabulary for which the exact optimum was timed."""
    summary = json.loads((RESULTS / "benchmark-transport.json").read_text(encoding="utf-8"))
    timed = [row for row in summary["timings"] if row["job"] == "optimum"]
    largest = max(timed, key=lambda row: row["vocabulary"])
    return card(
        f"{largest['median_ms']:.0f} ms",
        f"for the exact optimum at a vocabulary of {largest['vocabulary']:,}: "
        "one sort on one core, no solver",
        "03-the-optimum-without-a-solver",
        f"benchmark-transport/{summary['run']}",
    )


def gap_closed() -> str:
    """What the optimal rule adds to K-SEQ with eight drafts on a pretrained model."""
    draft, target = pretrained_probs()
    kseq = float(verifiers.get("kseq").acceptance(draft, target, 8).mean())
    best = float(transport.optimal_acceptance(draft, target, 8).mean())
    return card(
        f"{(best - kseq) / (1 - kseq):.0%} fewer",
        "rounds that keep no draft: with eight drafts for SmolLM2 the best rule accepts with "
        f"probability {best:.3f}, K-SEQ with {kseq:.3f}",
        "06-the-optimal-plan-at-full-vocabulary",
        "next-token-laws/smollm2-1",
    )


def saved_calls() -> str:
    """Block efficiency of SpecTr against speculative decoding; a word where it is not recorded."""
    path = RESULTS / "table1.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else []
    for name, length in itertools.product(("smollm2-distilled", "bundled"), (8, 4)):
        for run in (run for run in runs if run["pair"] == name):
            found = {
                cell["num_drafts"]: f"{cell['block_efficiency']:.2f}"
                for cell in run["cells"]
                if (cell["verifier"], cell["draft_length"]) == ("kseq", length)
                and cell["temperature"] == 1.0
            }
            if {1, 8} <= found.keys():
                return card(
                    f"{found[1]} → {found[8]}",
                    "tokens for each call of the large model, from one draft to eight by K-SEQ, each "
                    f"{length} tokens long (pair {name})",
                    "09-the-reproduction",
                    f"table1/{run['run']}",
                )
    missing = "tokens for each call of the large model: not recorded yet."
    return f":::{{grid-item-card}}\n:class-card: number\n**?**\n\n{missing}\n:::\n"


def pretrained() -> str:
    """Means over the recorded next-token distributions of SmolLM2 and its draft without six layers."""
    draft, target = pretrained_probs()
    lines = ["| drafts $k$ | one draft | K-SEQ | exact optimum |", "|---|---|---|---|"]
    single = float(verifiers.get("coupling").acceptance(draft, target, 1).mean())
    for k in (1, 2, 4, 8, 16):
        kseq = float(verifiers.get("kseq").acceptance(draft, target, k).mean())
        best = float(transport.optimal_acceptance(draft, target, k).mean())
        lines.append(f"| {k} | {single:.4f} | {kseq:.4f} | {best:.4f} |")
    return "\n".join(lines) + "\n"


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


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    (OUT / "question.md").write_text(question(), encoding="utf-8")
    (OUT / "check.md").write_text(usage(), encoding="utf-8")
    (OUT / "glance.md").write_text(glance(), encoding="utf-8")
    (OUT / "numbers.md").write_text(numbers(), encoding="utf-8")
    (OUT / "pretrained.md").write_text(pretrained(), encoding="utf-8")
