"""The SpecTr loop: draft, score, select, emit. Explained in chapters 7 and 8.

One turn, with K drafted sequences of length L:
    1. draft   K i.i.d. sequences of L tokens from the small model
    2. score   all their prefixes with the large model in ONE call: K (L + 1) next-token distributions
    3. select  alive = all K; for i = 1..L: Y_i from the rule on the alive drafts' i-th tokens, with
               repeats; alive = those whose i-th token is Y_i; stop when none is left
    4. emit    if drafts are alive after L tokens: one more token from the large model's distribution
It emits 1 to L + 1 tokens, distributed as if the large model had written them one by one. A rule
that judges whole paths, such as block verification, does 3 and 4 in its own way.
K = 0 is autoregressive decoding, K = 1 speculative decoding, K > 1 SpecTr.

Source: Algorithm 3 and Theorem 2 of SpecTr (arXiv 2310.15141).

A turn has fixed shapes, writes in place and reads no value on the host, so that a GPU can record it
once and replay it (graphs.py). Then one copy tells the host what happened. state.py has the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from spectr_lite import kernels, verifiers
from spectr_lite.decoding.graphs import Captured
from spectr_lite.decoding.greedy import compare
from spectr_lite.decoding.sampling import Sampling
from spectr_lite.decoding.state import LanguageModel, Places, State, Tree, explained
from spectr_lite.distributions import IID, as_generator, check_count, sample
from spectr_lite.verifiers import TreeVerifier, Verifier, paths
from spectr_lite.verifiers.paths import top_down

PROMPT_PIECE = 256  # tokens of a prompt read in one call


@dataclass(frozen=True)
class Turn:
    """What one turn of the loop did, row by row, on the CPU.

    drafted   (B, K, L)  the K paths
    block     (B, L+1)   the emitted tokens: accepted[b] drafted ones, one more, then -1; -1 too
                         from where the target has no distribution
    accepted  (B,)       how many tokens of the block were drafted: 0..L
    path      (B,)       the number of a path that begins with the accepted tokens
    kept      (B,)       how many tokens of the block joined the text: accepted + 1, or fewer where a
                         stop token or max_new_tokens cut the block; 0 in a row that had ended before
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
        """For each of `tokens(row)`: "accepted" if it was drafted. The last may be "corrected", which
        replaces rejected drafts, or "bonus": after L accepted tokens, or when nothing was drafted."""
        accepted = int(self.accepted[row])
        last = "bonus" if accepted == self.drafted.shape[2] else "corrected"
        return [*["accepted"] * accepted, last][: int(self.kept[row])]


@dataclass(frozen=True)
class Generation:
    """The new tokens of every row, with its stop token but not its prompt; and all turns."""

    tokens: list[list[int]]
    turns: list[Turn]

    @property
    def calls(self) -> list[int]:
        """Calls of the large model, for each row. Reading the prompt is never counted."""
        return torch.stack([turn.active for turn in self.turns]).sum(0).tolist()

    @property
    def emitted(self) -> list[int]:
        """Tokens emitted in each row, including those that a stop token or max_new_tokens cut."""
        emitted = torch.stack([(turn.accepted + 1) * turn.active for turn in self.turns])
        return emitted.sum(0).tolist()

    @property
    def block_efficiency(self) -> float:
        """Tokens emitted per call of the large model, all rows together; autoregressively it is 1.

        The last block of a text counts whole, even if the text keeps only its beginning. Counting
        kept tokens would make the ratio too small, most of all for a small max_new_tokens. Where the
        texts end still matters when blocks are not i.i.d.: those after a prompt may be longer.
        """
        return sum(self.emitted) / sum(self.calls)


def generate(
    target: LanguageModel,
    draft: LanguageModel | None,
    prompts: Sequence[Sequence[int]],
    **settings: Any,
) -> Generation:
    """Decode every prompt to its end. Arguments, defaults and errors are those of `decode`.

    >>> from spectr_lite.models.markov import worked_pair
    >>> target, draft = worked_pair()
    >>> made = generate(target, draft, [[0], [2]], num_drafts=2, max_new_tokens=6, generator=0)
    >>> made.tokens, made.calls
    ([[2, 0, 2, 0, 0, 0], [0, 1, 2, 1, 2, 0]], [3, 2])
    """
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
    return Decoder(target, draft, **settings).decode(
        prompts, max_new_tokens=max_new_tokens, generator=generator, stop_tokens=stop_tokens
    )


class Decoder:
    """Two models, a rule and its settings; then as many texts as you like, one batch at a time.

    The buffers, and on a GPU the recorded turn, are made for the first texts and used again for later
    ones, if those are as many and no longer. The functions `decode` and `generate` make a new
    Decoder each time.

    `num_drafts`=0 is autoregressive and needs no `draft`. `temperature`, `top_k` and `top_p` shape
    the distributions of both models, see `Sampling`; at temperature 0 every rule decodes greedily.
    `draft_sampling` shapes the draft's otherwise: the text stays the target's, whatever it says.
    Raises ValueError or TypeError when an argument does not fit the models.

    Where the draft's logits are no distribution (a NaN, +inf, or no token left), its tokens are drawn
    uniformly: the text is still the target's. Where the target's are none, the text ends in an error.
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
        draft_sampling: Sampling | None = None,
    ) -> None:
        self.num_drafts = check_count(num_drafts, "num_drafts", least=0)
        self.draft_length = check_count(draft_length, "draft_length") if num_drafts else 0
        self.tree = Tree(max(self.num_drafts, 1), self.draft_length)
        self.sampling = Sampling(temperature, top_k, top_p)
        self.draft_sampling = draft_sampling or self.sampling
        self.rule = verifiers.get(verifier)
        self.models = [target]
        if num_drafts:
            self.models.append(_check_draft(draft, target))
            _check_rule(self.rule, num_drafts)
        self.random = torch.Generator(target.device)
        self.select = selection(
            self.rule, num_drafts, self.sampling, self.random.device, self.draft_sampling
        )
        self.state: State | None = None
        synchronizes = any(getattr(model, "synchronizes", False) for model in self.models)
        self.graphs = Captured(self.random, disabled=synchronizes)
        self._batch = 0  # the number of `decode` calls so far: only the latest owns the buffers

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

        A row ends with the first of `stop_tokens` or after `max_new_tokens`. A seed gives the same
        text every time on one device; a generator is asked for one seed. Raises ValueError or
        TypeError, before any work, for arguments that do not fit the models; OutOfMemoryError, with
        the sizes, when the texts do not fit the device; ValueError, with row and position, when a text
        (and not only a draft) comes to a place where the target's logits are no distribution.
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
        self._batch = batch = self._batch + 1
        longest = max(map(len, prompts))
        held = self.state.cache_bytes if self.state else 0
        with explained(self.models, self.tree, len(prompts), longest + max_new_tokens, held):
            state = self._buffers(len(prompts), longest + max_new_tokens)
            state.start(prompts, max_new_tokens, stop_tokens)
            self.random.manual_seed(seed)
            for model, cache in zip(self.models, state.caches, strict=True):
                read_prompts(model, cache, state, longest)
            shape = len(prompts), self.num_drafts, self.draft_length
            sizes = [self.tree.size - 1, self.draft_length + 1, 5]
            while True:
                span = state.span(longest)
                report = self.graphs(span, partial(self._turn, state, span))
                # The one place in a turn where the host synchronises with the device.
                drafted, block, counts = report.to("cpu", copy=True).split(sizes, 1)
                accepted, path, kept, done, length = counts.unbind(1)
                longest = int(length.max())
                if (stuck := (kept == 0) & (done == 0)).any():
                    self._give_up(int(stuck.int().argmax()), length)
                yield Turn(drafted.view(shape), block, accepted, path, kept)
                if done.all():
                    return
                if batch != self._batch:
                    raise RuntimeError(
                        "decode: this decoder has begun other texts since. Finish one before the "
                        "next, or make a decoder for each."
                    )

    def _turn(self, state: State, span: int) -> Tensor:
        """One turn of every row, on the device. (B, K L + L + 6): drafts, block and five counts."""
        drafted, draft_probs, logits = self._scored(state, span)
        block, accepted, path = self.select(
            self.rule, drafted, draft_probs, logits, self.sampling, self.random
        )
        kept = commit(state, block, path)
        counts = torch.stack([accepted, path, kept, state.done.long(), state.length], 1)
        return torch.cat([drafted.flatten(1), block, counts], 1)

    def _scored(self, state: State, span: int) -> tuple[Tensor, list[Tensor], Tensor]:
        """Steps 1 and 2: the paths, their probabilities at each depth, the target's logits."""
        places, drafted = state.places(span), state.tokens[:, None, :0]
        draft_probs: list[Tensor] = []
        if self.num_drafts:
            drafted, draft_probs = draft_paths(
                self.models[1], state, places, self.draft_sampling, self.random
            )
        return drafted, draft_probs, score_paths(self.models[0], state, places, drafted)

    def _give_up(self, row: int, length: Tensor) -> NoReturn:
        self.state = None  # its caches may hold NaN, and a mask does not keep NaN out
        self.graphs.forget()
        raise ValueError(
            f"target: its logits for position {int(length[row])} of the text of prompts[{row}] are no "
            "distribution: a NaN, +inf, or -inf for every token. Run it in a wider dtype, such as "
            "bfloat16 or float32, or see what processes its logits."
        )

    def _buffers(self, batch: int, capacity: int) -> State:
        """For `batch` texts of up to `capacity` tokens; new ones where the old do not fit."""
        if self.state is None or not self.state.fits(batch, capacity):
            self.graphs.forget()
            self.state = None  # frees the old buffers before the new ones are made
            self.state = State.new(self.models, self.tree, batch, capacity)
        return self.state


def draft_paths(
    draft: LanguageModel,
    state: State,
    places: Places,
    sampling: Sampling,
    generator: torch.Generator,
) -> tuple[Tensor, list[Tensor]]:
    """Step 1: K i.i.d. paths (B, K, L), and for each depth the probabilities (B, K, V) drawn from.

    The draft first reads the last two tokens of each text. One would not always do: when the last
    turn accepted all L tokens of a path, the draft had proposed the L-th without reading it, so its
    cache has no entry for it. Otherwise the entry is written again, unchanged.
    """
    tree, cache = state.tree, state.caches[1]
    last_two = (state.length[:, None] + torch.arange(-2, 0, device=draft.device)).clamp_min(0)
    causal = torch.arange(places.mask.shape[-1], device=draft.device) <= last_two[:, :, None]
    logits = draft(state.tokens.gather(1, last_two), last_two, cache, last_two, causal)
    # All paths start at the root, so their first tokens are K draws from one distribution.
    probs = [sampling.probs_or_uniform(logits[:, -1:])[0].expand(-1, tree.num_drafts, -1)]
    tokens = [sample(probs[0][:, 0], generator, tree.num_drafts)]
    for depth in range(tree.draft_length - 1):
        here = tree.nodes(depth)
        positions, slots = places.positions[:, here], places.slots[:, here]
        logits = draft(tokens[-1], positions, cache, slots, places.mask[:, here])
        probs.append(sampling.probs_or_uniform(logits)[0])
        tokens.append(sample(probs[-1], generator))
    return torch.stack(tokens, 2), probs


def score_paths(target: LanguageModel, state: State, places: Places, drafted: Tensor) -> Tensor:
    """Step 2: logits (B, 1 + K L, V) of the token after every node of the tree, from one call."""
    root = state.tokens.gather(1, state.length[:, None] - 1)
    tokens = torch.cat([root, drafted.flatten(1)], 1)
    return target(tokens, places.positions, state.caches[0], places.slots, places.mask)


def selection(
    rule: Verifier,
    num_drafts: int,
    sampling: Sampling,
    device: torch.device,
    draft_sampling: Sampling | None = None,
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """How steps 3 and 4 are done here. Each way gives block (B, L+1), accepted (B,) and path (B,)."""
    if sampling.temperature == (draft_sampling or sampling).temperature == 0:
        return compare
    if num_drafts and kernels.take(rule, device):
        return kernels.verify
    if num_drafts and (isinstance(rule, TreeVerifier) or device.type not in paths.SYNC_IS_FREE):
        return verify_paths
    return walk_down


def walk_down(
    rule: Verifier,
    drafted: Tensor,
    draft_probs: list[Tensor],
    logits: Tensor,
    sampling: Sampling,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Steps 3 and 4 by a token rule: block (B, L+1), accepted (B,) and path (B,), as in `Turn`.

    Logits become probabilities only at the nodes that the walk visits.
    """
    rows = torch.arange(len(drafted), device=drafted.device)
    missing = torch.zeros(len(drafted), drafted.shape[2] + 1, dtype=torch.bool, device=rows.device)

    def draft_probs_at(path: Tensor, depth: int) -> Tensor:
        return draft_probs[depth][rows, path]

    def target_probs_at(path: Tensor, depth: int) -> Tensor:
        node = path * drafted.shape[2] + depth if depth else torch.zeros_like(path)
        probs, missing[:, depth] = sampling.probs_or_uniform(logits[rows, node])
        return probs

    block = top_down(rule._select, drafted, draft_probs_at, target_probs_at, generator)
    return sound(block.tokens, missing), block.accepted, block.path


def verify_paths(
    rule: TreeVerifier,
    drafted: Tensor,
    draft_probs: list[Tensor],
    logits: Tensor,
    sampling: Sampling,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Steps 3 and 4 by a rule for whole paths, which needs the probabilities at every node."""
    probs, missing = sampling.probs_or_uniform(logits)
    nodes = torch.arange(1, probs.shape[1], device=probs.device).view(drafted.shape[1:])
    nodes = torch.nn.functional.pad(nodes, (1, 0))  # (K, L + 1), each path's, from the root on
    block = rule._verify(torch.stack(draft_probs, 2), probs[:, nodes], drafted, generator)
    missing = missing.gather(1, nodes[block.path])
    return sound(block.tokens, missing), block.accepted, block.path


def sound(block: Tensor, missing: Tensor) -> Tensor:
    """The block (B, L+1) up to the first token whose distribution is `missing` (B, L+1), then -1."""
    return block.masked_fill(missing.cumsum(1) > 0, -1)


def commit(state: State, block: Tensor, path: Tensor) -> Tensor:
    """Append each block to its text, up to a stop token or the text's limit.

    In the caches the accepted path moves up behind the text. Returns how many tokens joined, (B,).
    """
    kept = torch.minimum((block >= 0).sum(1), state.limit - state.length)
    column = torch.arange(block.shape[1], device=block.device)
    stops = state.stops[block.clamp_min(0)] & (column < kept[:, None])
    kept = torch.where(stops.any(1), stops.to(torch.int8).argmax(1) + 1, kept)
    kept = torch.where(state.done, 0, kept)

    places = state.length[:, None] + column
    state.tokens.scatter_(1, places, block)
    for cache in state.caches if state.tree.draft_length else ():
        slots = places[:, :-1]
        cache.move(slots + path[:, None] * state.tree.draft_length, slots)
    state.length.add_(kept)
    state.done.logical_or_(stops.any(1) | (state.length == state.limit))
    return kept


def read_prompts(model: LanguageModel, cache: Any, state: State, longest: int) -> None:
    """Fill the cache with the prompts, without their last tokens: those are the first turn's roots.

    In pieces, as the mask of a whole prompt would grow with the square of its length, and a model
    without `fill` makes logits besides. Each piece sees the slots filled so far and no others.
    """
    fill = getattr(model, "fill", model)
    for start in range(0, longest - 1, PROMPT_PIECE):
        slot = torch.arange(min(start + PROMPT_PIECE, longest - 1), device=model.device)
        slots = slot[start:].expand(len(state.length), -1)
        fill(state.tokens.gather(1, slots), slots, cache, slots, slot <= slots[:, :, None])


def _collected(turns: Iterator[Turn], rows: int) -> Generation:
    done = list(turns)
    tokens = [[token for turn in done for token in turn.tokens(row)] for row in range(rows)]
    return Generation(tokens, done)


def _check_draft(draft: LanguageModel | None, target: LanguageModel) -> LanguageModel:
    if draft is None:
        raise ValueError(
            "draft: found None. Give a draft model, or num_drafts=0 to decode without."
        )
    if draft.vocab_size != target.vocab_size:
        raise ValueError(
            f"draft and target: vocabularies of {draft.vocab_size} and {target.vocab_size} tokens. "
            "Both models must share one tokenizer."
        )
    if torch.device(draft.device) != torch.device(target.device):
        raise ValueError(
            f"draft and target: devices {draft.device} and {target.device}. Move both to one."
        )
    return draft


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
    """ValueError unless the rule takes i.i.d. drafts, all of them and whatever number survives."""
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
