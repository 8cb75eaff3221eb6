"""Multi-draft speculative decoding as optimal transport: selection rules, the optimum, a decoder."""

__version__ = "0.1.0"
