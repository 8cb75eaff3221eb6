"""Models of the Hugging Face hub: pairs to decode with, and the loop inside transformers' `generate`.

Needs transformers >= 5. Explained in chapter 8.
"""

try:
    import transformers as _transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        "decoding with models of transformers needs it: pip install 'transformers>=5'"
    ) from error

from spectr_lite.huggingface.generate import decoder
from spectr_lite.huggingface.pairs import load_pair

__all__ = ["decoder", "load_pair"]
