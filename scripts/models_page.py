"""Write what the page "The models in this book" shows, into book/_generated: tables, figure, cards.

Every number comes from the cards' own records: results/train-pair, spectr_lite/results/models.json
and smollm2-drafts.json. A part whose record is not there yet says so.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from spectr_lite import models
from spectr_lite.book import plotting
from spectr_lite.book.recorded import summary, table

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "book" / "_generated"
DATA = models.DATA
ABOUT = {  # pair: target, draft, licence, where from
    "bundled": ("our own", "our own, distilled", "CC0-1.0", "in the package"),
    "smollm2-distilled": (
        "SmolLM2-135M",
        "our own, distilled",
        "Apache-2.0",
        "`make smollm2`; draft in the package",
    ),
    "smollm2-trigram": (
        "SmolLM2-135M",
        "counts of three tokens",
        "Apache-2.0",
        "`make smollm2`; text in the package",
    ),
    "smollm2": ("SmolLM2-135M", "the same, 6 layers dropped", "Apache-2.0", "`make smollm2`"),
    "smollm2-drop3": ("SmolLM2-135M", "the same, 3 layers dropped", "Apache-2.0", "`make smollm2`"),
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
        rows.append(
            [
                f"`{entry['draft']}`",
                millions(entry["parameters_beside_the_embedding"]),
                f"{entry['cost']:.3f}",
                f"{text['acceptance']:.3f}",
                f"{text['kseq']['8']:.3f}",
                f"{text['optimum']['8']:.3f}",
            ]
        )
    head = ["pair", "own parameters", "cost", "one draft", "K-SEQ, $k=8$", "optimum, $k=8$"]
    return table(head, rows) + f"\nRun `{found['run']}`.\n"


def curves() -> str:
    """Draw the bundled pair's training; return what its last tenth still gained."""
    run = json.loads((DATA / "sotu" / "config.json").read_text())["run"]
    records = ROOT / "results" / "train-pair" / run
    lines = [json.loads(line) for line in (records / "curve.jsonl").read_text().splitlines()]
    evaluation = json.loads((records / "evaluation.json").read_text())
    text = evaluation["tokens"]["train"]
    stages = {
        stage: [line for line in lines if line["stage"] == stage]
        for stage in ("target", "draft", "distil")
    }

    plotting.use_style()
    figure, (loss, acceptance) = plt.subplots(1, 2, figsize=(7.2, 3.2), width_ratios=(3, 2))
    for stage in ("target", "draft"):
        rows = [row for row in stages[stage] if row["step"]]
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
    rows = stages["distil"]
    acceptance.plot(
        [row["tokens"] / 1e6 for row in rows],
        [row["held_out_acceptance"] for row in rows],
        "-",
        color=plotting.COLORS["draft"],
    )
    settings = json.loads((records / "config.json").read_text())
    switch = rows[-1]["tokens"] / 1e6 * settings["total_variation_from"]
    acceptance.axvline(switch, color=plotting.COLORS["coupling"], linestyle="--")
    acceptance.annotate(
        "total variation →",
        (switch, rows[0]["held_out_acceptance"]),
        (-4, 0),
        textcoords="offset points",
        ha="right",
    )
    acceptance.set(xlabel="million tokens of distillation", ylabel="acceptance, one draft")
    figure.savefig(OUT / "training.svg")
    plt.close(figure)

    parts = []
    for stage in ("target", "draft"):
        rows = {row["step"]: row["held_out_loss"] for row in stages[stage]}
        end = settings[f"fit_{stage}"]["steps"]
        tenth = min(rows, key=lambda step: abs(step - 0.9 * end))
        parts.append(f"{rows[tenth] - rows[end]:.3f} nats for the {stage}")
    before, after = evaluation["test_before_distillation"], evaluation["test"]
    return (
        f"The last tenth of the steps still gained {' and '.join(parts)}. Distillation raised the "
        f"acceptance of one draft on the test speeches from {before['acceptance']:.3f} to "
        f"{after['acceptance']:.3f}; the draft's own loss there went from "
        f"{before['draft_loss']:.3f} to {after['draft_loss']:.3f} nats. Run `{run}`.\n"
    )


def card(folder: str) -> str:
    """A model card as a part of a page: without its title, its headings one level down."""
    path = DATA / folder / "card.md"
    if not path.is_file():
        return "*Not in the package yet.*\n"
    text = path.read_text("utf-8").split("\n", 1)[1].lstrip("\n")
    return re.sub(r"^(#+ )", r"#\1", text, flags=re.M)


def write_models_page() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    parts = {
        "models-pairs": pairs(),
        "models-quality": quality(),
        "models-smollm2": smollm2_drafts(),
        "models-training": curves(),
        "models-card-sotu": card("sotu"),
        "models-card-smollm2": card("smollm2"),
    }
    for name, content in parts.items():
        (OUT / f"{name}.md").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    write_models_page()
