"""What decoding keeps in memory, and what it says when there is none left."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_pair

from spectr_lite.decoding import Decoder, decode, state
from spectr_lite.decoding.state import distinct_nodes

PROMPTS = [[1, 2, 3], [4]]


@pytest.fixture(scope="module")
def pair():
    return make_pair()


def cache_bytes(pair, num_drafts, draft_length=4):
    decoder = Decoder(*pair, num_drafts=num_drafts, draft_length=draft_length)
    decoder.generate(PROMPTS, max_new_tokens=50)
    return decoder.state.cache_bytes


def test_the_prefix_is_held_once_however_many_drafts(pair):
    """A draft adds its own L slots to each text, and no copy of what stands before."""
    target, draft = pair
    slot = sum(2 * 2 * 4 * 8 * model.config.layers for model in (target, draft))  # keys and values
    for num_drafts in (1, 2, 8):
        assert cache_bytes(pair, num_drafts) == 2 * slot * (3 + 50 + 4 * num_drafts)
    assert cache_bytes((target, None), 0) == 2 * (2 * 2 * 4 * 8 * 3) * (3 + 50)


def test_distinct_nodes_by_hand():
    drafted = torch.tensor([[[1, 2], [1, 3], [2, 2]], [[5, 5], [5, 5], [5, 5]]])
    assert distinct_nodes(drafted).tolist() == [1 + 2 + 3, 1 + 1 + 1]
    alone = torch.tensor([[[1, 2, 3]]])
    assert distinct_nodes(alone).tolist() == [4]


class Full:
    """A model whose device has no room left, from some call on."""

    def __init__(self, model, calls, error):
        self.model, self.left, self.error = model, calls, error
        self.config, self.vocab_size, self.device = model.config, model.vocab_size, model.device
        self.new_cache = model.new_cache

    def __call__(self, *arguments):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.model(*arguments)


@pytest.mark.parametrize("calls", [0, 3])
@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=["cuda", "cpu"],
)
def test_out_of_memory_comes_with_the_sizes(pair, error, calls):
    models = Full(pair[0], calls, error), pair[1]
    with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
        list(decode(*models, PROMPTS, num_drafts=3, draft_length=2, max_new_tokens=50))
    message = str(caught.value)
    assert "out of memory on cpu: caches of 2 x 59 slots: 0 MiB" in message
    assert "logits of 2 x 7 x 11: 0 MiB" in message
    assert "Decode fewer prompts at once, or lower num_drafts, draft_length" in message


def test_other_errors_of_a_model_stay_as_they_are(pair):
    models = Full(pair[0], 1, RuntimeError("shapes cannot be multiplied")), pair[1]
    with pytest.raises(RuntimeError, match=r"^shapes cannot be multiplied$"):
        list(decode(*models, PROMPTS))


def test_what_cannot_fit_is_refused_before_any_work(pair, monkeypatch):
    monkeypatch.setattr(state, "free_bytes", lambda device: 1000)
    models = Full(pair[0], 0, AssertionError("the model was called")), pair[1]
    with pytest.raises(torch.cuda.OutOfMemoryError, match="Free: 0 MiB"):
        next(decode(*models, PROMPTS))
    monkeypatch.setattr(state, "free_bytes", lambda device: 10**9)
    decoder = Decoder(*pair)
    next(decoder.decode(PROMPTS))
    sizes = state.estimate(pair, decoder.tree, len(PROMPTS), 3 + 64)
    left = sum(sizes.values()) - decoder.state.cache_bytes  # the caches are there already
    monkeypatch.setattr(state, "free_bytes", lambda device: left)
    next(decoder.decode(PROMPTS))
    monkeypatch.setattr(state, "free_bytes", lambda device: left - 1)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="a mask of 2 x 65 x 131: 0 MiB"):
        next(decoder.decode(PROMPTS))


def test_sizes_beyond_the_memory_of_a_cpu_are_refused_before_any_is_taken(pair):
    models = Full(pair[0], 0, AssertionError("the model was called")), pair[1]
    assert 0 < state.free_bytes(torch.device("cpu")) < 2**50
    for num_drafts, draft_length in ((10**6, 8), (30_000, 50)):  # by the logits; by the mask
        with pytest.raises(torch.cuda.OutOfMemoryError, match="lower num_drafts"):
            next(decode(*models, PROMPTS, num_drafts=num_drafts, draft_length=draft_length))
