"""The Triton kernels, run by Triton's interpreter, choose the tokens of the steps in torch.

    TRITON_INTERPRET=1 python tests/interpreted_kernels.py

The interpreter must be chosen before the kernels are read, so that this is a process of its own;
tests/test_kernels.py starts it, and on a GPU calls the functions. Exit status 1, and the case, where
the two differ.
"""

from __future__ import annotations

import pytest
import torch
from launches import as_on_a_gpu
from prefix_trees import prefix_tree
from tiny_models import make_pair

from spectr_lite import kernels
from spectr_lite.decoding import Decoder
from spectr_lite.decoding.sampling import Sampling
from spectr_lite.transport import nested
from spectr_lite.verifiers import Coupling, KSeq, Optimal, OptimalBlock, nodes, optimal_block

RULES = {"coupling": Coupling, "kseq": KSeq, "optimal": Optimal, "optimal-block": OptimalBlock}


def same_tokens(
    name: str, count: int, length: int, vocabulary: int, seed: int, device: str = "cpu"
) -> set[int]:
    """Compares block, length and path for two rows; the numbers of accepted tokens."""
    planned = name.startswith("optimal")
    rule = RULES[name](4 + seed % 5) if planned else RULES[name]()
    draft, target, paths = prefix_tree(2, count, length, vocabulary, seed)
    draft, target = draft.float(), target.float()
    nodes_of = torch.cat([target[:, :1, 0], target[:, :, 1:].flatten(1, 2)], 1)
    blocks = name == "optimal-block"
    deal = count + (1 if blocks else 2) if planned else count
    width = length * deal + (2 if blocks else 1)
    generator = torch.Generator().manual_seed(seed)
    coins = torch.rand(2, width, dtype=torch.float64, generator=generator)
    missing = torch.zeros(2, 1 + count * length, dtype=torch.bool)
    given = [part.to(device) for part in (draft, nodes_of, missing, paths, coins)]
    found = [part.cpu() for part in kernels.in_kernels(rule, *given)]
    on_the_way, last = coins[:, : length * deal].view(2, length, deal), coins[:, length * deal :]
    with as_on_a_gpu():
        if isinstance(rule, OptimalBlock):
            steps = optimal_block.in_three_steps
            block = steps(rule.selection, draft, target, paths, on_the_way, last)
        else:
            block = nodes.in_three_steps(rule, draft, target, paths, on_the_way, last[:, 0])
    expected = block.tokens, block.accepted, block.path
    assert all(map(torch.equal, found, expected)), (name, seed, found, expected)
    # A missing distribution on the way ends the block, without a token of its own.
    depth = int(found[1][0])
    if seed == 0:
        given[2][0, int(found[2][0]) * length + depth if depth else 0] = True
        cut = kernels.in_kernels(rule, *given)[0].cpu()
        assert cut[0, depth:].tolist() == [-1] * (length + 1 - depth)
        assert torch.equal(cut[0, :depth], found[0][0, :depth]) and torch.equal(cut[1], found[0][1])
    return set(found[1].tolist())


def same_plan(vocabulary: int, classes: int) -> None:
    """The tables of one node with two drafts, and tokens that one of the models never says."""
    generator = torch.Generator().manual_seed(0)
    draft = (torch.randn(vocabulary, generator=generator) * 2).softmax(-1)
    target = (draft.log() + torch.randn(vocabulary, generator=generator)).softmax(-1)
    draft[: vocabulary // 4], target[-vocabulary // 4 :] = 0, 0
    draft, target = draft / draft.sum(), target / target.sum()
    paths = torch.tensor([[[0], [1]]])
    parts = -(-vocabulary // kernels.CHUNK)
    _, activation, slope = kernels.make_plans(
        draft.expand(1, 2, 1, -1).contiguous(), target.expand(1, 3, -1).contiguous(), paths, parts,
        classes,
    )  # fmt: skip
    with as_on_a_gpu():
        made = nested.plan(draft, target, 2, classes)
    torch.testing.assert_close(activation[0, :classes], made.activation, atol=1e-12, rtol=0)
    torch.testing.assert_close(slope[0, :classes], made.slope, atol=1e-12, rtol=1e-12)
    assert len(made.activation.unique()) > 3


def same_probabilities(device: str = "cpu") -> None:
    logits = torch.randn(1, 5, 77, generator=torch.Generator().manual_seed(0)) * 4
    logits[0, 0, 3] = -torch.inf
    expected = Sampling(0.7).probs(logits)
    for row, bad in ((1, torch.nan), (2, torch.inf)):
        logits[0, row, 7] = bad
    logits[0, 3] = -torch.inf
    expected[0, 1:4] = 1 / 77
    probs, missing = kernels.target_probs(logits.to(device), Sampling(0.7))
    torch.testing.assert_close(probs.cpu(), expected, atol=1e-7, rtol=1e-5)
    assert missing.tolist() == [[False, True, True, True, False]]


def same_text(name: str) -> None:
    """A decoder that verifies by kernels writes the text of one that verifies by steps in torch."""
    models = make_pair(dtype=torch.float32)
    settings = {"verifier": name, "num_drafts": 2, "draft_length": 2, "temperature": 0.9}
    with as_on_a_gpu():
        decoder = Decoder(*models, **settings)
        decoder.graphs.disabled = True
        expected = decoder.generate([[1, 2, 3]], max_new_tokens=8, generator=0).tokens
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "take", lambda rule, device: True)
            found = decoder.generate([[1, 2, 3]], max_new_tokens=8, generator=0).tokens
    assert found == expected, (name, found, expected)


if __name__ == "__main__":
    kernels.CHUNK = 16  # so that a small vocabulary has several parts
    same_probabilities()
    same_plan(100, 14)
    for name in RULES:
        single = name == "coupling"
        shapes = [(1, 2, 17), (1, 2, 5)] if single else [(2, 2, 17), (3, 1, 5), (2, 2, 5)]
        ends = set().union(*(same_tokens(name, *shape, i) for i, shape in enumerate(shapes)))
        assert len(ends) > 1, ends
    same_text("kseq")
