"""One way to call any selection rule, those of the package and those of others.

A rule is a name, a `Verifier` or its class, or any other object with the methods
    acceptance(draft, target, k)                -> P(Y in S)
    select(draft, target, tokens, generator)    -> token ids (n,), or a Selection; tokens is (n, k)
and perhaps output_distribution(draft, target, k) -> (V,). Such an object is given one pair of shape
(V,) at a time, in float64, as NumPy arrays unless the caller passed torch tensors. Explained in
chapter 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectr_lite.distributions import Drafting, TooManyTuples
from spectr_lite.verifiers import Verifier, get, names


@dataclass(frozen=True)
class Asked:
    """A rule, its name, and how its drafts are drawn.

    The methods take checked float64 tensors `draft` and `target` (V,). They raise RuntimeError when
    the rule raises, and ValueError when what it returns has the wrong shape or kind.
    """

    rule: Any
    name: str
    drafting: Drafting
    speaks_torch: bool

    @classmethod
    def of(cls, verifier: Any, speaks_torch: bool) -> Asked:
        """The rule `verifier`; TypeError if it is none, ValueError for an unknown name."""
        rule = get(verifier) if isinstance(verifier, str) else verifier
        if isinstance(rule, type):
            try:
                rule = rule()
            except Exception as error:
                raise TypeError(
                    f"verifier: {verifier.__qualname__} cannot be made without arguments ({error}). "
                    "Pass an instance."
                ) from error
        for method in ("acceptance", "select"):
            if not callable(getattr(rule, method, None)):
                raise TypeError(
                    f"verifier: {rule!r} has no method {method!r}. Pass a rule's name "
                    f"({', '.join(names())}), a Verifier, or an object with acceptance and select."
                )
        name = getattr(rule, "name", None)
        if not isinstance(name, str) or name == Verifier.name:
            name = type(rule).__name__
        drafting = getattr(rule, "default_drafting", None)
        drafting = drafting if isinstance(drafting, Drafting) else Verifier.default_drafting
        return cls(rule, name, drafting, speaks_torch or isinstance(rule, Verifier))

    @property
    def gives_laws(self) -> bool:
        """Whether P(Y = y | drafts) is known, so that what is enumerated is no mere claim."""
        return isinstance(self.rule, Verifier)

    def takes(self, k: int) -> bool:
        """Whether the rule is defined for k drafts. Only a Verifier can say no: 'coupling' takes one."""
        try:
            return not isinstance(self.rule, Verifier) or self.rule.check_drafts(k) == k
        except ValueError:
            return False

    def acceptance(self, draft: Tensor, target: Tensor, k: int) -> float | None:
        """P(Y in S); None where that needs an enumeration that is too large."""
        try:
            return float(self._numbers("acceptance", (), draft, target, k))
        except TooManyTuples:
            return None

    def output_distribution(self, draft: Tensor, target: Tensor, k: int) -> np.ndarray | None:
        """The rule's own distribution of Y, (V,); None where it has none."""
        if not callable(getattr(self.rule, "output_distribution", None)):
            return None
        return self._numbers("output_distribution", tuple(draft.shape), draft, target, k)

    def law(self, draft: Tensor, target: Tensor, tokens: Tensor) -> np.ndarray:
        """P(Y = y | drafts), (n, V), for drafted `tokens` (n, k); ValueError where it is not finite."""
        shape = len(tokens), len(draft)
        found = self._numbers("_given_drafts", shape, draft, target, tokens)
        if not np.isfinite(found).all():
            raise ValueError(
                f"verifier: {self.name}._given_drafts has entries that are not finite."
            )
        return found

    def select(
        self, draft: Tensor, target: Tensor, tokens: Tensor, source: torch.Generator
    ) -> np.ndarray:
        """The tokens (n,) that the rule selects for drafted `tokens` (n, k)."""
        if isinstance(self.rule, Verifier) and (tokens < 0).any():
            # Drawing without replacement may run out of tokens; only the hook takes dead drafts (-1).
            answer = self._ask("_select", draft, target, tokens, source)
        elif self.speaks_torch:
            answer = self._ask("select", draft, target, tokens, source)
        else:
            seed = int(torch.randint(2**62, (), generator=source))
            answer = self._ask("select", draft, target, tokens.numpy(), np.random.default_rng(seed))
        try:
            chosen = np.asarray(getattr(answer, "token", answer))
            found = f"{chosen.dtype} of shape {chosen.shape}"
        except (TypeError, ValueError):
            chosen, found = np.empty(0), type(answer).__name__
        if chosen.shape != (len(tokens),) or not np.issubdtype(chosen.dtype, np.integer):
            raise ValueError(
                f"verifier: {self.name}.select answered {found} for {len(tokens)} rows of drafts. "
                f"It must give one token id per row, shape ({len(tokens)},)."
            )
        outside = chosen[(chosen < 0) | (chosen >= len(draft))]
        if len(outside):
            raise ValueError(
                f"verifier: {self.name}.select answered token {outside[0]}; the vocabulary has ids 0 "
                f"to {len(draft) - 1}."
            )
        return chosen

    def _ask(self, method: str, draft: Tensor, target: Tensor, *rest: Any) -> Any:
        pair = (draft, target) if self.speaks_torch else (draft.numpy(), target.numpy())
        try:
            return getattr(self.rule, method)(*pair, *rest)
        except TooManyTuples:
            raise
        except Exception as error:
            raise RuntimeError(
                f"verifier: {self.name}.{method} raised {type(error).__name__}: {error}"
            ) from error

    def _numbers(self, method: str, shape: tuple[int, ...], *question: Any) -> np.ndarray:
        answer = self._ask(method, *question)
        try:
            numbers = np.asarray(answer, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"verifier: {self.name}.{method} answered {answer!r}. It must be numbers of shape "
                f"{shape}."
            ) from error
        if numbers.shape != shape:
            raise ValueError(
                f"verifier: {self.name}.{method} has shape {numbers.shape}. It must be {shape}."
            )
        return numbers
