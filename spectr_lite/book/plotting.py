"""One look, and one colour and one name per verifier, in every figure of the book."""

from __future__ import annotations

from importlib.resources import as_file, files

import matplotlib.style

# Okabe and Ito's palette first, then darker tones of it; no yellow, which nobody sees on white.
COLORS = {
    "draft": "#E69F00",
    "target": "#0072B2",
    "coupling": "#7A828C",
    "kseq": "#D55E00",
    "naive": "#56B4E9",
    "recursive": "#009E73",
    "recursive-wor": "#00664B",
    "spechub": "#CC79A7",
    "importance": "#8C4A86",
    "target-only": "#A08400",
    "optimal": "#1F2933",
    "block": "#4C8DCA",
    "traversal": "#8A3B00",
    "multipath-block": "#5E8C31",
    "optimal-block": "#B3123F",
}

LABELS = {
    "draft": "draft $p$",
    "target": "target $q$",
    "coupling": "one draft (maximal coupling)",
    "kseq": "K-SEQ",
    "naive": "naive",
    "recursive": "recursive rejection",
    "recursive-wor": "recursive, without replacement",
    "spechub": "SpecHub",
    "importance": "importance sampling",
    "target-only": "target only",
    "optimal": "exact optimum",
    "block": "block verification",
    "traversal": "traversal",
    "multipath-block": "greedy multi-path block",
    "optimal-block": "optimal selection + block",
}


def use_style() -> None:
    """Apply book.mplstyle; in a notebook, show figures as SVG, sharp at any size."""
    with as_file(files("spectr_lite.book") / "book.mplstyle") as style:
        matplotlib.style.use(style)
    try:
        from IPython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:
        return
    if get_ipython() is not None:
        set_matplotlib_formats("svg")
