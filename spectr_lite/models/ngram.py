"""A trigram model with a language model's interface: a draft that costs no matrix product.

    P(w | u v) = max(c(u v w) - D3, 0) / c(u v .)  +  B(u v) P(w | v)      and the same one order down,
    P(w | v)   = max(c(v w) - D2, 0) / c(v .)      +  B(v) P(w),
    P(w)       = max(c(w) - D1, 0) / c(.)          +  B / V

B(h) = D N(h) / c(h .), with N(h) the number of different tokens seen after h, makes each
distribution sum to one; a context never seen has B = 1. D = n1 / (n1 + 2 n2), with n1 and n2 the
number of n-grams counted once and twice.
Source: absolute discounting, Ney, Essen and Kneser (Computer Speech and Language 8, 1994).

Counts lie sorted by context, so that memory grows with the text and not with V^3. In a drafted tree
the token before a node's is its parent's: the one in the visible cache slot at the position before.
Explained in chapter 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectr_lite.models.interface import ANY_LENGTH


@dataclass(frozen=True)
class TokenCache:
    """What each slot holds: a token and its position, both (batch, slots); -1 is empty."""

    tokens: Tensor
    positions: Tensor

    def move(self, source: Tensor, destination: Tensor) -> None:
        """Copy slots `source` to `destination`, both (batch, M)."""
        for entries in (self.tokens, self.positions):
            entries.scatter_(1, destination, entries.gather(1, source))


class Continuations(nn.Module):
    """The n-grams of one order: after each context h, the tokens seen and their discounted shares.

    Built from `ngrams` (N,), the number h V + w of every n-gram "h w" in the text, repeats kept.
    """

    keys: Tensor  # (C,) the contexts, sorted
    start: Tensor  # (C + 1,) where the continuations of each begin in `tokens` and `shares`
    tokens: Tensor  # the tokens w seen after each context, context by context
    shares: Tensor  # max(c(h w) - D, 0) / c(h .) of each
    left: Tensor  # (C + 1,) B(h), and last 1, for a context never seen

    def __init__(self, ngrams: Tensor, vocab_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        ngrams, counts = ngrams.unique(return_counts=True)
        keys, which, kinds = (ngrams // vocab_size).unique_consecutive(
            return_inverse=True, return_counts=True
        )
        counts = counts.to(torch.float64)
        totals = torch.zeros(len(keys), dtype=torch.float64).index_add_(0, which, counts)
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        discount = (once / (once + 2 * twice)).nan_to_num(0.5).clamp(0.1, 0.9).double()
        shares = (counts - discount) / totals[which]
        left = torch.cat([discount * kinds / totals, torch.ones(1)])
        start = torch.cat([torch.zeros(1, dtype=torch.int64), kinds.cumsum(0)])
        self.longest = int(kinds.max()) if len(kinds) else 0
        self.register_buffer("keys", keys)
        self.register_buffer("start", start)
        self.register_buffer("tokens", ngrams % vocab_size)
        self.register_buffer("shares", shares.to(dtype))
        self.register_buffer("left", left.to(dtype))

    def mix_into(self, distributions: Tensor, contexts: Tensor) -> Tensor:
        """The distributions (R, V) after each of `contexts` (R,): shares, and B(h) of the shorter one.

        `distributions` (R, V) are those after the contexts without their first token. Every row reads as
        many places as the longest list of continuations has, the spare ones with share 0: shapes then
        do not depend on the data, and nothing waits for the device.
        """
        if not len(self.keys):
            return distributions
        row = torch.searchsorted(self.keys, contexts).clamp_max(len(self.keys) - 1)
        row = torch.where(self.keys[row] == contexts, row, len(self.keys))
        distributions = distributions * self.left[row][:, None]
        end = self.start[(row + 1).clamp_max(len(self.keys))]
        place = self.start[row][:, None] + torch.arange(self.longest, device=distributions.device)
        seen = place < end[:, None]
        place = place.clamp_max(len(self.tokens) - 1)
        shares = torch.where(seen, self.shares[place], 0)
        return distributions.scatter_add_(1, self.tokens[place], shares)


class TrigramModel(nn.Module):
    """A trigram model of `texts`, lists of token ids below `vocab_size`; no n-gram spans two texts.

    Raises ValueError for ids out of range, or when no text has a token.
    """

    unigram: Tensor  # (1, V)

    def __init__(
        self,
        texts: Iterable[Sequence[int]],
        vocab_size: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.config = ANY_LENGTH
        rows = [torch.as_tensor(text, dtype=torch.int64) for text in texts]
        rows = [row for row in rows if len(row)]
        if not rows:
            raise ValueError("texts: no token found; give at least one text to count")
        tokens = torch.cat(rows)
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            raise ValueError(
                f"texts: found ids {int(tokens.min())} to {int(tokens.max())}; the vocabulary has "
                f"0 to {vocab_size - 1}. Encode the texts with the target's tokenizer."
            )
        pairs = torch.cat([row[:-1] * vocab_size + row[1:] for row in rows])
        triples = torch.cat(
            [(row[:-2] * vocab_size + row[1:-1]) * vocab_size + row[2:] for row in rows]
        )
        alone = Continuations(tokens, vocab_size, dtype)
        uniform = torch.full((1, vocab_size), 1 / vocab_size, dtype=dtype)
        self.register_buffer("unigram", alone.mix_into(uniform, torch.zeros(1, dtype=torch.int64)))
        self.bigrams = Continuations(pairs, vocab_size, dtype)
        self.trigrams = Continuations(triples, vocab_size, dtype)

    @property
    def device(self) -> torch.device:
        return self.unigram.device

    def new_cache(self, batch: int, slots: int) -> TokenCache:
        empty = torch.full((batch, slots), -1, device=self.device)
        return TokenCache(empty, empty.clone())

    @torch.no_grad()
    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        cache: TokenCache | None = None,
        slots: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, N, V) of the token after each of `tokens` (B, N), as Transformer.forward."""
        if cache is None:
            before = torch.cat([torch.full_like(tokens[:, :1], -1), tokens[:, :-1]], 1)
        elif positions is None or slots is None or mask is None:
            raise ValueError("a forward with a cache needs positions, slots and mask; one is None")
        else:
            cache.tokens.scatter_(1, slots, tokens)
            cache.positions.scatter_(1, slots, positions)
            seen = mask.shape[-1]
            parent = mask & (cache.positions[:, None, :seen] == positions[:, :, None] - 1)
            before = torch.where(parent, cache.tokens[:, None, :seen], -1).amax(-1)
        last = tokens.flatten()
        # No parent: a context that no text has, so that only the last token counts.
        context = torch.where(before < 0, -1, before * self.vocab_size + tokens).flatten()
        distributions = self.bigrams.mix_into(self.unigram.expand(len(last), -1), last)
        distributions = self.trigrams.mix_into(distributions, context)
        return distributions.log().unflatten(0, tokens.shape)
