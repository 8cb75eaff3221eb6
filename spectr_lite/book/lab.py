"""The transport lab in a notebook: two distributions to move, and each rule beside the optimum.

Explained on the book's page "Transport lab".

    from spectr_lite.book import lab
    lab.explore()                 with sliders; needs ipywidgets, which Colab has
    lab.figure(draft, target, k)  the same picture without them
"""

from __future__ import annotations

import itertools
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectr_lite import distributions, transport, verifiers
from spectr_lite.book.plotting import COLORS, LABELS, use_style
from spectr_lite.distributions import ArrayLike, check_count, check_pair
from spectr_lite.transport import nested
from spectr_lite.verifiers import kseq

RULES = ("optimal", "kseq", "recursive", "coupling")
MOST_DRAFTS = 16
LETTERS = "abcdefghijklmnop"


def acceptances(draft: ArrayLike, target: ArrayLike) -> dict[str, list[float]]:
    """P(Y in S) of each rule for k = 1 to 16. "coupling" uses one draft, so it does not change."""
    one = float(verifiers.get("coupling").acceptance(draft, target, 1))
    ks = range(1, MOST_DRAFTS + 1)
    found = {"optimal": [float(transport.optimal_acceptance(draft, target, k)) for k in ks]}
    for name in ("kseq", "recursive"):
        found[name] = [float(verifiers.get(name).acceptance(draft, target, k)) for k in ks]
    return {**found, "coupling": [one] * MOST_DRAFTS}


def figure(draft: ArrayLike, target: ArrayLike, k: int = 2) -> Figure:
    """Four pictures of one pair (V,): the distributions, acceptance against k, K-SEQ's residual, and
    the nested pools of the optimal plan.

    Raises ValueError for bad distributions, a batch, more than 16 tokens, or k outside 1 to 16.
    """
    pair = check_pair(draft, target)
    if pair.draft.ndim != 1 or len(pair.draft) > len(LETTERS):
        raise ValueError(
            f"draft: shape {tuple(pair.draft.shape)}. The lab shows one pair of at most "
            f"{len(LETTERS)} tokens."
        )
    if check_count(k, "k") > MOST_DRAFTS:
        raise ValueError(f"k: found {k}. The lab shows 1 to {MOST_DRAFTS} drafts.")
    p, q = pair.draft.double(), pair.target.double()
    made, ((distributions, curves), (parts, pools)) = plt.subplots(2, 2, figsize=(9, 6.2))
    _draw_pair(distributions, p.numpy(), q.numpy())
    _draw_curves(curves, acceptances(p.numpy(), q.numpy()), k)
    _draw_kseq(parts, p, q, k)
    _draw_pools(pools, p, q, k)
    return made


def _draw_pair(axis: Axes, p: np.ndarray, q: np.ndarray) -> None:
    tokens = np.arange(len(p))
    for probs, name, shift in ((p, "draft", -0.2), (q, "target", 0.2)):
        axis.bar(tokens + shift, probs, 0.36, color=COLORS[name], label=LABELS[name])
    axis.set(title="two distributions", ylim=(0, max(p.max(), q.max()) * 1.3))
    axis.set_xticks(tokens, LETTERS[: len(p)])
    axis.legend(loc="upper right", ncols=2)


def _draw_curves(axis: Axes, found: dict[str, list[float]], k: int) -> None:
    ks = np.arange(1, MOST_DRAFTS + 1)
    for rule in RULES:
        label = f"{LABELS[rule]} {found[rule][k - 1]:.4f}"
        axis.plot(ks, found[rule], color=COLORS[rule], label=label)
        axis.plot(k, found[rule][k - 1], "o", color=COLORS[rule])
    axis.axvline(k, color=COLORS["coupling"], lw=0.8, zorder=0)
    axis.set(title=f"acceptance, here at k = {k}", xlabel="drafts $k$")
    axis.set_xticks([1, 4, 8, 12, 16])
    axis.legend(loc="lower right", bbox_to_anchor=(1, 0.1), fontsize=9)


def _draw_kseq(axis: Axes, p: torch.Tensor, q: torch.Tensor, k: int) -> None:
    rho = kseq.optimal_rho(p, q, k)
    left = kseq.residual(p, q, rho, k).numpy()
    tokens = np.arange(len(p))
    emitted = q.numpy() - left
    axis.bar(tokens, emitted, 0.6, color=COLORS["kseq"], label="the loop")
    box: dict[str, Any] = {"facecolor": "none", "edgecolor": COLORS["kseq"], "hatch": "///"}
    axis.bar(tokens, left, 0.6, bottom=emitted, label="residual", **box)
    axis.hlines(q, tokens - 0.36, tokens + 0.36, color=COLORS["target"], lw=3)
    axis.set(title=rf"K-SEQ at $\rho^\star$ = {rho.item():.4f}", ylim=(0, q.max().item() * 1.3))
    axis.set_xticks(tokens, LETTERS[: len(p)])
    axis.legend(loc="upper right", ncols=2)


def _draw_pools(axis: Axes, p: torch.Tensor, q: torch.Tensor, k: int) -> None:
    plan = nested.plan(p, q, k)
    tau = plan.activation.numpy()
    size = len(tau)
    levels = [*np.unique(tau[tau < 1]), 1.0]
    for low, high in itertools.pairwise(levels):
        cuts = [*np.flatnonzero(tau <= low), size]
        for a, b in itertools.pairwise(cuts):
            shade = {"color": COLORS["optimal"], "alpha": 0.16 + 0.31 * (a + b) / size, "lw": 0}
            axis.fill_between([a + 0.03, b - 0.03], low, high, **shade)
    order = plan.class_of.argsort().tolist()
    axis.set(title="optimal plan: nested pools", ylabel="$Z$", xlim=(0, size), ylim=(0, 1))
    axis.set(xlabel="tokens by $q/p$")
    axis.set_xticks(np.arange(size) + 0.5, [LETTERS[token] for token in order])
    axis.grid(False)


def explore(draft: ArrayLike | None = None, target: ArrayLike | None = None, k: int = 2) -> Any:
    """A slider for every bar and for k, above the figure; without arguments, the book's example.

    Each distribution is its sliders' values divided by their sum. Returns the widget, which a
    notebook shows. Raises ImportError without ipywidgets, ValueError for what `figure` refuses.
    """
    try:
        import ipywidgets as widgets
    except ImportError as error:
        raise ImportError(
            "lab.explore needs ipywidgets: pip install ipywidgets, then restart the kernel. "
            "lab.figure(draft, target, k) draws the same without it."
        ) from error
    if draft is None or target is None:
        draft, target = distributions.three_tokens()
    pair = check_pair(draft, target)
    plt.close(figure(pair.draft, pair.target, k))  # raises for what it cannot draw

    def sliders(probs: torch.Tensor, name: str) -> list[Any]:
        look = {"style": {"handle_color": COLORS[name]}, "continuous_update": False}
        return [
            widgets.FloatSlider(
                float(value), max=1, step=0.01, description=f"{name} {token}", **look
            )
            for token, value in zip(LETTERS, probs, strict=False)
        ]

    columns = sliders(pair.draft, "draft"), sliders(pair.target, "target")
    count = {"min": 1, "max": MOST_DRAFTS, "description": "drafts k", "continuous_update": False}
    drafts = widgets.IntSlider(k, **count)
    output = widgets.Output()

    def redraw(_: Any = None) -> None:
        weights = [np.array([slider.value for slider in column]) for column in columns]
        with output:
            output.clear_output(wait=True)
            if not all(w.sum() > 0 for w in weights):
                print("Every slider of one colour is at 0: a distribution needs some mass.")
                return
            use_style()
            shown, wanted = (w / w.sum() for w in weights)
            made = figure(shown, wanted, drafts.value)
            plt.show()
            plt.close(made)

    for slider in (*columns[0], *columns[1], drafts):
        slider.observe(redraw, "value")
    redraw()
    return widgets.VBox([drafts, widgets.HBox([widgets.VBox(c) for c in columns]), output])
