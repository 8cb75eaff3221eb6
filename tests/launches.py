"""Counting what a turn's verification launches on a GPU, on a machine that has none.

Fake tensors carry shapes and no values. Every operation of torch that makes or writes a tensor is a
kernel there, but for views and for memory that is only reserved; every call of a Triton kernel is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spectr_experiments.prediction import NO_KERNEL
from spectr_lite.transport import nested
from spectr_lite.verifiers import paths

SETTING = {"count": 8, "length": 8, "vocabulary": 49_152}


class Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        writes = any(isinstance(part, torch.Tensor) for part in tree_leaves(made))
        if writes and not operation.is_view and operation.overloadpacket not in NO_KERNEL:
            self.names.append(str(operation))
        return made


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """The rules do on this CPU what they do on a GPU without Triton."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "SYNC_IS_FREE", set())
        patch.setitem(nested.DENSE_LIMIT, "cpu", 1024)
        yield


def launches(select, rule, sampling, dtype=torch.bfloat16) -> list[str]:
    """Names of the operations of `select`, which takes what `loop.verify_paths` takes."""
    count, length, vocabulary = SETTING.values()
    with FakeTensorMode(), as_on_a_gpu():
        drafted = torch.zeros(1, count, length, dtype=torch.int64)
        draft_probs = [torch.zeros(1, count, vocabulary) for _ in range(length)]
        logits = torch.zeros(1, 1 + count * length, vocabulary, dtype=dtype)
        with Launches() as counted:
            select(rule, drafted, draft_probs, logits, sampling, torch.Generator())
    return counted.names
