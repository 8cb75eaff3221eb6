"""Every architecture of the installed transformers inside `generate`: the same text, or a refusal.

The models are tiny and random (tiny_architectures.py); windows are 8 tokens, contexts 24. Greedy
texts show every logit: equal logits under the same coins are also equal distributions.
"""

from __future__ import annotations

import re

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5")

from tiny_architectures import CONTEXT, WINDOW, tiny_model  # noqa: E402
from transformers.models.auto.modeling_auto import (  # noqa: E402
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as ARCHITECTURES,
)

from spectr_lite.huggingface import decoder  # noqa: E402

NOT_BUILT = {  # not to be had tiny, or `generate` itself cannot write with them
    "blt": "generate asks its configuration for num_hidden_layers, which it has not",
    "dots3_note": "its sizes differ from layer to layer",
    "gemma4_assistant": "it reads the cache of the model that it drafts for",
    "gemma4_unified_assistant": "it reads the cache of the model that it drafts for",
    "gemma3n": "it needs the package timm",
    "musicgen": "it writes audio codes behind an encoder",
    "musicgen_melody": "it writes audio codes behind an encoder",
}
WHAT_TO_DO = r"(Choose|Call|Lower|Give|Leave|Make|Shorten|Decode without)"
SERVED = (
    "llama qwen2 qwen3 qwen3_moe mistral mixtral gemma gemma2 gemma3 gemma3_text gpt2 gpt_neo gpt_neox "
    "gptj opt phi phi3 falcon olmo2 smollm3 starcoder2 stablelm deepseek_v3 cohere2 granite glm4 gpt_oss"
)


def greedy(model, ids, length, **loop):
    """The text of `length` tokens in all that generate writes, padding as a mask."""
    ids = torch.tensor(ids)
    settings = {"attention_mask": (ids != 0).long(), "do_sample": False, "eos_token_id": None}
    return model.generate(ids, max_new_tokens=length - ids.shape[1], **settings, **loop)


def same_or_refused(model, ids, length, num_drafts, draft_length) -> str | None:
    """None where the texts are the same, else the refusal."""
    loop = decoder(model, num_drafts=num_drafts, draft_length=draft_length)
    try:
        ours = greedy(model, ids, length, custom_generate=loop)
    except ValueError as refusal:
        assert re.search(WHAT_TO_DO, str(refusal))
        return str(refusal)
    assert torch.equal(greedy(model, ids, length), ours)
    return None


@pytest.mark.parametrize("kind", sorted(set(ARCHITECTURES) - set(NOT_BUILT)))
@pytest.mark.filterwarnings("ignore")
def test_greedy_text_of_every_architecture(kind):
    """Two texts inside the window, one of them padded; and two up to the end of the context."""
    model = tiny_model(kind)
    refused = same_or_refused(model, [[4, 5, 6, 7], [0, 3, 9, 8]], WINDOW - 1, 1, 1)
    assert refused is None or kind not in SERVED.split()
    if refused is None:
        same_or_refused(model, [[4, 5, 6, 7, 8]], WINDOW + 6, 0, 1)
        same_or_refused(model, [[4, 5, 6, 7, 8], [0, 0, 9, 8, 7]], CONTEXT, 2, 3)
