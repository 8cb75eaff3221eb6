"""Language models to decode with, the pairs of them that this book measures, and the prompts."""

from spectr_lite.models.interface import LanguageModel
from spectr_lite.models.pairs import (
    DATA,
    END_OF_TEXT,
    PAIRS,
    ModelPair,
    load_pair,
    pair_names,
)
from spectr_lite.models.transformer import KVCache, Transformer, TransformerConfig

__all__ = [
    "DATA",
    "END_OF_TEXT",
    "PAIRS",
    "KVCache",
    "LanguageModel",
    "ModelPair",
    "Transformer",
    "TransformerConfig",
    "load_pair",
    "pair_names",
]
