"""sphinxext-opengraph with a description of our own; its settings are in `_config.yml`.

The library's description is the page's first 200 characters, cut inside a word: headings run into the
text, a formula is shown as TeX, and quotes as entities. It has no setting for another.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinxext import opengraph

FRACTION = re.compile(r"\\[td]?frac(?:(\d)|\{(\d+)\})(?:(\d)|\{(\d+)\})")


def description_of(doctree: nodes.document, length: int, titles: set[str]) -> str:
    """The chapter's own summary, which stands in italics, or else the first paragraph; cut at a word."""
    found = []
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(_spoken(paragraph).split())
        if len(text) >= 40 and not isinstance(paragraph.parent, nodes.entry):
            found.append((not isinstance(paragraph[0], nodes.emphasis), len(found), text))
    return textwrap.shorten(min(found)[2], length, placeholder=" …") if found else min(titles)


def _spoken(node: nodes.Node) -> str:
    """Text without TeX's own marks: a description is read as plain words."""
    if isinstance(node, nodes.math):
        return re.sub(r"[\\{}]", "", FRACTION.sub(r"\1\2/\3\4", node.astext()))
    if isinstance(node, nodes.Text) or not node.children:
        return node.astext()
    return "".join(map(_spoken, node.children))


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("sphinxext.opengraph")
    opengraph.get_description = description_of
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
