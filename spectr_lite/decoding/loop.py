"""The SpecTr loop: draft, score, select, emit. Autoregressive, speculative and SpecTr are one loop.

One turn at a context x, with K drafted sequences of length L:
    1. draft   K i.i.d. sequences of L tokens from the small model
    2. score   all their prefixes with the large model in ONE call: K (L + 1) next-token distributions
    3. select  alive = all K; for i = 1..L: Y_i from the rule on the alive drafts' i-th tokens, with
               repeats; alive = those whose i-th token is Y_i; stop when none is left
    4. emit    drafts alive after L tokens: one more token from the large model's distribution there
It emits 1 to L + 1 tokens, distributed as if the large model had written them one by one. A rule
that judges whole paths, such as block verification, does 3 and 4 in its own way.
K = 0 is autoregressive decoding, K = 1 speculative decoding, K > 1 SpecTr.

Source: Algorithm 3 and Theorem 2 of SpecTr (arXiv 2310.15141).

A turn has fixed shapes, writes in place and looks at no value, so that a GPU can record it once and
replay it (graphs.py); then one copy tells the host what happened. state.py holds the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectr_lite import verifiers
from spectr_lite.decoding.graphs import Captured
from spectr_lite.decoding.sampling import Sampling
from spectr_lite.decoding.state import LanguageModel, Places, State, Tree, explained
from spectr_lite.distributions import IID, as_generator, check_count, sample
from spectr_lite.verifiers import Verifier
from spectr_lite.verifiers.base import TreeVerifier
from spectr_lite.verifiers.paths import top_down

PROMPT_PIECE = 256  # tokens of a prompt read in one call


@dataclass(frozen=True)
class Turn:
    """What one turn of the loop did, row by row, on the CPU.

    drafted   (B, K, L)  the K paths
    block     (B, L+1)   the tokens emitted: accepted[b] drafted ones and one more; -1 behind them
    accepted  (B,)       how many of the block were drafted: 0..L
    path      (B,)       a path that holds the accepted tokens
    kept      (B,)       how many of the block joined the text: below accepted + 1 only where a stop
                         token or max_new_tokens cut it, and 0 in a row that had ended before
    """

    drafted: Tensor
    block: Tensor
    accepted: Tensor
    path: Tensor
    kept: Tensor

    @property
    def active(self) -> Tensor:
        """(B,) the rows that took part."""
        return self.kept > 0

    def tokens(self, row: int = 0) -> list[int]:
        """The tokens that joined the text of this row."""
        return self.block[row, : self.kept[row]].tolist()

    def kinds(self, row: int = 0) -> list[str]:
        """For each of `tokens(row)`: "accepted" when it was drafted; else "corrected" where it
        replaces the last drafts, and "bonus" after L accepted tokens or where none were drafted."""
        accepted = int(self.accepted[row])
        last = "bonus" if accepted == self.drafted.shape[2] else "corrected"
        return [*["accepted"] * accepted, last][: int(self.kept[row])]


@dataclass(frozen=True)
class Generation:
    """The new tokens of every row (no prompt, but its stop token), and the turns that made them."""

    tokens: list[list[int]]
    turns: list[Turn]

    @property
    def calls(self) -> list[int]:
        """Large-model calls of each row; reading the prompt is not counted, for any method."""
        return torch.stack([turn.active for turn in self.turns]).sum(0).tolist()

    @property
    def emitted(self) -> list[int]:
        """Tokens emitted in each row, with those that a stop token or max_new_tokens then cut."""
        return sum((turn.accepted + 1) * turn.active for turn in self.turns).tolist()

    @property
    def block_efficiency(self) -> float:
        """Tokens emitted per large-model call, all rows together. Autoregressive decoding has 1.

        The last block counts whole, though the text may keep only its beginning: by Wald's identity
        the ratio then does not depend on where the text ends. Counting kept tokens would bias it
        down, the more so the smaller max_new_tokens is.
        """
        return sum(self.emitted) / sum(self.calls)


def generate(
    target: LanguageModel,
    draft: LanguageModel | None,
    prompts: Sequence[Sequence[int]],
    **settings: Any,
) -> Generation:
    """Decode every prompt to its end. Arguments, defaults and errors are those of `decode`."""
    return _collected(decode(target, draft, prompts, **settings), len(prompts))


def decode(
    target: LanguageModel,
    draft: LanguageModel | None,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    generator: int | np.random.Generator | torch.Generator | None = None,
    stop_tokens: Sequence[int] = (),
    **settings: Any,
) -> Iterator[Turn]:
    """Continue every prompt (a list of token ids), one turn of the loop at a time.

    `settings` are those of `Decoder`, the other arguments those of `Decoder.decode`.
    Raises ValueError or TypeError, before any work, when an argument does not fit the models.
    """
    decoder = Decoder(target, draft, **settings)
    return decoder.decode(
        prompts, max_new_tokens=max_new_tokens, generator=generator, stop_tokens=stop_tokens
    )


class Decoder:
    """Two models, a rule and its settings; then as many texts as you like.

    Buffers, and on a GPU the recorded turn, are made when first needed and kept for the next texts,
    as long as those are as many and no longer. `decode` and `generate` of this module make a new one
    each time.

    `num_drafts`=0 is autoregressive and needs no `draft`. `temperature`, `top_k` and `top_p` shape
    the distributions of both models, see `Sampling`; at temperature 0 every rule is exact greedy
    decoding.
    Raises ValueError or TypeError when an argument does not fit the models.
    """

    def __init__(
        self,
        target: LanguageModel,
        draft: LanguageModel | None,
        *,
        verifier: str | Verifier = "kseq",
        num_drafts: int = 8,
        draft_length: int = 8,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        self.num_drafts = check_count(num_drafts, "num_drafts", least=0)
        self.draft_length = check_count(draft_length, "draft_length") if num_drafts else 0
        self.tree = Tree(max(self.num_drafts, 1), self.draft_length)
        self.sampling = Sampling(temperature, top_k, top_p)
        self.rule = verifiers.get(verifier)
        self.models = [target, draft] if num_drafts else [target]
        _check_models(self.models)
        if num_drafts:
            _check_rule(self.rule, num_drafts)
        self.random = torch.Generator(target.device)
        self.state: State | None = None
        synchronizes = any(getattr(model, "synchronizes", False) for model in self.models)
        self.graphs = Captured(self.random, disabled=synchronizes)
        self._text = 0  # how many times `decode` was called: the buffers serve one text at a time

    def generate(self, prompts: Sequence[Sequence[int]], **settings: Any) -> Generation:
        """Decode every prompt to its end. Arguments, defaults and errors are those of `decode`."""
        return _collected(self.decode(prompts, **settings), len(prompts))

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 64,
        generator: int | np.random.Generator | torch.Generator | None = None,
        stop_tokens: Sequence[int] = (),
    ) -> Iterator[Turn]:
        """Continue every prompt (a list of token ids), one turn of the loop at a time.

        A row ends with the first of `stop_tokens` or after `max_new_tokens`. The same seed on the same
        device gives the same text; a generator gives the loop its seed. Raises ValueError or
        TypeError, before any work, for arguments that do not fit the models; OutOfMemoryError, with
        the sizes, when they do not fit the device.
        """
        max_new_tokens = check_count(max_new_tokens, "max_new_tokens")
        _check_prompts(prompts, self.models, max_new_tokens)
        _check_tokens(stop_tokens, self.models[0].vocab_size, "stop_tokens")
        if isinstance(generator, torch.Generator):
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        else:
            seed = as_generator(generator, torch.device("cpu")).initial_seed()
        texts = [list(prompt) for prompt in prompts]
        return self._turns(texts, max_new_tokens, seed, list(stop_tokens))

    @torch.no_grad()
    def _turns(
        self, prompts: list[list[int]], max_new_tokens: int, seed: int, stop_tokens: list[int]
    ) -> Iterator[Turn]:
        self._text = text = self._text + 1
        longest = max(map(len, prompts))
        held = self.state.cache_bytes if self.state else 0
        with explained(self.models, self.tree, len(prompts), longest + max_new_tokens, held):
            state = self._room(len(prompts), longest + max_new_tokens)
            state.start(prompts, max_new_tokens, stop_tokens)
            self.random.manual_seed(seed)
            for model, cache in zip(self.models, state.caches, strict=True):
                read_prompts(model, cache, state, longest)
            shape = len(prompts), self.num_drafts, self.draft_length
            while True:
                span = state.span(longest)
                report = self.graphs(span, lambda span=span: self._turn(span))
                drafted, block, counts = _to_host(report, self.tree)
                accepted, path, kept, done, length = counts.unbind(1)
                longest = int(length.max())
                yield Turn(drafted.view(shape), block, accepted, path, kept)
                if done.all():
                    return
                if text != self._text:
                    raise RuntimeError(
                        "decode: this decoder has begun other texts since. Finish one before the "
                        "next, or make a decoder for each."
                    )

    def _turn(self, span: int) -> Tensor:
        """Algorithm 3 for every row, on the device; what the host must know, (B, K L + L + 6)."""
        state, random = self.state, self.random
        places = state.places(span)
        if self.num_drafts:
            drafted, draft_probs = draft_paths(self.models[1], state, places, self.sampling, random)
        else:
            drafted, draft_probs = state.tokens[:, None, :0], []
        logits = score_paths(self.models[0], state, places, drafted)
        select = verify_paths if self.num_drafts and self._judges_paths else walk_down
        block, accepted, path = select(
            self.rule, drafted, draft_probs, logits, self.sampling, random
        )
        kept = commit(state, block, accepted, path)
        counts = torch.stack([accepted, path, kept, state.done.long(), state.length], 1)
        return torch.cat([drafted.flatten(1), block, counts], 1)

    @property
    def _judges_paths(self) -> bool:
        return isinstance(self.rule, TreeVerifier)

    def _room(self, batch: int, capacity: int) -> State:
        """Buffers for `batch` texts of up to `capacity` tokens; new ones where the old do not fit."""
        if self.state is None or not self.state.fits(batch, capacity):
            self.graphs.forget()
            self.state = None  # the old ones' memory first
            self.state = State.new(self.models, self.tree, batch, capacity)
        return self.state


def draft_paths(
    draft: LanguageModel,
    state: State,
    places: Places,
    sampling: Sampling,
    generator: torch.Generator,
) -> tuple[Tensor, list[Tensor]]:
    """Step 1. K i.i.d. paths (B, K, L), and for each depth the probabilities (B, K, V) of tokens there.

    The cache may lack the last two committed tokens: before a bonus token stands the last drafted
    one, which the draft never read. So it reads two; if it knew the first, nothing changes.
    """
    tree, cache = state.tree, state.caches[1]
    last_two = (state.length[:, None] + torch.arange(-2, 0, device=draft.device)).clamp_min(0)
    causal = torch.arange(places.mask.shape[-1], device=draft.device) <= last_two[:, :, None]
    logits = draft(state.tokens.gather(1, last_two), last_two, cache, last_two, causal)
    # All paths start at the root: one distribution, drawn from K times.
    probs = [sampling.probs(logits[:, -1:]).expand(-1, tree.num_drafts, -1)]
    tokens = [sample(probs[0][:, 0], generator, tree.num_drafts)]
    for depth in range(tree.draft_length - 1):
        here = tree.nodes(depth)
        logits = draft(
            tokens[-1],
            places.positions[:, here],
            cache,
            places.slots[:, here],
            places.mask[:, here],
        )
        probs.append(sampling.probs(logits))
        tokens.append(sample(probs[-1], generator))
    return torch.stack(tokens, 2), probs


def score_paths(target: LanguageModel, state: State, places: Places, drafted: Tensor) -> Tensor:
    """Step 2. Logits (B, 1 + K L, V) of the token after every node of the tree, from one call."""
    root = state.tokens.gather(1, state.length[:, None] - 1)
    tokens = torch.cat([root, drafted.flatten(1)], 1)
    return target(tokens, places.positions, state.caches[0], places.slots, places.mask)


def walk_down(
    rule: Verifier,
    drafted: Tensor,
    draft_probs: list[Tensor],
    logits: Tensor,
    sampling: Sampling,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Steps 3 and 4, by a token rule. The block (B, L+1), -1 behind its end; how many of its tokens
    were drafted (B,); a path that holds them (B,). Only the distributions that the walk comes to
    are made.
    """
    rows = torch.arange(len(drafted), device=drafted.device)

    def draft_probs_at(path: Tensor, depth: int) -> Tensor:
        return draft_probs[depth][rows, path]

    def target_probs_at(path: Tensor, depth: int) -> Tensor:
        node = path * drafted.shape[2] + depth if depth else torch.zeros_like(path)
        return sampling.probs(logits[rows, node])

    block = top_down(rule._select, drafted, draft_probs_at, target_probs_at, generator)
    return block.tokens, block.accepted, block.path


def verify_paths(
    rule: TreeVerifier,
    drafted: Tensor,
    draft_probs: list[Tensor],
    logits: Tensor,
    sampling: Sampling,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Steps 3 and 4, by a rule that judges whole paths and so reads the distribution at every node."""
    probs = sampling.probs(logits)
    root, behind = probs[:, None, :1], probs[:, 1:].unflatten(1, drafted.shape[1:])
    target_probs = torch.cat([root.expand(-1, drafted.shape[1], -1, -1), behind], 2)
    block = rule._verify(torch.stack(draft_probs, 2), target_probs, drafted, generator)
    return block.tokens, block.accepted, block.path


def commit(state: State, block: Tensor, accepted: Tensor, path: Tensor) -> Tensor:
    """Append each block up to its stop token or limit, move its path up. How many joined, (B,)."""
    kept = torch.minimum(accepted + 1, state.limit - state.length)
    column = torch.arange(block.shape[1], device=block.device)
    stops = state.stops[block.clamp_min(0)] & (column < kept[:, None])
    kept = torch.where(stops.any(1), stops.to(torch.int8).argmax(1) + 1, kept)
    kept = torch.where(state.done, 0, kept)

    places = state.length[:, None] + column
    state.tokens.scatter_(1, places, block)
    for cache in state.caches if state.tree.draft_length else ():
        behind = places[:, :-1]
        cache.move(behind + path[:, None] * state.tree.draft_length, behind)
    state.length.add_(kept)
    state.done.logical_or_(stops.any(1) | (state.length == state.limit))
    return kept


def read_prompts(model: LanguageModel, cache: Any, state: State, longest: int) -> None:
    """Fill the cache with the prompts but for their last tokens, the roots of the first turn.

    In pieces: the logits of a whole prompt, which nobody needs, would be the largest tensor of all.
    """
    slot = torch.arange(longest - 1, device=model.device)
    for piece in slot.split(PROMPT_PIECE):
        slots = piece.expand(len(state.length), -1)
        causal = slot <= slots[:, :, None]
        model(state.tokens.gather(1, slots), slots, cache, slots, causal)


def _to_host(report: Tensor, tree: Tree) -> tuple[Tensor, Tensor, Tensor]:
    """The one wait for the device in a turn: everything that the host must know, in one copy."""
    drafted = tree.size - 1
    return report.to("cpu", copy=True).split([drafted, tree.draft_length + 1, 5], 1)


def _collected(turns: Iterator[Turn], rows: int) -> Generation:
    iterations = list(turns)
    tokens = [[token for turn in iterations for token in turn.tokens(row)] for row in range(rows)]
    return Generation(tokens, iterations)


def _check_models(models: list[LanguageModel | None]) -> None:
    if None in models:
        raise ValueError(
            "draft: found None. Give a draft model, or num_drafts=0 to decode without."
        )
    sizes = {model.vocab_size for model in models}
    if len(sizes) > 1:
        raise ValueError(
            f"draft and target: vocabularies of {models[1].vocab_size} and {models[0].vocab_size} "
            "tokens. Both models must share one tokenizer."
        )
    if len({torch.device(model.device) for model in models}) > 1:
        raise ValueError(
            f"draft and target: devices {models[1].device} and {models[0].device}. "
            "Move both to one."
        )


def _check_prompts(
    prompts: Sequence[Sequence[int]], models: list[LanguageModel], max_new_tokens: int
) -> None:
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(
            f"prompts: found {prompts!r}. Give a list with one list of token ids per row."
        )
    context = min(model.config.context for model in models)
    for row, prompt in enumerate(prompts):
        if isinstance(prompt, int | str):
            raise TypeError(
                f"prompts[{row}]: found {prompt!r}. Each prompt is a list of token ids; for text, "
                "use tokenizer.encode(text).ids."
            )
        if not len(prompt):
            raise ValueError(
                f"prompts[{row}]: it is empty. Give at least one token, such as the start token."
            )
        _check_tokens(prompt, models[0].vocab_size, f"prompts[{row}]")
        if len(prompt) + max_new_tokens > context:
            raise ValueError(
                f"prompts[{row}]: {len(prompt)} tokens and max_new_tokens={max_new_tokens} exceed "
                f"the models' context of {context}. Shorten either."
            )


def _check_tokens(tokens: Sequence[int], vocab_size: int, name: str) -> None:
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int | np.integer):
            raise TypeError(f"{name}: found {token!r}. Token ids are whole numbers.")
        if not 0 <= token < vocab_size:
            raise ValueError(
                f"{name}: found id {token}; the vocabulary has ids 0 to {vocab_size - 1}. Encode "
                "the text with the models' own tokenizer."
            )


def _check_rule(rule: Verifier, num_drafts: int) -> None:
    """The loop drafts i.i.d. and may be left with any number of them."""
    if IID not in rule.valid_for:
        raise ValueError(
            f"verifier: {rule.name!r} is not lossless for i.i.d. drafts, which is how decode draws "
            "them. Choose another rule, such as 'kseq'."
        )
    for k in (num_drafts, 1):
        try:
            rule.check_drafts(k)
        except ValueError as error:
            raise ValueError(
                f"verifier: {rule.name!r} cannot decode with num_drafts={num_drafts}, which may "
                f"leave {k} alive. {error}"
            ) from error
