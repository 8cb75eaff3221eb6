"""What the page "The models in this book" shows: tables, and the figure of the training.

Every number comes from the models' own records: results/train-pair, spectr_lite/results/models.json
and smollm2-drafts.json. A part whose record is not there yet says so.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from spectr_lite import models
from spectr_lite.book import plotting
from spectr_lite.book.recorded import summary, table

RECORDS = Path(__file__).resolve().parents[3] / "results" / "train-pair"
LARGE, APACHE, FETCHED = "SmolLM2-135M", "Apache-2.0", "`make smollm2`"
ABOUT = {  # pair: target, draft, licence, where from
    "bundled": ("our own", "our own, distilled", "CC0-1.0", "in the package"),
    "smollm2-distilled": (LARGE, "our own, distilled", APACHE, f"{FETCHED}; draft in the package"),
    "smollm2-trigram": (LARGE, "counts of three tokens", APACHE, f"{FETCHED}; text in the package"),
    "smollm2": (LARGE, "the same, 6 layers dropped", APACHE, FETCHED),
    "smollm2-drop3": (LARGE, "the same, 3 layers dropped", APACHE, FETCHED),
}


def millions(count: float) -> str:
    if not count:
        return "none"
    return f"{count / 1e6:.1f} M" if count < 2e7 else f"{count / 1e6:.0f} M"


def pairs() -> str:
    """Which pairs there are: their sizes, licences and sources."""
    measured = summary("models")
    rows = []
    for name, (target, draft, licence, where) in ABOUT.items():
        entry = measured.get("pairs", {}).get(name)
        if entry:
            size = entry["parameters"]
            target += f", {millions(size['target'])}, {size['vocabulary']:,} tokens"
            draft += f", {millions(size['draft'])}"
        rows.append([f"`{name}`", target, draft, licence, where])
    return table(["pair", "target", "draft, own parameters", "licence", "weights"], rows)


def quality() -> str:
    """The same held-out text for all pairs."""
    measured = summary("models")
    if "pairs" not in measured:
        return "*Not recorded yet: `python -m spectr_lite reproduce models`.*\n"

    def cell(entry: dict, role: str, key: str, digits: int) -> str:
        return f"{entry[role][key]:.{digits}f}" if role in entry else "—"

    rows = []
    for name, entry in measured["pairs"].items():
        low, high = entry["interval"]
        rows.append(
            [f"`{name}`"]
            + [cell(entry, role, "perplexity", 1) for role in ("target", "draft")]
            + [cell(entry, role, "bits_per_character", 2) for role in ("target", "draft")]
            + [f"{entry['acceptance']:.3f} [{low:.3f}, {high:.3f}]"]
        )
    head = ["pair", "perplexity: target", "draft", "bits per character: target", "draft"]
    caption = (
        f"\nRun `{measured['run']}`, {measured['texts']} texts: {measured['source']}. Acceptance is "
        "the mean of $\\sum_y \\min(p(y), q(y))$, with a 95% interval over the texts.\n"
    )
    return table([*head, "acceptance, one draft"], rows) + caption


def smollm2_drafts() -> str:
    """Acceptance against cost, on text that SmolLM2 wrote."""
    found = summary("smollm2-drafts")
    if "drafts" not in found:
        return "*Not recorded yet: `python -m spectr_lite reproduce drafts`.*\n"
    rows = []
    for entry in sorted(found["drafts"], key=lambda entry: entry["cost"]):
        text = entry["texts"]["own"]
        size = millions(entry["parameters_beside_the_embedding"])
        spans = text["intervals_of_eight"]
        shown = (
            (text["acceptance"], text["interval"]),
            (text["kseq"]["8"], spans["kseq"]),
            (text["optimum"]["8"], spans["optimum"]),
        )
        cells = ["{:.3f} [{:.3f}, {:.3f}]".format(value, *span) for value, span in shown]
        fewer = text["fewer_misses"]
        cells.append("{:.0%} [{:.0%}, {:.0%}]".format(fewer["value"], *fewer["interval"]))
        rows.append([entry["draft"], size, f"{entry['cost']:.3f}", *cells])
    head = ["pair", "own", "cost", "one draft", "K-SEQ, $k=8$", "optimum, $k=8$"]
    note = (
        f"\nRun `{found['run']}`, {fewer['n']} texts, with 95% intervals over them. *Own*: the draft's "
        "own parameters. *Fewer misses*: of the tokens at which K-SEQ keeps no draft, the share at "
        "which the optimum does; both at the same places.\n"
    )
    return table([*head, "fewer misses"], rows) + note


@cache
def training() -> dict[str, Any]:
    """The record of the bundled pair's training: settings, evaluation, and the curve by stage."""
    run = json.loads((models.DATA / "sotu" / "config.json").read_text("utf-8"))["run"]
    found = {"run": run}
    for name in ("config", "evaluation"):
        found[name] = json.loads((RECORDS / run / f"{name}.json").read_text("utf-8"))
    lines = map(json.loads, (RECORDS / run / "curve.jsonl").read_text("utf-8").splitlines())
    for line in lines:
        found.setdefault(line["stage"], []).append(line)
    return found


def training_figure() -> Figure:
    """Loss of both models, and acceptance during distillation."""
    record = training()
    text = record["evaluation"]["tokens"]["train"]
    figure = Figure(figsize=(7.2, 3.2))
    loss, acceptance = figure.subplots(1, 2, width_ratios=(3, 2))
    for stage in ("target", "draft"):
        rows = [row for row in record[stage] if row["step"]]
        passes = [row["tokens"] / text for row in rows]
        color = plotting.COLORS[stage]
        loss.plot(passes, [row["held_out_loss"] for row in rows], "-", color=color)
        loss.plot(passes, [row["training_loss"] for row in rows], ":", color=color)
        last = rows[-1]["held_out_loss"]
        loss.annotate(
            stage, (passes[-1], last), (4, 0), textcoords="offset points", va="center", color=color
        )
    loss.set(xlabel="passes over the training text", ylabel="nats per token", ylim=(3, 5.5))
    loss.margins(x=0.12)
    rows = record["distil"]
    acceptance.plot(
        [row["tokens"] / 1e6 for row in rows],
        [row["held_out_acceptance"] for row in rows],
        "-",
        color=plotting.COLORS["draft"],
    )
    switch = rows[-1]["tokens"] / 1e6 * record["config"]["total_variation_from"]
    acceptance.axvline(switch, color=plotting.COLORS["coupling"], linestyle="--")
    acceptance.annotate(
        "total variation →",
        (switch, rows[0]["held_out_acceptance"]),
        (-4, 0),
        textcoords="offset points",
        ha="right",
    )
    acceptance.set(xlabel="million tokens of distillation", ylabel="acceptance, one draft")
    return figure


def gained() -> str:
    """What the last tenth of the training still gained, and what distillation did."""
    record = training()
    parts = []
    for stage in ("target", "draft"):
        rows = {row["step"]: row["held_out_loss"] for row in record[stage]}
        end = record["config"][f"fit_{stage}"]["steps"]
        tenth = min(rows, key=lambda step: abs(step - 0.9 * end))
        parts.append(f"{rows[tenth] - rows[end]:.3f} nats for the {stage}")
    before, after = (record["evaluation"][k] for k in ("test_before_distillation", "test"))
    return (
        f"The last tenth of the steps still gained {' and '.join(parts)}. Distillation raised the "
        f"acceptance of one draft on the test speeches from {before['acceptance']:.3f} to "
        f"{after['acceptance']:.3f}; the draft's own loss there went from "
        f"{before['draft_loss']:.3f} to {after['draft_loss']:.3f} nats. Run `{record['run']}`.\n"
    )


FRAGMENTS = {
    "models_pairs": pairs,
    "models_quality": quality,
    "models_smollm2": smollm2_drafts,
    "models_training": gained,
}
FIGURES = {"training.svg": training_figure}
