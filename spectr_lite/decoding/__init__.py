"""Draft, score, select, emit: the SpecTr loop, and its exact distribution on tiny models."""

from spectr_lite.decoding.loop import Decoder, Generation, Turn, decode, generate
from spectr_lite.decoding.sampling import Sampling
from spectr_lite.decoding.state import Tree

__all__ = ["Decoder", "Generation", "Sampling", "Tree", "Turn", "decode", "generate"]
