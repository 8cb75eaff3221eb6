"""SmolLM2-135M-Instruct, a pretrained model that a package index has, and four drafts for it.

    smollm2, smollm2-drop3   the model without six or three middle layers, untrained: they agree with
                             it often, and cost too much to save time
    smollm2-distilled        a narrow model of our own, trained on text the model wrote; in the package
    smollm2-trigram          counts of three tokens in text the model wrote; in the package

`make smollm2` fetches the model once (98 MB) and converts it to float32 (540 MB). Apache-2.0, by
Hugging Face (arXiv 2502.02737). Explained in chapter 8.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from spectr_lite.models.interface import LanguageModel
from spectr_lite.models.ngram import TrigramModel
from spectr_lite.models.transformer import Transformer, TransformerConfig
from spectr_lite.models.weights import (
    drop_layers,
    read_architecture,
    read_config,
    read_model,
    read_tokenizer,
    read_weights,
    set_weights,
)

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"  # as it is published, in llama.cpp's format
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = Path(__file__).resolve().parents[2] / "data" / "smollm2"
SHIPPED = Path(__file__).parent / "data" / "smollm2"
FETCH = "run `make smollm2`, which fetches it (98 MB) and converts it"


class NarrowDraft(Transformer):
    """A narrow trunk that reads another model's embedding E and proposes `proposed` tokens only.

        x = W_in E[token];   logits = W_out norm(trunk(x)) + b on the proposed tokens, -inf elsewhere

    A draft may leave tokens out: every verifier is lossless for any draft, and the target still emits
    the others. At a vocabulary of 49,152 the output matrix is most of a small model's work; it
    shrinks to the proposed tokens. Source: FR-Spec (arXiv 2502.14856).
    """

    proposed: Tensor  # ids (proposed,)

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
    entry = read_config(folder, ["draft"])["draft"]
    weights = read_weights(folder, entry)
    vectors = target.embed_tokens.weight
    shape = read_architecture(folder, entry)
    if shape.vocab_size != target.vocab_size:
        raise ValueError(
            f"{folder}: a draft for {shape.vocab_size} tokens, but the target has "
            f"{target.vocab_size}; give the target named in config.json"
        )
    with torch.device("meta"):
        model = NarrowDraft(shape, vectors.shape[1], entry["proposed"])
    own = {
        name: tensor.to(
            vectors.device, torch.int64 if name == "proposed" else vectors.dtype, copy=True
        )
        for name, tensor in weights.items()
    }
    return set_weights(model, own | {"embed_tokens.weight": vectors}, folder / entry["file"])


def load_trigram(folder: Path, target: Transformer) -> TrigramModel:
    """A trigram model of the texts in `folder`, which the target wrote; on its device."""
    entry = read_config(folder, ["text"])["text"]
    texts = read_weights(folder, entry)["tokens"].long()
    return TrigramModel(texts, target.vocab_size).to(target.device)


def load_target(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    folder: Path = FOLDER,
) -> tuple[Transformer, Tokenizer]:
    """The model and its tokenizer, from the folder that `make smollm2` writes.

    Raises FileNotFoundError or ValueError for a file that is missing, corrupt, or made from another
    model than the one published.
    """
    config = read_config(folder, ("source", "target", "tokenizer"), FETCH)
    if config["source"]["sha256"] != SHA256:
        raise ValueError(
            f"{folder} was made from a file with SHA-256 {config['source']['sha256']}, not {SHA256}; "
            f"{FETCH}"
        )
    tokenizer = read_tokenizer(folder, config["tokenizer"], FETCH)
    return read_model(folder, config["target"], device, dtype, FETCH), tokenizer


DROPPED = {  # pair: the layers its draft lacks
    "smollm2": (12, 13, 14, 15, 16, 17),
    "smollm2-drop3": (15, 16, 17),
}
DRAFTS: dict[str, Callable[[Transformer], LanguageModel]] = {
    **{name: partial(drop_layers, layers=layers) for name, layers in DROPPED.items()},
    "smollm2-distilled": partial(load_narrow, SHIPPED),
    "smollm2-trigram": partial(load_trigram, SHIPPED),
}


def load(
    name: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    folder: Path = FOLDER,
) -> tuple[Transformer, LanguageModel, Tokenizer]:
    """Target, draft and tokenizer of the pair `name`, one of DRAFTS. Errors as of the parts."""
    target, tokenizer = load_target(device, dtype, folder)
    return target, DRAFTS[name](target), tokenizer
