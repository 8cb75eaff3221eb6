"""The logits processors of transformers' `generate`, asked at every node of a drafted tree.

A processor is a function of the text so far and of the scores of the next token. `generate` asks it
about the texts that it writes; here it is asked about the drafted ones too, but about none that
`generate` could not write: none behind an end token, behind max_new_tokens, or behind a token that
the processors leave no probability. Explained in chapter 8.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation import logits_process

from spectr_lite.models.interface import LanguageModel

# Functions of the scores, whatever the text: all nodes of a tree go through them in one call. A class
# derived from one of them may read the text.
SCORES_ALONE = {
    logits_process.TemperatureLogitsWarper,
    logits_process.TopKLogitsWarper,
    logits_process.TopPLogitsWarper,
    logits_process.MinPLogitsWarper,
    logits_process.TypicalLogitsWarper,
    logits_process.EpsilonLogitsWarper,
}
REFUSED = (  # they remember earlier calls
    logits_process.UnbatchedClassifierFreeGuidanceLogitsProcessor,
    logits_process.SynthIDTextWatermarkLogitsProcessor,
)
LOOK_AHEAD = 32  # next tokens that a processor is shown before it is asked about a text again


@dataclass
class TextCache:
    """A model's cache, and the token in each of its slots."""

    entries: Any
    tokens: Tensor  # (B, slots)
    closed: Tensor  # (B, slots) bool: drafted tokens behind which `generate` could write nothing

    def move(self, source: Tensor, destination: Tensor) -> None:
        self.entries.move(source, destination)
        self.tokens.scatter_(1, destination, self.tokens.gather(1, source))
        self.closed.zero_()  # what is moved is text now


class Processed:
    """A `LanguageModel` whose logits, at every node of a tree, go through `generate`'s processors.

    A processor sees the node's own text: `input_ids` (B, P), as `generate` has them, and the drafted
    tokens above the node. `mask` (B, P) is False where input_ids is padding. Nodes that the text
    cannot reach keep the model's own scores: any distribution is right there.
    """

    def __init__(
        self,
        model: LanguageModel,
        processors: Sequence[Any],
        input_ids: Tensor,
        mask: Tensor,
        max_new_tokens: int,
        end_tokens: Sequence[int],
        pad_token: int,
        *,
        is_draft: bool,
    ) -> None:
        self.model, self.processors, self.input_ids = model, processors, input_ids
        self.config, self.vocab_size, self.device = model.config, model.vocab_size, model.device
        self.max_new_tokens, self.pad_token, self.is_draft = max_new_tokens, pad_token, is_draft
        self.end_tokens = torch.tensor([*end_tokens], dtype=torch.int64, device=self.device)
        self.prompt_length = mask.sum(1)
        self.synchronizes = not {type(processor) for processor in processors} <= SCORES_ALONE

    def new_cache(self, batch: int, slots: int) -> TextCache:
        tokens = torch.zeros(batch, slots, dtype=torch.int64, device=self.device)
        return TextCache(self.model.new_cache(batch, slots), tokens, tokens > 0)

    def fill(self, tokens: Tensor, *where: Any) -> None:
        """Write the cache: a prompt has no use for scores."""
        positions, cache, slots, mask = where
        getattr(self.model, "fill", self.model)(tokens, positions, cache.entries, slots, mask)
        cache.tokens.scatter_(1, slots, tokens)

    def __call__(
        self, tokens: Tensor, positions: Tensor, cache: TextCache, slots: Tensor, mask: Tensor
    ) -> Tensor:
        """Scores (B, N, V) in float32; arguments as in `Transformer.forward`.

        The text of a node is `input_ids`, then the tokens in the slots it sees behind the prompt.
        """
        scores = self.model(tokens, positions, cache.entries, slots, mask).float()
        cache.tokens.scatter_(1, slots, tokens)
        if not self.synchronizes:
            return process(self.processors, self.input_ids, scores.flatten(0, 1)).view_as(scores)
        cache.closed.scatter_(1, slots, torch.isin(tokens, self.end_tokens))
        slot = torch.arange(mask.shape[-1], device=mask.device)
        new = mask & (slot >= self.prompt_length[:, None])[:, None]
        count = new.sum(-1).masked_fill(slots < self.prompt_length[:, None] - 1, -1)
        # A processor may treat rows by their number, and takes texts of one length: it is called with
        # one node of every row.
        row, end = (
            torch.arange(len(tokens), device=mask.device),
            self.end_tokens[:1].tolist() or [0],
        )
        for length in range(min(int(count.max()) + 1, self.max_new_tokens)):
            closed = (new & cache.closed[:, None, : len(slot)]).any(-1)
            asked = (count == length) & ~closed
            turn = asked.cumsum(1) * asked
            for number in range(1, int(turn.max()) + 1):
                has, node = (turn == number).any(1), (turn == number).int().argmax(1)
                # A row that is ahead shows its beginning. One that has ended, or has no text of this
                # length yet, goes on with an end token and padding, as `generate` shows ended rows.
                seen = new[row, node]
                order = seen.int().argsort(dim=1, descending=True, stable=True)[:, :length]
                behind = torch.arange(length, device=mask.device) >= seen.sum(1, keepdim=True)
                drafted = cache.tokens.gather(1, order).masked_fill(behind, end[0])
                ends = torch.isin(drafted, self.end_tokens).long()
                drafted = drafted.masked_fill(ends.cumsum(1) > ends, self.pad_token)
                text = torch.cat([self.input_ids, drafted], 1)
                found = process(self.processors, text, scores[row, node])
                scores[row[has], node[has]] = found[has]
                below = mask.gather(2, slots[row, node, None, None].expand(*slots.shape, 1))[..., 0]
                below &= (count == length + 1) & (not self.is_draft)
                below &= found.gather(1, tokens) == -torch.inf
                below[row, node] = (found == -torch.inf).all(1)
                below &= has[:, None]
                cache.closed[row[:, None].expand_as(slots)[below], slots[below]] = True
        return scores


def process(processors: Sequence[Any], text: Tensor, scores: Tensor) -> Tensor:
    """The scores (B, V) of the token behind `text` (B, T), through one processor after the other."""
    for processor in processors:
        scores = processor(text, scores)
    return scores


def check_processors(
    processors: Sequence[Any],
    input_ids: Tensor,
    vocab_size: int,
    max_new_tokens: int,
    end_tokens: Sequence[int],
) -> None:
    """ValueError for a processor that remembers earlier calls: on a tree they are not its text.

    Those of transformers are known. Any other is asked again and again about the prompts, and in
    between about prompts with one more token; its answers about the prompts must stay the same.
    """
    for processor in processors:
        if isinstance(processor, REFUSED):
            raise ValueError(
                f"generate: found {type(processor).__name__}. It remembers earlier calls, "
                "which on a tree of drafts are not the text so far. Decode without it."
            )
    unknown = [
        processor
        for processor in processors
        if not type(processor).__module__.startswith("transformers.")
        or isinstance(processor, logits_process.PrefixConstrainedLogitsProcessor)
    ]
    if not unknown:
        return
    scores = (torch.arange(vocab_size, device=input_ids.device) * 0.618 % 1).repeat(
        len(input_ids), 1
    )
    following = process(processors, input_ids, scores.clone())
    following[:, [*end_tokens]] = -torch.inf
    values, tokens = following.topk(min(LOOK_AHEAD, vocab_size))
    longer = [] if max_new_tokens == 1 else tokens[:, (values > -torch.inf).all(0)].split(1, 1)
    for processor in unknown:
        cause, answers = None, []
        for step in [None, None, *longer]:
            if step is not None:
                with contextlib.suppress(Exception):  # `generate` may never write this text
                    processor(torch.cat([input_ids, step], 1), scores.clone())
            try:
                answers.append(processor(input_ids.clone(), scores.clone()))
            except Exception as error:
                cause = error
                break
        if cause or not all(torch.equal(answers[0], answer) for answer in answers):
            raise ValueError(
                f"generate: found {type(processor).__name__}. Asked again about one text it gives "
                "another answer: it remembers earlier calls, or draws random numbers. On a tree of "
                "drafts the earlier calls are not the text so far. Make it a function of input_ids "
                "and scores, or decode without it."
            ) from cause
