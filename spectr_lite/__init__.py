"""Multi-draft speculative decoding as optimal transport, small enough to read in an afternoon."""

__version__ = "0.1.0"
