"""Draft, score, select, emit: the SpecTr loop, what it works on, and its exact law on tiny models."""

from spectr_lite.decoding.loop import (
    Decoder,
    Generation,
    Iteration,
    decode,
    generate,
)
from spectr_lite.decoding.sampling import Sampling
from spectr_lite.decoding.state import Tree

__all__ = ["Decoder", "Generation", "Iteration", "Sampling", "Tree", "decode", "generate"]
