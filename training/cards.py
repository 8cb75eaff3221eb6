"""Model cards, written from what a run recorded and what it put into the package.

    python -m training.cards     both cards again, from results/ and the weights that ship

An export writes them too. Beside them: the cost of a model, which a card compares.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import jinja2

from spectr_lite.commands.ending import ended


def render(template: str, **values: object) -> str:
    """A file of training/templates; there `x | show(".3f")` is format(x, ".3f")."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    pages = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters["show"] = format
    return pages.get_template(template).render(values)


def put(path: Path, content: bytes) -> dict[str, str]:
    """Write one file of a shipped pair; returns its entry for config.json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {"file": path.name, "sha256": hashlib.sha256(content).hexdigest()}


def main() -> None:
    from training import pair, smollm2_draft  # which import this module

    for module in (pair, smollm2_draft):
        path = module.SHIPPED / "card.md"
        path.write_text(module.card(), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    sys.exit(ended("training.cards", main))
