"""SmolLM2-135M-Instruct, a pretrained model that a package index has, and four drafts for it.

    smollm2, smollm2-drop3   the model without six or three middle layers, untrained: they agree with
                             it often, and cost too much to save time
    smollm2-distilled        a narrow model of our own, trained on text the model wrote; in the package
    smollm2-trigram          counts of three tokens in text the model wrote; in the package

`make smollm2` fetches the model once (98 MB). Apache-2.0, by Hugging Face (arXiv 2502.02737).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from spectr_lite.models.ngram import TrigramModel
from spectr_lite.models.transformer import Transformer, TransformerConfig
from spectr_lite.models.weights import (
    architecture,
    drop_layers,
    fill,
    load_gguf,
    read,
    read_weights,
)

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = Path(__file__).resolve().parents[2] / "data" / "smollm2"
SHIPPED = Path(__file__).parent / "data" / "smollm2"


class NarrowDraft(Transformer):
    """A narrow trunk that reads another model's embedding E and proposes `proposed` tokens only.

        x = W_in E[token];   logits = W_out norm(trunk(x)) + b on the proposed tokens, -inf elsewhere

    A draft may leave tokens out: every verifier is lossless whatever the way of drafting, and what it
    never proposes it never gets accepted. The head, at a vocabulary of 49,152 most of a small
    model's work, shrinks with the list. Source: FR-Spec (arXiv 2502.14856).
    """

    def __init__(self, config: TransformerConfig, embedding_width: int, proposed: int) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, embedding_width)
        self.input = nn.Linear(embedding_width, config.width, bias=False)
        self.output = nn.Linear(config.width, proposed)
        self.register_buffer("proposed", torch.arange(proposed))

    def embed(self, tokens: Tensor) -> Tensor:
        return self.input(self.embed_tokens(tokens))

    def head(self, hidden: Tensor) -> Tensor:
        logits = self.output(hidden)
        out = logits.new_full((*logits.shape[:-1], self.vocab_size), -torch.inf)
        return out.index_copy_(-1, self.proposed, logits)


def load_narrow(folder: Path, target: Transformer) -> NarrowDraft:
    """The draft in `folder`, in the dtype and on the device of `target`, whose embedding it shares.

    Raises FileNotFoundError or ValueError for a file that is missing, corrupt or does not fit.
    """
    entry = json.loads(read(folder / "config.json"))["draft"]
    path = folder / entry["file"]
    weights = read_weights(path, entry["sha256"])
    vectors = target.embed_tokens.weight
    shape = architecture(entry["architecture"], path)
    if shape.vocab_size != target.vocab_size:
        raise ValueError(
            f"{folder}: a draft for {shape.vocab_size} tokens, but the target has "
            f"{target.vocab_size}; give the target named in config.json"
        )
    with torch.device("meta"):
        model = NarrowDraft(shape, vectors.shape[1], entry["proposed"])
    own = {
        name: tensor.to(vectors.device, torch.int64 if name == "proposed" else vectors.dtype)
        for name, tensor in weights.items()
    }
    return fill(model, own | {"embed_tokens.weight": vectors}, path)


def load_trigram(folder: Path, target: Transformer) -> TrigramModel:
    """A trigram model of the texts in `folder`, which the target wrote; on its device."""
    entry = json.loads(read(folder / "config.json"))["text"]
    texts = read_weights(folder / entry["file"], entry["sha256"])["tokens"].long()
    return TrigramModel(texts, target.vocab_size).to(target.device)


def load_target(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    folder: Path = FOLDER,
) -> tuple[Transformer, Tokenizer]:
    """The model and its tokenizer.

    Raises FileNotFoundError or ValueError for a file that is missing or not the one published, and
    ImportError without the package `gguf`.
    """
    path = folder / FILE
    read(path, SHA256, remedy="run `make smollm2`, which fetches it anew (98 MB)")
    model, tokenizer = load_gguf(path)
    return model.to(device, dtype), tokenizer


DROPPED = {  # pair: the layers its draft lacks
    "smollm2": (12, 13, 14, 15, 16, 17),
    "smollm2-drop3": (15, 16, 17),
}
DRAFTS: dict[str, Callable[[Transformer], nn.Module]] = {
    **{name: partial(drop_layers, layers=layers) for name, layers in DROPPED.items()},
    "smollm2-distilled": partial(load_narrow, SHIPPED),
    "smollm2-trigram": partial(load_trigram, SHIPPED),
}


def load(
    name: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    folder: Path = FOLDER,
) -> tuple[Transformer, nn.Module, Tokenizer]:
    """Target, draft and tokenizer of the pair `name`, one of DRAFTS. Errors as of the parts."""
    target, tokenizer = load_target(device, dtype, folder)
    return target, DRAFTS[name](target), tokenizer
