"""The drafted tree, the texts and the caches, in tensors that stay in place. Explained in chapter 8.

Drafts in a KV cache: the committed token at position i is in slot i. The last one, at position
length - 1, is the root of the drafted tree, and node n of the tree is in slot length - 1 + n: node 0
is the root, node 1 + j L + i is token i of path j. Each path attends to the one shared prefix and to
itself, so K drafts cost K L slots and no copy of the prefix. After selection the accepted path moves
up behind the prefix; no later call attends to the rest.

A node that several paths share is scored once for each. Scoring it once in all would make the number
of nodes depend on what was drafted, but a recorded turn has a fixed number, and padding up to it
would save nothing. `distinct_nodes` counts how many nodes differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectr_lite.models.interface import LanguageModel
from spectr_lite.verifiers.paths import is_first, shared_prefix

SPAN = 128  # attention reads a multiple of this many slots


@dataclass(frozen=True)
class Tree:
    """K paths of L tokens behind a root: node 0, then node 1 + j L + i for token i of path j.

    Without drafts L = 0, and the tree is its root.
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
        """How many tokens behind the root each node is; 0 for the root. Any shape."""
        return torch.where(node > 0, (node - 1) % max(self.draft_length, 1) + 1, 0)

    def mask(self, length: Tensor, span: int) -> Tensor:
        """(B, size, span) bool: the slots each node attends to: prefix, root, its path up to itself."""
        node = torch.arange(self.size, device=length.device)[:, None]
        slot = torch.arange(span, device=length.device)
        held = slot - (length[:, None, None] - 1)  # the node in each slot; below 0 the prefix
        first = node - self.depth_of(node) + 1  # the first node of the same path
        return (held <= 0) | ((held >= first) & (held <= node))


@dataclass(frozen=True)
class Places:
    """Where the nodes are in this turn: slots and positions (B, size), mask (B, size, span)."""

    slots: Tensor
    positions: Tensor
    mask: Tensor


@dataclass(frozen=True)
class State:
    """A batch of texts. Row b holds length[b] tokens and may grow to limit[b].

    Its tensors are written in place and never replaced: a graph knows them by their addresses.
    """

    tree: Tree
    tokens: Tensor  # (B, T) int64; what is behind a row's length is never read
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
            tree=tree,
            tokens=torch.zeros(batch, width, dtype=torch.int64, device=device),
            length=torch.zeros(batch, dtype=torch.int64, device=device),
            limit=torch.zeros(batch, dtype=torch.int64, device=device),
            done=torch.zeros(batch, dtype=torch.bool, device=device),
            stops=torch.zeros(models[0].vocab_size, dtype=torch.bool, device=device),
            caches=tuple(model.new_cache(batch, slots) for model in models),
            slots=slots,
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

        A graph has a fixed span, so turns share one: a multiple of 128, with a graph for each. All
        slots would need one graph, but read those not filled yet: a slot of SmolLM2-135M in bfloat16
        is 23 kB, so 1,000 slots are 23 MB a text, beside 270 MB of weights; 128 are 3 MB.
        """
        return min(self.slots, -(-(longest + self.tree.size - 1) // SPAN) * SPAN)

    def places(self, span: int) -> Places:
        """Positions behind a row's limit become the last one: their tokens are not kept, and a model
        may not know so many positions."""
        node = torch.arange(self.tree.size, device=self.length.device)
        root = self.length[:, None] - 1
        positions = torch.minimum(root + self.tree.depth_of(node), self.limit[:, None] - 1)
        return Places(root + node, positions, self.tree.mask(self.length, span))

    @property
    def cache_bytes(self) -> int:
        """Bytes of all caches: capacity + K L slots for each text and model."""
        return _bytes(self.caches)


def estimate(
    models: Sequence[LanguageModel], tree: Tree, batch: int, capacity: int
) -> dict[str, int]:
    """Bytes of what a turn holds at once, by name. Rules for paths take several times their share."""
    slots, vocabulary = capacity + tree.size - 1, models[0].vocab_size
    places, drafted = 4 * batch * tree.size * vocabulary, 4 * batch * (tree.size - 1) * vocabulary
    return {
        f"caches of {batch} x {slots} slots": sum(
            batch * slots * _bytes(model.new_cache(1, 1)) for model in models
        ),
        f"logits of {batch} x {tree.size} x {vocabulary}": places,
        "the drafts' distributions": drafted,
        "drawing and selecting": places,
        # Attention reads it once more, in float32.
        f"a mask of {batch} x {tree.size} x {slots}": 5 * batch * tree.size * slots,
    }


@contextlib.contextmanager
def explained(
    models: Sequence[LanguageModel], tree: Tree, batch: int, capacity: int, held: int = 0
) -> Iterator[None]:
    """Raises OutOfMemoryError with sizes in its message, on entry if the device is surely too small.

    `held`: bytes of the caches that exist already, which will be used again or freed.
    """
    sizes = estimate(models, tree, batch, capacity)
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
    except (RuntimeError, MemoryError) as error:
        known = torch.cuda.OutOfMemoryError, MemoryError
        if isinstance(error, known) or "can't allocate" in str(error):
            raise torch.cuda.OutOfMemoryError(message) from error
        raise


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated; None on a CPU whose system does not tell."""
    if torch.device(device).type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = {name: int(size.split()[0]) for name, size in (line.split(":") for line in lines)}
    return 1024 * (sizes["MemAvailable"] + sizes["SwapFree"])


def _bytes(held: Any) -> int:
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in _tensors(held)}.values())


def _tensors(held: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples, dicts and attributes."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, dict | list | tuple):
        for part in held.values() if isinstance(held, dict) else held:
            yield from _tensors(part)
    elif hasattr(held, "__dict__"):
        yield from _tensors(vars(held))


def distinct_nodes(drafted: Tensor) -> Tensor:
    """How many different nodes, with the root, the drafts (B, K, L) have: (B,), 1 + L to 1 + K L."""
    return is_first(shared_prefix(drafted))[..., 1:].sum((-2, -1)) + 1
