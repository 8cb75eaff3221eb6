"""A decoded text that shows the fate of each token, on a terminal and in a notebook.

Explained in chapter 8. Never by colour alone: a page underlines accepted tokens, with dashes
corrected ones and doubly the bonus; a terminal shows corrected tokens inverse and the bonus bold.
Both strike through rejected tokens.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from spectr_lite.decoding import Turn

Piece = tuple[str, str]  # (kind, text)

LEGEND: list[Piece] = [
    ("prompt", "prompt"),
    ("accepted", "drafted and accepted"),
    ("corrected", "replaced by the large model"),
    ("bonus", "straight from the large model"),
]
ANSI = {"prompt": "2", "accepted": "4;32", "corrected": "7;33", "bonus": "1;34", "rejected": "9;2"}
# Zero specificity: a site's own rules for these classes win. Translucent: readable on light and dark.
STYLE = """<style>
:where(.tok-text) { white-space: pre-wrap; line-height: 1.9; }
:where(.tok-accepted) { background: rgba(0, 158, 115, .18); border-bottom: 2px solid; }
:where(.tok-corrected) { background: rgba(213, 94, 0, .18); border-bottom: 2px dashed; }
:where(.tok-bonus) { background: rgba(0, 114, 178, .18); border-bottom: 4px double; }
:where(.tok-rejected) { text-decoration: line-through; }
</style>"""


class TextStream:
    """The text that each token adds; the first bytes of a character add none until it is complete."""

    def __init__(self, tokenizer: Tokenizer, tokens: Sequence[int] = ()) -> None:
        self.tokenizer, self.tokens, self.shown = tokenizer, list(tokens), ""
        self.shown = self._text()

    def add(self, token: int) -> str:
        self.tokens.append(token)
        text = self._text()
        new, self.shown = text[len(self.shown) :], text
        return new

    def _text(self) -> str:
        return self.tokenizer.decode(self.tokens).removesuffix("\N{REPLACEMENT CHARACTER}")


def pieces(
    tokenizer: Tokenizer, prompt: Sequence[int], turns: Iterable[Turn], row: int = 0
) -> list[Piece]:
    """The prompt and every token of this row as (kind, text)."""
    stream = TextStream(tokenizer, prompt)
    found = [("prompt", stream.shown)]
    for turn in turns:
        for kind, token in zip(turn.kinds(row), turn.tokens(row), strict=True):
            found.append((kind, stream.add(token)))
    return found


def to_ansi(kind: str, text: str) -> str:
    """One piece for a terminal."""
    return f"\033[{ANSI[kind]}m{text}\033[0m"


def to_html(marked: Sequence[Piece], legend: bool = True) -> str:
    """Pieces as one paragraph under their legend, in spans of class tok-<kind>."""

    def spans(some: Sequence[Piece], between: str = "") -> str:
        return between.join(
            f'<span class="tok-{kind}">{html.escape(text)}</span>' for kind, text in some
        )

    keys = f'<p class="tok-legend">{spans(LEGEND, " &nbsp; ")}</p>' if legend else ""
    return f'{STYLE}{keys}<p class="tok-text">{spans(marked)}</p>'
