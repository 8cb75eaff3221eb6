"""K drafts and any selection rule inside transformers' own `generate`.

    from spectr_lite import huggingface
    model.generate(**inputs, do_sample=True, temperature=0.8, top_p=0.95, max_new_tokens=200,
                   custom_generate=huggingface.decoder(draft_model, verifier="kseq", num_drafts=8))

The text follows the distribution of the same call without `custom_generate`; with do_sample=False
it is the same text. What `generate` does around the loop stays: padded batches, max_new_tokens, end
tokens, stopping criteria, and the logits processors (temperature, top-k, top-p, repetition penalty,
...). A processor is a function of the text so far and of the scores of the next token, so every node
of the drafted tree is processed with its own text. The draft's scores are processed too: the output
would be right without it, but more drafts are accepted when both models are processed alike.

Processors of the scores alone, such as temperature, top-k and top-p, run inside the loop's CUDA
graph. One that reads the text is called node by node, a number of times that depends on the data:
such a call decodes without graphs. No processor is asked about a text that `generate` could not
write (processors.py), except behind the stop of a criterion of your own. Stopping criteria and
`streamer` meet the texts token by token, as in `generate`, when a turn is over (outputs.py). With
return_dict_in_generate=True the result also counts calls and accepted drafts (`DecoderOutput`).

Refused: beams, processors that remember earlier calls, scores and hidden states as output, models
that a tree cannot be read with (causal_lm.py). transformers keeps `stop_strings` from a custom loop;
a StopStringCriteria in `stopping_criteria` works. Beyond the context or the attention window that a
model was made for, `generate` goes on and this loop refuses to.

Needs transformers >= 5. Explained in chapter 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation import EosTokenCriteria, GenerationMode, StoppingCriteriaList

from spectr_lite.decoding import decode
from spectr_lite.huggingface.causal_lm import CausalLM, fingerprint
from spectr_lite.huggingface.outputs import DecoderOutput, streamer_of_generate, write
from spectr_lite.huggingface.processors import Processed, check_processors
from spectr_lite.models.interface import LanguageModel
from spectr_lite.verifiers import Verifier

INPUTS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def decoder(
    draft_model: Any,
    *,
    verifier: str | Verifier = "kseq",
    num_drafts: int = 8,
    draft_length: int = 8,
) -> Callable[..., Any]:
    """A loop for `model.generate(..., custom_generate=...)`. The arguments are those of `decode`.

    `draft_model`: a causal language model of transformers, or anything else that `decode` takes as a
    draft; None with num_drafts=0. It shares the model's tokenizer, though its vocabulary may be padded
    to another width. As for `generate`, torch.manual_seed makes the text reproducible. The loop's
    attribute `output` is the DecoderOutput of its latest call. Raises ValueError or TypeError, before
    any work, for a model, processor or setting that is not served.
    """
    adapters: dict[tuple[Any, ...], CausalLM] = {}  # a model is checked once

    def adapted(model: Any, vocab_size: int | None = None) -> LanguageModel:
        if hasattr(model, "new_cache"):
            return model
        changes = fingerprint(model) if isinstance(model, PreTrainedModel) else ()
        key = id(model), vocab_size, *changes
        if key not in adapters:
            adapters[key] = CausalLM(model, vocab_size)
        return adapters[key]

    def custom_generate(
        model: Any,
        input_ids: Tensor,
        logits_processor: Sequence[Any],
        stopping_criteria: StoppingCriteriaList,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        target = adapted(model)
        mask = _check_request(model, input_ids, generation_config, model_kwargs)
        longest = stopping_criteria.max_length or generation_config.max_length
        length = max(longest - input_ids.shape[1], 1)
        stops = [stop for stop in stopping_criteria if type(stop) is EosTokenCriteria]
        ends = [
            i for stop in stops for i in stop.eos_token_id.tolist() if 0 <= i < target.vocab_size
        ]
        check_processors(logits_processor, input_ids, target.vocab_size, length, ends)
        pad = generation_config._pad_token_tensor
        padding = int(pad) if pad is not None else 0
        request = logits_processor, input_ids, mask, length, ends, padding
        draft = None
        if num_drafts and draft_model is not None:
            draft = adapted(draft_model, target.vocab_size)
            _check_widths(draft, target)
            draft = Processed(draft, *request, is_draft=True)
        turns = decode(
            Processed(target, *request, is_draft=False),
            draft,
            [row[seen].tolist() for row, seen in zip(input_ids, mask, strict=True)],
            verifier=verifier,
            num_drafts=num_drafts,
            draft_length=draft_length,
            max_new_tokens=length,
            temperature=1.0 if generation_config.do_sample else 0,
            generator=int(torch.randint(2**62, ())),
            stop_tokens=ends,
        )
        texts, taken = write(turns, input_ids, stopping_criteria, pad, streamer_of_generate())
        made = DecoderOutput.of(texts, taken)
        custom_generate.output = made  # type: ignore[attr-defined]
        return made if generation_config.return_dict_in_generate else texts

    return custom_generate


def _check_widths(draft: LanguageModel, target: LanguageModel) -> None:
    """ValueError for vocabularies whose widths differ by more than padding."""
    small, large = sorted([getattr(draft, "own_size", draft.vocab_size), target.vocab_size])
    if 2 * small < large:
        raise ValueError(
            f"draft_model: vocabularies of {small} and {large} tokens differ by more than padding. "
            "Choose a draft with the target's tokenizer."
        )


def _check_request(model: Any, input_ids: Tensor, config: Any, inputs: dict[str, Any]) -> Tensor:
    """Where `input_ids` (B, P) is text and not padding: a boolean mask (B, P).

    Raises ValueError for a request that the loop cannot fulfil.
    """
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH):
        raise ValueError(
            f"generate: found mode {mode.value!r}. This loop samples or, with do_sample=False, is "
            "greedy: set num_beams=1 and leave other modes out."
        )
    if wanted := [name for name in OUTPUTS if getattr(config, name)]:
        raise ValueError(
            f"generate: found {wanted[0]}=True. A turn emits many tokens from one call; this loop "
            "returns the sequences alone."
        )
    given = {name for name, value in inputs.items() if value is not None and value is not False}
    given -= {name for name in given if isinstance(inputs[name], dict) and not inputs[name]}
    if unknown := sorted(given - INPUTS):
        raise ValueError(f"generate: found input {unknown[0]!r}. This loop reads token ids alone.")
    cache = inputs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError(
            "generate: found past_key_values that hold a text. Pass the whole text as input_ids."
        )
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask.to(input_ids.device)
    if mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask: found shape {tuple(mask.shape)} for input_ids {tuple(input_ids.shape)}. "
            "Give one number for each token."
        )
    mask = mask.bool()
    if not (some := mask.any(1)).all():
        raise ValueError(
            f"attention_mask: row {int(some.long().argmin())} is padding alone. Give every row at "
            "least one token, such as the start token."
        )
    if not mask[:, -1].all():
        raise ValueError(
            "attention_mask: found a text that ends in padding. Pad on the left: "
            "tokenizer.padding_side = 'left'."
        )
    positions, usual = inputs.get("position_ids"), mask.cumsum(1) - 1
    if positions is not None and bool(((positions.to(mask.device) != usual) & mask).any()):
        raise ValueError(
            "position_ids: found positions that do not count the text. Leave position_ids out."
        )
    if model.config.model_type == "git" and not mask.all():
        raise ValueError(
            "GIT: for padded texts generate shifts the mask by an image that is not there "
            "(transformers 5.23). Give prompts of one length, or one at a time."
        )
    return mask
