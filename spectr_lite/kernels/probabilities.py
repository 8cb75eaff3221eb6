"""Kernel: probabilities of the next token at every node, from the logits; one program a row.

    target(x) = exp((logit(x) - max) / T) / sum

Logits that are no distribution (a NaN, +inf, or -inf alone) become the uniform one, with a mark.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def probabilities(logits, probs, missing, temperature, V, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    start = row.to(tl.int64) * V
    x = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], -float("inf"), tl.float32)
    for at in range(0, V, BLOCK):
        logit = tl.load(logits + start + at + x, mask=at + x < V, other=-float("inf"))
        largest = tl.maximum(largest, logit.to(tl.float32))
    top = tl.max(largest, 0)
    total = tl.zeros([BLOCK], tl.float64)
    for at in range(0, V, BLOCK):
        logit = tl.load(logits + start + at + x, mask=at + x < V, other=-float("inf"))
        weight = tl.exp((logit.to(tl.float32) - top) / temperature)
        total += tl.where(at + x < V, weight.to(tl.float64), 0.0)
    mass = tl.sum(total, 0)
    bad = ~(mass > 0)  # a NaN anywhere makes the sum one
    tl.store(missing + row, bad)
    for at in range(0, V, BLOCK):
        logit = tl.load(logits + start + at + x, mask=at + x < V, other=-float("inf"))
        weight = tl.exp((logit.to(tl.float32) - top) / temperature)
        prob = tl.where(bad, 1.0 / V, weight.to(tl.float64) / mass)
        tl.store(probs + start + at + x, prob.to(tl.float32), mask=at + x < V)
