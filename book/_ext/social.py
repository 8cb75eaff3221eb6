"""A description and a picture for each page, where a link to it is shown elsewhere.

Description: the page's first paragraph. Picture: the title on a card, drawn at the build; one PNG of
about 20 kB a page. The addresses in it derive from the repository's, as GitHub Pages would serve it.
"""

from __future__ import annotations

import html
import re
import textwrap
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from docutils import nodes
from sphinx.application import Sphinx

LONGEST = 200  # characters of a description
FRACTION = re.compile(r"\\[td]?frac(?:(\d)|\{(\d+)\})(?:(\d)|\{(\d+)\})")
BLUE, ORANGE, INK = "#0072B2", "#E69F00", "#1F2933"


def address_of_site(app: Sphinx) -> str:
    """https://owner.github.io/name/ for https://github.com/owner/name; html_baseurl when it is set."""
    if app.config.html_baseurl:
        return app.config.html_baseurl.rstrip("/") + "/"
    owner, name = (
        urlsplit(app.config.html_theme_options["repository_url"]).path.strip("/").split("/")
    )
    return f"https://{owner.lower()}.github.io/{name}/"


def description_of(doctree: nodes.document) -> str:
    """The chapter's own summary, which stands in italics, or else the first paragraph; cut at a word."""
    found = []
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(_spoken(paragraph).split())
        if len(text) >= 40 and not isinstance(paragraph.parent, nodes.entry):
            found.append((not isinstance(paragraph[0], nodes.emphasis), len(found), text))
    return textwrap.shorten(min(found)[2], LONGEST, placeholder=" …") if found else ""


def _spoken(node: nodes.Node) -> str:
    """Text without TeX's own marks: a description is read as plain words."""
    if isinstance(node, nodes.math):
        return re.sub(r"[\\{}]", "", FRACTION.sub(r"\1\2/\3\4", node.astext()))
    if isinstance(node, nodes.Text) or not node.children:
        return node.astext()
    return "".join(map(_spoken, node.children))


def draw_card(path: Path, title: str) -> None:
    """1200 x 630: the book's mark (drafts on the left, the kept one on the right), then the title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 1200), ylim=(630, 0))
    axes.axis("off")
    axes.add_patch(Rectangle((0, 0), 1200, 14, color=BLUE))
    for height, width in ((120, 110), (165, 70), (210, 140)):
        axes.add_patch(Rectangle((90, height), width, 22, color=ORANGE))
        axes.plot([90 + width, 300], [height + 11, 176], color="#9AA4AE", linewidth=2.5)
    axes.add_patch(Rectangle((300, 160), 150, 32, color=BLUE))
    lines = textwrap.wrap(title, 34)[:3]
    size = 46 if len(lines) < 3 else 38
    axes.text(
        90, 310, "\n".join(lines), size=size, weight="bold", color=INK, va="top", linespacing=1.2
    )
    axes.text(
        90, 572, "SpecTr: speculative decoding as optimal transport", size=22, color="#4A5560"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.set_size_inches(12, 6.3)
    FigureCanvasAgg(figure).print_png(path)


def add_tags(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    if doctree is None:
        return
    title = app.env.titles[page].astext()
    card = f"_static/cards/{page.replace('/', '-')}.png"
    draw_card(Path(app.outdir) / card, title)
    description = description_of(doctree) or title
    site = address_of_site(app)
    tags = {
        "description": description,
        "og:title": title,
        "og:description": description,
        "og:type": "article",
        "og:site_name": app.config.html_title,
        "og:url": f"{site}{page}.html",
        "og:image": f"{site}{card}",
        "og:image:alt": f"{title}, a page of the book {app.config.html_title}",
        "twitter:card": "summary_large_image",
    }
    lines = (
        f'<meta {"property" if name.startswith("og:") else "name"}="{name}" '
        f'content="{html.escape(content, quote=True)}">'
        for name, content in tags.items()
    )
    context["metatags"] = context.get("metatags", "") + "\n".join(lines) + "\n"


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", add_tags)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
