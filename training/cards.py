"""Model cards, written from what a run recorded and what it put into the package.

    python -m training.cards     both cards again, from results/ and the weights that ship

An export writes them too. Beside them: the cost of a model, which a card compares.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import jinja2
import torch
from torch.utils.flop_counter import FlopCounterMode

from spectr_lite.models.transformer import Transformer

DRAFT_LENGTH = 4  # of every predicted block efficiency


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


def multiply_adds(model: Transformer) -> int:
    """Per token, of the matrix products alone; attention over a context is left out."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.int64, device=model.device))
    products = counter.get_flop_counts().get("Global", {})
    return sum(count for name, count in products.items() if "mm" in str(name)) // 2


def own_parameters(draft: Transformer) -> int:
    """Parameters but for the embedding, which a draft of SmolLM2 shares with its target."""
    return sum(p.numel() for name, p in draft.named_parameters() if name != "embed_tokens.weight")


def speed(acceptance: float, cost: float) -> float:
    """Predicted gain of drafting one path, if a call of the target costs the same for all of it."""
    tokens = sum(acceptance**depth for depth in range(DRAFT_LENGTH + 1))
    return tokens / (1 + DRAFT_LENGTH * cost)


def main() -> None:
    from training import pair, smollm2_draft  # which import this module

    for module in (pair, smollm2_draft):
        path = module.SHIPPED / "card.md"
        path.write_text(module.card(), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
