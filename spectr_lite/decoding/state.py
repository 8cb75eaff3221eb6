"""What the loop works on: the drafted tree, the texts and the caches, in tensors that never move.

How the drafts lie in a KV cache. The committed token at position i is in slot i. The last one, at
position length - 1, is the root of the drafted tree, and node n of the tree lives in slot
length - 1 + n: node 0 is the root, node 1 + j L + i is token i of path j. Every path sees the one
shared prefix and itself: K drafts cost K L slots, and no copy of the prefix. After selection the kept
path moves up behind the prefix, and whatever else was drafted is never looked at again.

Paths that begin alike are scored as often as they were drafted. To score a shared node once would
make the number of nodes depend on what was drafted, and a graph has one number; padded to the
largest it would save nothing. `distinct_nodes` counts what that costs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectr_lite.models.interface import LanguageModel
from spectr_lite.verifiers.paths import is_first, shared_prefix

SPAN = 128  # attention reads the cache up to a multiple of this


@dataclass(frozen=True)
class Tree:
    """K paths of L tokens behind one root: node 0, then node 1 + j L + i for token i of path j.

    Without drafts K L = 0, and the root is all there is.
    """

    num_drafts: int
    draft_length: int

    @property
    def size(self) -> int:
        return 1 + self.num_drafts * self.draft_length

    def nodes(self, depth: int) -> slice:
        """The nodes that hold token `depth` of every path."""
        return slice(1 + depth, None, self.draft_length)

    def depth_of(self, node: Tensor) -> Tensor:
        """How many tokens behind the root a node stands; 0 for the root."""
        return torch.where(node > 0, (node - 1) % max(self.draft_length, 1) + 1, 0)

    def mask(self, length: Tensor, span: int) -> Tensor:
        """(B, size, span): what each node may see: prefix, root, and its path up to itself."""
        node = torch.arange(self.size, device=length.device)[:, None]
        slot = torch.arange(span, device=length.device)
        held = slot - (length[:, None, None] - 1)  # the node each slot holds; <= 0 is the prefix
        first = node - self.depth_of(node) + 1  # of the node's path
        return (held <= 0) | ((held >= first) & (held <= node))


@dataclass(frozen=True)
class Places:
    """Where the nodes of the tree stand this turn: slots, positions (B, size), mask (B, size, span)."""

    slots: Tensor
    positions: Tensor
    mask: Tensor


@dataclass(frozen=True)
class State:
    """A batch of texts. Row b holds length[b] tokens and may grow to limit[b].

    Written in place and never rebound: a graph knows these tensors by their addresses.
    """

    tree: Tree
    tokens: Tensor  # (B, T) int64; nothing behind a row's length is ever read
    length: Tensor  # (B,)
    limit: Tensor  # (B,)
    done: Tensor  # (B,) bool
    stops: Tensor  # (V,) bool, the tokens that end a text
    caches: tuple[Any, ...]  # of the target, and of the draft
    slots: int  # in each cache

    @classmethod
    def new(cls, models: Sequence[LanguageModel], tree: Tree, batch: int, capacity: int) -> State:
        """Room for `batch` texts of up to `capacity` tokens and their drafts."""
        device, slots = models[0].device, capacity + tree.size - 1
        width = capacity + tree.draft_length + 1  # a block may reach past the end of its text
        return cls(
            tree,
            torch.zeros(batch, width, dtype=torch.int64, device=device),
            *(torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(2)),
            torch.zeros(batch, dtype=torch.bool, device=device),
            torch.zeros(models[0].vocab_size, dtype=torch.bool, device=device),
            tuple(model.new_cache(batch, slots) for model in models),
            slots,
        )

    def fits(self, batch: int, capacity: int) -> bool:
        return batch == len(self.length) and capacity + self.tree.size - 1 <= self.slots

    def start(
        self, prompts: list[list[int]], max_new_tokens: int, stop_tokens: Sequence[int]
    ) -> None:
        """Put new texts in place of whatever was here."""
        width = max(map(len, prompts))
        padded = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts])
        self.tokens[:, :width] = padded.to(self.tokens.device)
        self.length.copy_(torch.tensor([len(prompt) for prompt in prompts]))
        self.limit.copy_(self.length + max_new_tokens)
        self.done.zero_()
        self.stops.zero_()
        for token in stop_tokens:
            self.stops[token] = True

    def span(self, longest: int) -> int:
        """How many slots attention reads when the longest text has this many tokens.

        A graph needs one number for many turns. All slots would do, and waste what is not filled
        yet: in bfloat16 SmolLM2-135M keeps 23 kB a slot, so a cache of 1,000 is 23 MB for each
        text, beside 270 MB of weights. Multiples of 128 waste at most 3 MB, and need a graph each.
        """
        return min(self.slots, -(-(longest + self.tree.size - 1) // SPAN) * SPAN)

    def places(self, span: int) -> Places:
        """A position past a row's limit is clamped: the model may not know it, and its token is not
        kept."""
        node = torch.arange(self.tree.size, device=self.length.device)
        root = self.length[:, None] - 1
        positions = torch.minimum(root + self.tree.depth_of(node), self.limit[:, None] - 1)
        return Places(root + node, positions, self.tree.mask(self.length, span))

    @property
    def cache_bytes(self) -> int:
        """Bytes of all caches: (prefix + K L) slots for each text, one prefix whatever K is."""
        return _bytes(self.caches)


@contextlib.contextmanager
def explained(
    models: Sequence[LanguageModel], tree: Tree, batch: int, capacity: int, held: int = 0
) -> Iterator[None]:
    """Running out of memory with the sizes in the message; at once, where it is certain.

    `held`: bytes of caches that are there already, to be used again or dropped.
    """
    slots, vocabulary = capacity + tree.size - 1, models[0].vocab_size
    sizes = {
        f"caches of {batch} x {slots} slots": sum(
            batch * slots * _bytes(model.new_cache(1, 1)) for model in models
        ),
        f"logits of {batch} x {tree.size} x {vocabulary}": 4 * batch * tree.size * vocabulary,
        "the drafts' distributions": 4 * batch * (tree.size - 1) * vocabulary,
    }
    message = (
        f"out of memory on {models[0].device}: "
        + ", ".join(f"{name}: {size / 2**20:,.0f} MiB" for name, size in sizes.items())
        + ". Decode fewer prompts at once, or lower num_drafts, draft_length or max_new_tokens."
    )
    free = free_bytes(models[0].device)
    if free is not None and sum(sizes.values()) > free + held:
        raise torch.cuda.OutOfMemoryError(f"{message} Free: {free / 2**20:,.0f} MiB.")
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate" in str(error):
            raise torch.cuda.OutOfMemoryError(message) from error
        raise


def free_bytes(device: torch.device) -> int | None:
    """What can still be allocated on a GPU; None on a CPU, whose memory others share."""
    if torch.device(device).type != "cuda":
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def _bytes(held: Any) -> int:
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in _tensors(held)}.values())


def _tensors(held: Any) -> Iterator[Tensor]:
    """Every tensor in an object, however it keeps them."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, dict | list | tuple):
        for part in held.values() if isinstance(held, dict) else held:
            yield from _tensors(part)
    elif hasattr(held, "__dict__"):
        yield from _tensors(vars(held))


def distinct_nodes(drafted: Tensor) -> Tensor:
    """How many different nodes the drafts (B, K, L) have, with the root, (B,): 1 + L to 1 + K L."""
    return is_first(shared_prefix(drafted))[..., 1:].sum((-2, -1)) + 1
