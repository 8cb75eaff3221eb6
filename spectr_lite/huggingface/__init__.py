"""Models of the Hugging Face hub: pairs to decode with, and the loop inside transformers' `generate`."""

from typing import Any

from spectr_lite.huggingface.pairs import load_pair

__all__ = ["decoder", "load_pair"]


def __getattr__(name: str) -> Any:
    if name == "decoder":  # needs transformers, which a pair of Llamas does not
        from spectr_lite.huggingface.generate import decoder

        return decoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
