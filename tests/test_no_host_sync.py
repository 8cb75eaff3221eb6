"""The rules a decoder runs on a GPU never synchronise with the host: no shape or branch depends on data.

Fake tensors carry shapes and no values, so that asking for a value raises. A rule that runs on them can
be captured in a CUDA graph.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from spectr_lite import verifiers
from spectr_lite.transport import nested
from spectr_lite.verifiers import paths

VOCABULARY = 1000


def on_fake_tensors(function):
    draft = torch.full((4, VOCABULARY), 1 / VOCABULARY)
    tokens = torch.zeros(4, 8, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    with FakeTensorMode() as mode:
        fake_draft, fake_tokens = mode.from_tensor(draft), mode.from_tensor(tokens)
        return function(fake_draft, fake_draft, fake_tokens, generator)


@pytest.mark.parametrize("name", ["coupling", "kseq", "optimal"])
def test_a_rule_runs_without_reading_a_value(name, monkeypatch):
    monkeypatch.setitem(nested.DENSE_LIMIT, "cpu", 1024)  # the path a GPU takes
    monkeypatch.setattr(paths, "SYNC_IS_FREE", set())
    token = on_fake_tensors(verifiers.get(name)._select)
    assert token.shape == (4,)


def test_the_check_sees_a_rule_that_does_read_one():
    def synchronizes(draft, target, tokens, generator):
        return tokens[..., 0] if bool((draft > 0).all()) else tokens[..., 1]

    with pytest.raises(DataDependentOutputException):
        on_fake_tensors(synchronizes)
