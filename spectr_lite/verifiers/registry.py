"""Rules by name."""

from __future__ import annotations

from collections.abc import Callable

from spectr_lite.verifiers.base import Verifier

_RULES: dict[str, type[Verifier]] = {}


def register(name: str) -> Callable[[type[Verifier]], type[Verifier]]:
    """Class decorator: makes the rule available as `get(name)`."""

    def add(rule: type[Verifier]) -> type[Verifier]:
        if name in _RULES:
            raise ValueError(
                f"name: {name!r} is already registered by {_RULES[name].__qualname__}."
            )
        rule.name = name
        _RULES[name] = rule
        return rule

    return add


def get(name: str | Verifier) -> Verifier:
    """The rule of this name; a Verifier passes through. Raises ValueError for an unknown name."""
    if isinstance(name, Verifier):
        return name
    if name not in _RULES:
        raise ValueError(f"verifier: no rule named {name!r}. Known rules: {', '.join(names())}.")
    return _RULES[name]()


def names() -> tuple[str, ...]:
    """Every registered name, in the order the rules were added."""
    return tuple(_RULES)
