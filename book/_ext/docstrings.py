"""Show plain docstrings on the API page: prose as prose, everything laid out by hand as it stands.

The package's docstrings are plain text. A paragraph that is indented, or aligned in columns, is a
formula or a list and is kept line by line; a column of names with their meanings becomes a list of
definitions; an example that the tests run is code; the rest is flowing text, in which `name` is code.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

LAID_OUT = re.compile(r"^\s|\S {2,}\S|^(?:- |\d+\. )")
ENTRY = re.compile(r"^(\w+(?:, \w+)*) {2,}(\S.*)$")
CONTINUED = re.compile(r"^ {8,}(\S.*)$")
MARKUP = re.compile(r"([*|\\]|(?<=\w)_(?!\w))")


def rewrite(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Plain text to reStructuredText, in place."""
    paragraphs = ["\n".join(group) for kept, group in groupby(lines, key=bool) if kept]
    out: list[str] = []
    for paragraph in paragraphs:
        if paragraph.lstrip().startswith(">>>"):
            out += [".. code-block:: python", "", *(f"    {s}" for s in paragraph.split("\n")), ""]
            continue
        if entries := defined(paragraph.split("\n")):
            for term, meaning in entries:
                out += [f"``{term}``", f"    {prose(meaning)}", ""]
            continue
        # "formula:" and the indented lines under it may stand in one paragraph
        parts = groupby(paragraph.split("\n"), key=lambda line: bool(LAID_OUT.search(line)))
        for laid_out, part in parts:
            if laid_out:
                out += [".. code-block:: text", "", *(f"    {line}" for line in part), ""]
            else:
                out += [prose(" ".join(part)), ""]
    lines[:] = out


def defined(lines: list[str]) -> list[tuple[str, str]]:
    """(name, meaning) of every entry when all the lines are such a column, else nothing."""
    entries: list[tuple[str, str]] = []
    for line in lines:
        if entry := ENTRY.match(line):
            entries.append((entry[1], entry[2]))
        elif entries and (more := CONTINUED.match(line)):
            entries[-1] = (entries[-1][0], f"{entries[-1][1]} {more[1]}")
        else:
            return []
    return entries


def prose(text: str) -> str:
    """`name` as code; nothing else is mark-up."""
    pieces = re.split(r"``?([^`]+)``?", text)
    return "".join(
        f"``{piece}``" if number % 2 else MARKUP.sub(r"\\\1", piece)
        for number, piece in enumerate(pieces)
    )


def plain_signatures(app: Sphinx, doctree: nodes.document) -> None:
    """Types in a signature are text: most are torch's and NumPy's, and not documented here."""
    for link in list(doctree.findall(pending_xref)):
        if any(
            isinstance(parent, nodes.Element) and "sig" in parent["classes"] for parent in _up(link)
        ):
            link.replace_self(link.children)


def _up(node: nodes.Node) -> Any:
    while node := node.parent:
        yield node


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", rewrite)
    app.connect("doctree-read", plain_signatures)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
