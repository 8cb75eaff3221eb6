"""The SpecTr loop: draft, score, select, emit. Autoregressive, speculative and SpecTr are one loop.

One iteration at a context x, with K drafted sequences of length L:
    1. draft   K i.i.d. sequences of L tokens from the small model
    2. score   all their prefixes with the large model in ONE call: K (L + 1) next-token laws
    3. select  alive = all K; for i = 1..L: Y_i from the rule on the alive drafts' i-th tokens, with
               repeats; alive = those whose i-th token is Y_i; stop when none is left
    4. extend  drafts alive after L tokens: one more token from the large model's law there
It emits 1 to L + 1 tokens, distributed as if the large model had written them one by one. A rule
that judges whole paths, such as block verification, does 3 and 4 in its own way.
K = 0 is autoregressive decoding, K = 1 speculative decoding, K > 1 SpecTr.

Source: Algorithm 3 and Theorem 2 of SpecTr (arXiv 2310.15141).

How the drafts lie in a KV cache. The committed token at position i is in slot i. The last one, at
position length - 1, is the root of the drafted tree, and node n of the tree lives in slot
length - 1 + n: node 0 is the root, node 1 + j L + i is token i of path j. Every path sees the one
shared prefix and itself. After selection the kept path moves up behind the prefix, and whatever
else was drafted is never looked at again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from spectr_lite import verifiers
from spectr_lite.distributions import as_generator, check_count, sample
from spectr_lite.laws import IID
from spectr_lite.verifiers import Verifier
from spectr_lite.verifiers.tree import TreeVerifier

PROMPT_PIECE = 256  # tokens of a prompt read in one call


class LanguageModel(Protocol):
    """What the loop asks of a model: a Transformer and a MarkovModel both offer it."""

    config: Any  # with .context, the number of positions the model knows
    vocab_size: int
    device: torch.device

    def new_cache(self, batch: int, slots: int) -> Any: ...

    def __call__(
        self, tokens: Tensor, positions: Tensor, cache: Any, slots: Tensor, mask: Tensor
    ) -> Tensor: ...


@dataclass(frozen=True)
class Iteration:
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
    iterations: list[Iteration]

    @property
    def calls(self) -> list[int]:
        """Large-model calls of each row; reading the prompt is not counted, for any method."""
        return torch.stack([turn.active for turn in self.iterations]).sum(0).tolist()

    @property
    def emitted(self) -> list[int]:
        """Tokens emitted in each row, with those that a stop token or max_new_tokens then cut."""
        return sum((turn.accepted + 1) * turn.active for turn in self.iterations).tolist()

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
    iterations = list(decode(target, draft, prompts, **settings))
    rows = range(len(prompts))
    tokens = [[token for turn in iterations for token in turn.tokens(row)] for row in rows]
    return Generation(tokens, iterations)


def decode(
    target: LanguageModel,
    draft: LanguageModel | None,
    prompts: Sequence[Sequence[int]],
    *,
    verifier: str | Verifier = "kseq",
    num_drafts: int = 8,
    draft_length: int = 8,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: int | np.random.Generator | torch.Generator | None = None,
    stop_tokens: Sequence[int] = (),
) -> Iterator[Iteration]:
    """Continue every prompt (a list of token ids), one turn of the loop at a time.

    `num_drafts`=0 is autoregressive and needs no `draft`. `temperature`, `top_k` and `top_p` shape
    the laws of both models, see `Sampling`; at temperature 0 every rule becomes exact greedy
    decoding. A row ends with the first of `stop_tokens` or after `max_new_tokens`. The same seed on
    the same device gives the same text.

    Raises ValueError or TypeError, before any work, when an argument does not fit the models.
    """
    num_drafts = check_count(num_drafts, "num_drafts", least=0)
    draft_length = check_count(draft_length, "draft_length") if num_drafts else 0
    max_new_tokens = check_count(max_new_tokens, "max_new_tokens")
    sampling = Sampling(temperature, top_k, top_p)
    models = [target] if num_drafts == 0 else [target, draft]
    _check_models(models)
    _check_prompts(prompts, models, max_new_tokens)
    _check_tokens(stop_tokens, target.vocab_size, "stop_tokens")
    rule = verifiers.get(verifier)
    if num_drafts:
        _check_rule(rule, num_drafts)
    return _iterations(
        target,
        draft,
        [list(prompt) for prompt in prompts],
        rule,
        Tree(num_drafts, draft_length),
        max_new_tokens,
        sampling,
        as_generator(generator, target.device),
        torch.tensor(list(stop_tokens), dtype=torch.int64, device=target.device),
    )


@dataclass(frozen=True)
class Sampling:
    """How a model's logits become the law of the next token, for both models alike.

    In this order, as in transformers: divide by `temperature`; keep the `top_k` largest logits and
    what ties with the last of them; of the law so far keep the fewest likeliest tokens whose mass
    reaches `top_p` (ties: the higher id), and renormalise. At temperature 0 the likeliest token has
    probability one. The guarantee is about this law: truncated, it is the law of the text.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.temperature, at_least=0):
            raise ValueError(
                f"temperature: found {self.temperature!r}. Give a finite number >= 0; 0 decodes "
                "greedily."
            )
        if self.top_k is not None:
            check_count(self.top_k, "top_k")
        if self.top_p is not None and not (_is_number(self.top_p, 0) and 0 < self.top_p <= 1):
            raise ValueError(
                f"top_p: found {self.top_p!r}. Give a number above 0 and up to 1, or None to keep "
                "every token."
            )

    def law(self, logits: Tensor) -> Tensor:
        """Probabilities (..., V) from logits (..., V), in float32 at least."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p is not None:
            ordered, ids = logits.sort(dim=-1, stable=True)
            dropped = ordered.softmax(-1).cumsum(-1) <= 1 - self.top_p
            dropped[..., -1] = False
            dropped = torch.zeros_like(dropped).scatter_(-1, ids, dropped)
            logits = logits.masked_fill(dropped, -torch.inf)
        return logits.softmax(-1)


def _is_number(value: Any, at_least: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return False
    return at_least <= value < float("inf")


@dataclass(frozen=True)
class Tree:
    """K paths of L tokens behind one root: node 0, then node 1 + j L + i for token i of path j."""

    num_drafts: int
    draft_length: int

    @property
    def size(self) -> int:
        return 1 + self.num_drafts * self.draft_length

    def path_of(self, node: Tensor) -> Tensor:
        """The path of a node; negative for the root and for slots of the prefix."""
        return (node - 1).div(max(self.draft_length, 1), rounding_mode="floor")

    def depth_of(self, node: Tensor) -> Tensor:
        """How many tokens behind the root a node stands; 0 for the root."""
        return torch.where(node > 0, (node - 1) % max(self.draft_length, 1) + 1, 0)

    def mask(self, node: Tensor, length: Tensor, span: int) -> Tensor:
        """(B, N, span): what each `node` (N,) may see: prefix, root, and its path up to itself."""
        slot = torch.arange(span, device=node.device)
        held = slot - (length[:, None, None] - 1)  # the node each slot holds; <= 0 is the prefix
        node = node[:, None]
        return (held <= 0) | ((self.path_of(held) == self.path_of(node)) & (held <= node))


@dataclass
class State:
    """A batch of texts. Row b holds length[b] tokens and may grow to limit[b]."""

    tokens: Tensor  # (B, T) int64; nothing behind a row's length is ever read
    length: Tensor  # (B,)
    limit: Tensor  # (B,)
    done: Tensor  # (B,) bool
    longest: int  # max of length, known to the host


@torch.no_grad()
def _iterations(
    target: LanguageModel,
    draft: LanguageModel | None,
    prompts: list[list[int]],
    rule: Verifier,
    tree: Tree,
    max_new_tokens: int,
    sampling: Sampling,
    generator: torch.Generator,
    stop_tokens: Tensor,
) -> Iterator[Iteration]:
    state = _new_state(prompts, max_new_tokens, tree, target.device)
    models = [target, draft] if tree.num_drafts else [target]
    slots = int(state.limit.max()) + tree.size - 1
    caches = [model.new_cache(len(prompts), slots) for model in models]
    for model, cache in zip(models, caches, strict=True):
        read_prompts(model, cache, state)

    while True:
        if tree.num_drafts:
            drafted, draft_laws = draft_paths(draft, caches[1], state, tree, sampling, generator)
        else:
            drafted, draft_laws = state.tokens.new_empty(len(prompts), 0, 0), None
        logits = score_paths(target, caches[0], state, tree, drafted)
        select = verify_paths if isinstance(rule, TreeVerifier) and tree.num_drafts else walk_down
        block, accepted, path = select(rule, drafted, draft_laws, logits, sampling, generator)
        kept = commit(state, caches, tree, block, accepted, path, stop_tokens)

        counts = torch.stack([accepted, path, kept, state.done.long(), state.length], 1)
        flat, block, counts = _to_host(drafted.flatten(1), block, counts)
        accepted, path, kept, done, length = counts.unbind(1)
        state.longest = int(length.max())
        yield Iteration(flat.view(drafted.shape), block, accepted, path, kept)
        if done.all():
            return


def draft_paths(
    draft: LanguageModel,
    cache: Any,
    state: State,
    tree: Tree,
    sampling: Sampling,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Step 1. K i.i.d. paths (B, K, L), and the law each of their tokens came from (B, K, L, V).

    The cache may lack the last two committed tokens: before a bonus token stands the last drafted
    one, which the draft never read. So it reads two; if it knew the first, nothing changes.
    """
    paths = torch.arange(tree.num_drafts, device=draft.device)
    span = state.longest + tree.size - 1
    last_two = (state.length[:, None] + torch.arange(-2, 0, device=draft.device)).clamp_min(0)
    causal = torch.arange(span, device=draft.device) <= last_two[:, :, None]
    logits = draft(state.tokens.gather(1, last_two), last_two, cache, last_two, causal)
    law = sampling.law(logits[:, -1:]).expand(-1, tree.num_drafts, -1)
    tokens, laws = [], []
    for depth in range(tree.draft_length):
        tokens.append(sample(law, generator))
        laws.append(law)
        if depth + 1 < tree.draft_length:
            node = 1 + paths * tree.draft_length + depth
            logits = _call(draft, cache, state, tree, node, tokens[-1])
            law = sampling.law(logits)
    return torch.stack(tokens, 2), torch.stack(laws, 2)


def score_paths(
    target: LanguageModel, cache: Any, state: State, tree: Tree, drafted: Tensor
) -> Tensor:
    """Step 2. Logits (B, 1 + K L, V) of the token after every node of the tree, from one call."""
    root = state.tokens.gather(1, state.length[:, None] - 1)
    node = torch.arange(tree.size, device=target.device)
    return _call(target, cache, state, tree, node, torch.cat([root, drafted.flatten(1)], 1))


def walk_down(
    rule: Verifier,
    drafted: Tensor,
    draft_laws: Tensor | None,
    logits: Tensor,
    sampling: Sampling,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Steps 3 and 4, by a token rule. The block (B, L+1), -1 behind its end; how many of its tokens
    were drafted (B,); a path that holds them (B,).

    A row that has stopped runs on, unread, with one draft: no rule is asked about no drafts at all.
    """
    batch, num_drafts, draft_length = drafted.shape
    rows, paths = (torch.arange(n, device=drafted.device) for n in (batch, num_drafts))
    block = drafted.new_zeros(batch, draft_length + 1)
    alive = torch.ones(batch, num_drafts, dtype=torch.bool, device=drafted.device)
    running = torch.ones_like(block[:, 0], dtype=torch.bool)
    accepted, path, node = (torch.zeros_like(block[:, 0]) for _ in range(3))
    for depth in range(draft_length):
        offered = torch.where(alive, drafted[:, :, depth], -1)
        target_law = sampling.law(logits[rows, node])
        token = rule.pick(draft_laws[rows, path, depth], target_law, offered, generator)
        block[:, depth] = token
        survivors = alive & (drafted[:, :, depth] == token[:, None])
        running = running & survivors.any(1)
        if running.device.type == "cpu" and not running.any():  # a look would stall a GPU
            break
        accepted += running
        path = torch.where(running, survivors.to(torch.int8).argmax(1), path)
        alive = torch.where(running[:, None], survivors, paths == path[:, None])
        node = 1 + path * draft_length + depth
    else:
        bonus = sample(sampling.law(logits[rows, node]), generator)
        block[:, -1] = torch.where(running, bonus, block[:, -1])
    behind = torch.arange(draft_length + 1, device=block.device) > accepted[:, None]
    return block.masked_fill(behind, -1), accepted, path


def verify_paths(
    rule: TreeVerifier,
    drafted: Tensor,
    draft_laws: Tensor,
    logits: Tensor,
    sampling: Sampling,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Steps 3 and 4, by a rule that judges whole paths and so reads the law at every node."""
    laws = sampling.law(logits)
    root, behind = laws[:, None, :1], laws[:, 1:].unflatten(1, drafted.shape[1:])
    target_laws = torch.cat([root.expand(-1, drafted.shape[1], -1, -1), behind], 2)
    block = rule.pick_block(draft_laws, target_laws, drafted, generator)
    return block.tokens, block.accepted, block.path


def commit(
    state: State,
    caches: list[Any],
    tree: Tree,
    block: Tensor,
    accepted: Tensor,
    path: Tensor,
    stop_tokens: Tensor,
) -> Tensor:
    """Append each block up to its stop token or limit, move its path up. How many joined, (B,)."""
    kept = torch.minimum(accepted + 1, state.limit - state.length)
    column = torch.arange(block.shape[1], device=block.device)
    stops = torch.isin(block, stop_tokens) & (column < kept[:, None])
    kept = torch.where(stops.any(1), stops.to(torch.int8).argmax(1) + 1, kept)
    kept = torch.where(state.done, 0, kept)

    state.tokens.scatter_(1, state.length[:, None] + column, block)
    if tree.num_drafts:
        behind = state.length[:, None] + column[:-1]
        for cache in caches:
            cache.move(behind + path[:, None] * tree.draft_length, behind)
    state.length = state.length + kept
    state.done = state.done | stops.any(1) | (state.length == state.limit)
    return kept


def read_prompts(model: LanguageModel, cache: Any, state: State) -> None:
    """Fill the cache with the prompts but for their last tokens, the roots of the first turn.

    In pieces: the logits of a whole prompt, which nobody needs, would be the largest tensor of all.
    """
    slot = torch.arange(state.longest - 1, device=model.device)
    for piece in slot.split(PROMPT_PIECE):
        slots = piece.expand(len(state.length), -1)
        causal = slot <= slots[:, :, None]
        model(state.tokens.gather(1, slots), slots, cache, slots, causal)


def _call(
    model: LanguageModel, cache: Any, state: State, tree: Tree, node: Tensor, tokens: Tensor
) -> Tensor:
    """Logits (B, N, V) at tree nodes `node` (N,) that hold `tokens` (B, N).

    A position past a row's limit is clamped: the model may not know it, and its token is not kept.
    """
    slots = state.length[:, None] - 1 + node
    positions = state.length[:, None] - 1 + tree.depth_of(node)
    positions = torch.minimum(positions, state.limit[:, None] - 1)
    return model(
        tokens,
        positions,
        cache,
        slots,
        tree.mask(node, state.length, state.longest + tree.size - 1),
    )


def _new_state(
    prompts: list[list[int]], max_new_tokens: int, tree: Tree, device: torch.device
) -> State:
    lengths = [len(prompt) for prompt in prompts]
    width = max(lengths) + max_new_tokens + tree.draft_length + 1
    padded = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts])
    length = torch.tensor(lengths, device=device)
    done = torch.zeros_like(length, dtype=torch.bool)
    return State(padded.to(device), length, length + max_new_tokens, done, max(lengths))


def _to_host(*parts: Tensor) -> tuple[Tensor, ...]:
    """The one wait for the device in a turn: everything that the host must know, in one copy."""
    return torch.cat(parts, 1).cpu().split([part.shape[1] for part in parts], 1)


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
