"""One self-contained HTML page of an advice: the verdict, three figures, the table."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from spectr_experiments.records import Record
from spectr_lite.book.plotting import COLORS, LABELS, use_style

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
.verdict {{ font-size: 1.25rem; font-weight: 600 }}
figure {{ margin: 2rem 0; background: white; color: black; overflow-x: auto }}
figure svg {{ display: block; max-width: 100%; height: auto; margin: auto }}
figcaption {{ padding: .5rem 1rem }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ text-align: right; padding: .2rem .7rem; border-bottom: 1px solid #8886 }}
th:first-child, td:first-child {{ text-align: left }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def page(found: Record, verdict: Sequence[str]) -> str:
    """`found` is what `advise.summarise` says, `verdict` its sentences."""
    config = found["config"]
    names = {key: value for key, value in config.items() if value is not None}
    parts = [f'<p class="verdict">{html.escape(verdict[0])}</p>']
    parts += [f"<p>{html.escape(sentence)}</p>" for sentence in verdict[1:]]
    figures = (
        (_map, "Predicted speed over autoregressive decoding, best rule at each shape."),
        (_calls, "Cost of one call against the tokens that it reads, with 95% intervals."),
        (_depths, "Acceptance as a share of the exact optimum, at the nodes that K-SEQ came to."),
    )
    timed = found["settings"][0]["speed"] is not None
    for draw, caption in figures if timed else figures[2:]:
        parts.append(
            f"<figure>{_figure(draw, found, caption)}<figcaption>{caption}</figcaption></figure>"
        )
    rows = "".join(_row(setting) for setting in found["settings"])
    parts.append(
        '<div class="wide"><table><thead><tr><th>rule</th><th>K</th><th>L</th><th>tokens per call</th>'
        f"<th>cost of a turn</th><th>speed</th></tr></thead><tbody>{rows}</tbody></table></div>"
        "<p>Cost is in units of an autoregressive step. Brackets are 95% intervals.</p>"
    )
    asked = "".join(f"<li>{html.escape(f'{k}: {v}')}</li>" for k, v in names.items())
    parts.append(f"<details><summary>What was asked</summary><ul>{asked}</ul></details>")
    return PAGE.format(title="Which drafts pay", body="\n".join(parts))


def _row(setting: Record) -> str:
    numbers = "".join(
        "<td>{:.2f} [{:.2f}, {:.2f}]</td>".format(*setting[name]) if setting[name] else "<td>-</td>"
        for name in ("tokens", "cost", "speed")
    )
    shape = f"<td>{setting['num_drafts']}</td><td>{setting['draft_length']}</td>"
    return f"<tr><td>{html.escape(setting['verifier'])}</td>{shape}{numbers}</tr>"


def _figure(draw: Callable[[Axes, Record], None], found: Record, caption: str) -> str:
    """The figure as SVG, without the head of a file; its caption is the text for a screen reader."""
    with plt.rc_context({"svg.hashsalt": "advice", "svg.fonttype": "none"}):
        use_style()
        figure, axes = plt.subplots(figsize=(6.4, 3.8))
        draw(axes, found)
        text = io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(
        "<svg", f'<svg role="img" aria-label="{html.escape(caption)}"', 1
    )


def _map(axes: Axes, found: Record) -> None:
    config = found["config"]
    drafts, lengths = config["num_drafts"], config["draft_lengths"]
    speed = np.full((len(drafts), len(lengths)), np.nan)
    for setting in reversed(found["settings"]):  # the fastest is written last
        place = drafts.index(setting["num_drafts"]), lengths.index(setting["draft_length"])
        speed[place] = setting["speed"][0]
        rule = setting["verifier"]
        for text in [t for t in axes.texts if t.get_position() == place[::-1]]:
            text.remove()
        axes.text(
            place[1], place[0], f"{speed[place]:.2f}\n{rule}", ha="center", va="center", fontsize=8
        )
    far = max(1.05, float(np.nanmax(np.abs(np.log2(speed)))) + 0.1)
    axes.imshow(np.log2(speed), cmap="RdBu", vmin=-far, vmax=far, alpha=0.6, aspect="auto")
    axes.set_xticks(range(len(lengths)), lengths)
    axes.set_yticks(range(len(drafts)), drafts)
    axes.set(xlabel="draft length L", ylabel="drafts K")
    axes.grid(False)


def _calls(axes: Axes, found: Record) -> None:
    for role in ("target", "draft"):
        lines = sorted((c for c in found["calls"] if c["model"] == role), key=lambda c: c["tokens"])
        middle, low, high = np.array([line["milliseconds"] for line in lines]).T
        axes.errorbar(
            [line["tokens"] for line in lines], middle, [middle - low, high - middle],
            color=COLORS[role], marker="o", label=role,
        )  # fmt: skip
    axes.set(xlabel="tokens in one call", ylabel="milliseconds", xscale="log", ylim=(0, None))
    axes.legend()


def _depths(axes: Axes, found: Record) -> None:
    series: dict[str, list[Any]] = {}
    for line in found["depths"]:
        for rule, share in line["shares"].items():
            series.setdefault(rule, []).append((line["depth"], *share))
    for rule, points in series.items():
        depth, middle, low, high = np.array(points).T
        axes.errorbar(
            depth, middle, [middle - low, high - middle],
            color=COLORS.get(rule), marker="o", label=LABELS.get(rule, rule),
        )  # fmt: skip
    axes.set(xlabel="depth in the tree", ylabel="acceptance / optimum")
    axes.legend()
