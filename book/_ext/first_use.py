"""Link the first use of each glossary term on a page to its entry.

The terms are read from book/glossary.md. Names that are also everyday words are left to the author's
own {term}`...`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

EVERYDAY = {"cut", "draft", "target", "residual", "turn"}
NOT_ON = {"book/glossary", "book/notation", "book/references", "book/how-to-cite", "book/api"}
NOT_IN = (
    nodes.title,
    nodes.reference,
    nodes.literal,
    nodes.term,
    nodes.caption,
    nodes.raw,
    pending_xref,
)


def terms_of(glossary: Path) -> dict[str, str]:
    """Every term in lower case, with the way its entry writes it."""
    block = re.search(r"```\{glossary\}\n(.*?)```", glossary.read_text(encoding="utf-8"), re.S)[1]
    return {line.lower(): line for line in block.splitlines() if re.match(r"\S", line)}


def link_first_uses(app: Sphinx, doctree: nodes.document) -> None:
    docname = app.env.docname
    if docname in NOT_ON:
        return
    terms = terms_of(Path(app.srcdir) / "book" / "glossary.md")
    linked = {
        node["reftarget"].lower()
        for node in doctree.findall(pending_xref)
        if node.get("reftype") == "term"
    }
    left = {term for term in terms if term not in EVERYDAY} - linked
    for paragraph in doctree.findall(nodes.paragraph):
        for text in list(paragraph.findall(nodes.Text)):
            if not left:
                return
            if not _inside(text, NOT_IN):
                text.parent.replace(text, _linked(str(text), terms, left, docname))


def _linked(text: str, terms: dict[str, str], left: set[str], docname: str) -> list[nodes.Node]:
    """The text in pieces, each term in `left` that it holds a link; such terms leave `left`."""
    longest_first = sorted(left, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, longest_first))})(?![\w-])", re.I)
    found: list[nodes.Node] = []
    end = 0
    for match in pattern.finditer(text):
        term = match[1].lower()
        if term not in left:
            continue
        left.remove(term)
        link = pending_xref(
            "",
            nodes.inline("", match[1], classes=["first-use"]),
            refdomain="std",
            reftype="term",
            reftarget=terms[term],
            refdoc=docname,
            refexplicit=True,
            refwarn=True,
        )
        found += [nodes.Text(text[end : match.start()]), link]
        end = match.end()
    return [*found, nodes.Text(text[end:])]


def _inside(node: nodes.Node, kinds: tuple[type[nodes.Node], ...]) -> bool:
    while node := node.parent:
        if isinstance(node, kinds):
            return True
    return False


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", link_first_uses)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
