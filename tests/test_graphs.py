"""A turn can be recorded once and replayed: on a GPU as a CUDA graph, here by a recorder.

The recorder keeps every operation of a turn with its operands, and replays them in that order,
writing results where they stood. As in a graph, what Python decided or read stays decided; so a turn
that reads a value, makes a shape of one or rebinds a tensor writes another text.
"""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from decoding_rules import decoding_rules
from tiny_models import make_pair
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spectr_lite.decoding import Decoder, generate, graphs, state
from spectr_lite.models.markov import MarkovModel, worked_pair
from spectr_lite.models.ngram import TrigramModel
from spectr_lite.transport import nested
from spectr_lite.verifiers import paths

aten = torch.ops.aten
SYNCHRONIZING = {  # operations that bring a value to the host, or one from it
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.lift_fresh,
    aten.masked_select,
    aten.nonzero,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
}
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 0, 1]]
RULES = {name: num_drafts for name, num_drafts in decoding_rules() if name != "importance"}


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        self.operations.append((operation, args, kwargs or {}, made))
        return made

    def synchronizing(self):
        for operation, args, _, _ in self.operations:
            by_mask = operation is aten.index.Tensor and any(
                part.dtype == torch.bool for part in tree_leaves(args[1]) if part is not None
            )
            if operation.overloadpacket in SYNCHRONIZING or by_mask:
                yield str(operation)

    def replay(self):
        for operation, args, kwargs, before in self.operations:
            for old, new in zip(
                tree_leaves(before), tree_leaves(operation(*args, **kwargs)), strict=True
            ):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def recorded(monkeypatch):
    """Turns run as on a GPU, with the recorder for a graph; the list of its replays' lengths."""
    replayed = []

    def first_run(step, device):
        with Recorder() as recorder:
            result = step()
        return result, next(recorder.synchronizing(), None)

    def capture(step, generator, pool):
        with Recorder() as recorder:
            result = step()
        fresh = [True]  # recording ran the step, which a capture does not

        def replay():
            if not fresh:
                recorder.replay()
                replayed.append(len(recorder.operations))
            fresh.clear()

        return (replay, result), pool

    monkeypatch.setattr(graphs, "first_run", first_run)
    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(paths, "SYNC_IS_FREE", set())
    monkeypatch.setitem(nested.DENSE_LIMIT, "cpu", 1024)
    monkeypatch.setattr(state, "SPAN", 16)
    return replayed


@pytest.fixture(scope="module")
def pair():
    return make_pair()


def texts(decoder):
    """Two batches, the second shorter, through one decoder."""
    first = decoder.generate(PROMPTS, max_new_tokens=30, generator=1, stop_tokens=[4])
    second = decoder.generate(PROMPTS[::-1], max_new_tokens=20, generator=2)
    return first.tokens, second.tokens


def as_it_is(decoder):
    """The decoder, whose turns are then never recorded: the same kernels, one by one."""
    decoder.graphs.disabled = True
    return decoder


def both_ways(*models, **settings):
    """(recorded, as it is): the texts of a decoder that replays and of one that never does."""
    return texts(Decoder(*models, **settings)), texts(as_it_is(Decoder(*models, **settings)))


@pytest.mark.parametrize("name", RULES)
def test_a_replayed_turn_is_the_turn(name, pair, recorded):
    settings = {"num_drafts": RULES[name], "draft_length": 3, "verifier": name}
    found, expected = both_ways(*pair, **settings)
    assert found == expected
    assert len(recorded) > 10


@pytest.mark.parametrize(
    "settings",
    [
        {"num_drafts": 0},
        {"temperature": 0},
        {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "num_drafts": 2},
        {"verifier": "optimal-block", "top_p": 0.7, "num_drafts": 2},
    ],
    ids=str,
)
def test_every_setting_can_be_replayed(settings, pair, recorded):
    found, expected = both_ways(*pair, **{"draft_length": 3} | settings)
    assert found == expected
    assert len(recorded) > 10


def test_a_turn_in_bfloat16_can_be_replayed(recorded):
    models = make_pair(dtype=torch.bfloat16)
    found, expected = both_ways(*models, num_drafts=2, draft_length=3)
    assert found == expected
    assert len(recorded) > 10


def test_other_models_can_be_replayed(recorded):
    trigram = TrigramModel([[1, 2, 3, 4, 5, 1, 2, 6]], 11)
    found, expected = both_ways(make_pair()[0], trigram, num_drafts=2)
    assert found == expected
    assert len(recorded) > 10
    target, draft = worked_pair()
    plain = as_it_is(Decoder(target, draft, num_drafts=2))
    expected = plain.generate([[3]] * 5, generator=0).tokens
    assert generate(target, draft, [[3]] * 5, num_drafts=2, generator=0).tokens == expected


@pytest.mark.parametrize("rule", ["kseq", "block"])
def test_logits_that_are_no_distribution_are_seen_in_a_replay(rule, pair, recorded):
    class Broken:
        """The chain, but NaN after these tokens."""

        def __init__(self, chain, tokens):
            self.chain, self.tokens = chain, torch.tensor(tokens)
            self.config, self.vocab_size, self.device = chain.config, chain.vocab_size, chain.device
            self.new_cache = chain.new_cache

        def __call__(self, tokens, *rest):
            broken = (tokens[..., None] == self.tokens).any(-1, keepdim=True)
            return torch.where(broken, torch.nan, self.chain(tokens))

    target, draft = worked_pair()
    settings = {"num_drafts": 1, "draft_length": 2, "verifier": rule}
    rare = MarkovModel([[0.5, 0.48, 0.02], [0.5, 0.48, 0.02], [0.5, 0.5, 0]], [0.5, 0.5, 0])
    seen = []
    for prepare in (Decoder, lambda *models, **settings: as_it_is(Decoder(*models, **settings))):
        decoder = prepare(target, Broken(draft, [0, 1]), **settings)
        text = decoder.generate([[0]] * 3, max_new_tokens=20, generator=1).tokens
        decoder = prepare(Broken(rare, [2]), draft, **settings)
        with pytest.raises(ValueError, match="target: its logits for position") as caught:
            decoder.generate([[0]] * 2, max_new_tokens=90, generator=1)
        assert decoder.state is None and not decoder.graphs.replays
        seen.append((text, str(caught.value), len(recorded)))
    assert seen[0][:2] == seen[1][:2]
    assert seen[0][2] == seen[1][2] > 4  # the second way replays nothing


def test_a_rule_that_synchronizes_is_run_as_it_is_with_one_warning(pair, recorded):
    decoder = Decoder(*pair, verifier="importance", num_drafts=2, draft_length=2)
    settings = {"max_new_tokens": 10, "generator": 3}
    with pytest.warns(UserWarning, match="without CUDA graphs, which is slower: aten") as caught:
        found = decoder.generate(PROMPTS, **settings).tokens
        decoder.generate([PROMPTS[0] * 5], **settings)  # other buffers, and no other warning
    assert len(caught) == 1
    assert not recorded
    again = as_it_is(Decoder(*pair, verifier="importance", num_drafts=2, draft_length=2))
    assert again.generate(PROMPTS, **settings).tokens == found


def test_a_capture_that_fails_leaves_the_text_as_it_was(pair, recorded, monkeypatch):
    def fails(step, generator, pool):
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(graphs, "capture", fails)
    decoder = Decoder(*pair, num_drafts=3, draft_length=2)
    with pytest.warns(UserWarning, match="not permitted when stream is capturing$") as caught:
        found = texts(decoder)
    assert len(caught) == 1
    assert texts(as_it_is(Decoder(*pair, num_drafts=3, draft_length=2))) == found


def test_the_recorder_sees_a_synchronization_and_a_frozen_number(recorded):
    """What the tests above would say of a turn that a graph could not hold."""
    count = torch.zeros(1)
    run = graphs.Captured(torch.Generator())

    def synchronizes():
        return count.add_(1) if count.item() < 9 else count

    with pytest.warns(UserWarning, match="_local_scalar_dense"):
        run(0, synchronizes)

    calls = iter(range(100))
    run = graphs.Captured(torch.Generator())
    results = [run(0, lambda: torch.full((1,), next(calls))).item() for _ in range(5)]
    assert results == [0, 1, 1, 1, 1]


def test_torchs_notice_of_its_debug_mode_is_not_passed_on(monkeypatch):
    """The mode is only watched with; what else is said, and a synchronization, still arrives."""

    class Stream:
        def wait_stream(self, other):
            pass

    def debug_mode(mode):
        warnings.warn("Synchronization debug mode is a prototype feature and does not yet detect all "
                      "synchronizing operations", stacklevel=1)  # fmt: skip

    def step(*said):
        for text in said:
            warnings.warn(text, stacklevel=1)
        return torch.zeros(1)

    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", debug_mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert graphs.first_run(step, torch.device("cpu"))[1] is None
        with pytest.raises(UserWarning, match="something else"):
            graphs.first_run(lambda: step("something else"), torch.device("cpu"))
        waits = graphs.first_run(lambda: step(f"{graphs.SYNCHRONIZED} 1"), torch.device("cpu"))[1]
    assert waits.endswith("waits for the device") and __file__ in waits


def test_a_graph_finds_every_tensor_where_it_was(pair):
    decoder = Decoder(*pair, num_drafts=3, draft_length=2)
    decoder.generate(PROMPTS, max_new_tokens=20, generator=0)
    held = decoder.state
    addresses = [tensor.data_ptr() for tensor in state._tensors(held)]
    assert len(addresses) == 5 + 2  # of the text, and each model's cache
    for prompts in (PROMPTS, PROMPTS[::-1], [[1], [2], [3]]):
        for _ in decoder.decode(prompts, max_new_tokens=15):
            assert [tensor.data_ptr() for tensor in state._tensors(held)] == addresses
    assert decoder.state is held


def test_a_text_forgets_the_stop_tokens_of_the_one_before(pair):
    decoder = Decoder(*pair, num_drafts=2, draft_length=2)
    free = decoder.generate([[1]], max_new_tokens=12, generator=3).tokens[0]
    settings = {"max_new_tokens": 12, "generator": 3}
    for stops in (free[4:5], free[2:3], []):
        found = decoder.generate([[1]], stop_tokens=stops, **settings).tokens[0]
        assert found == (free[: free.index(stops[0]) + 1] if stops else free)


def test_texts_of_another_shape_get_new_buffers(pair):
    decoder = Decoder(*pair, num_drafts=2, draft_length=2)
    # The second needs slots for two tokens more, and the first had some for its drafts.
    for prompts, new in (([[1]], 5), ([[1]], 7), ([[1, 2]], 30), ([[1], [2]], 30), ([[3]], 4)):
        found = decoder.generate(prompts, max_new_tokens=new, generator=7).tokens
        alone = generate(
            *pair, prompts, num_drafts=2, draft_length=2, max_new_tokens=new, generator=7
        )
        assert found == alone.tokens


def test_a_decoder_writes_one_batch_at_a_time(pair):
    decoder = Decoder(*pair, num_drafts=2, draft_length=2)
    first = decoder.decode(PROMPTS)
    next(first)
    next(decoder.decode(PROMPTS))
    with pytest.raises(RuntimeError, match="this decoder has begun other texts since"):
        next(first)


def test_nothing_keeps_the_buffers_of_a_decoder_that_is_gone(pair):
    import weakref

    decoder = Decoder(*pair, num_drafts=2, draft_length=2)
    decoder.generate(PROMPTS, max_new_tokens=5)
    tokens = weakref.ref(decoder.state.tokens)
    del decoder
    assert tokens() is None


# --- on a GPU, the real thing: python -m pytest -m gpu ---


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("name", RULES)
def test_a_graph_writes_the_text_of_the_same_kernels_without_it(name, monkeypatch):
    monkeypatch.setattr(state, "SPAN", 16)
    settings = {"num_drafts": RULES[name], "draft_length": 3, "verifier": name}
    models = make_pair("cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # disabled graphs would warn
        decoder = Decoder(*models, **settings)
        found = texts(decoder)
    assert decoder.graphs.replays and not decoder.graphs.disabled
    assert texts(as_it_is(Decoder(*models, **settings))) == found
    greedy = settings | {"temperature": 0}
    assert texts(Decoder(*models, **greedy)) == texts(Decoder(*make_pair(), **greedy))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_graph_in_bfloat16():
    """In the precision of an H100, for which torch would choose cuDNN's attention."""
    models = make_pair("cuda", torch.bfloat16)
    decoder = Decoder(*models, num_drafts=3, draft_length=3)
    found = texts(decoder)
    assert decoder.graphs.replays and not decoder.graphs.disabled
    assert texts(as_it_is(Decoder(*models, num_drafts=3, draft_length=3))) == found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_failed_capture_leaves_the_gpu_usable():
    models = make_pair("cuda")
    settings = {"num_drafts": 2, "draft_length": 2}

    def synchronizes(step):
        step()
        return torch.zeros(1, device="cuda").item()

    generator = torch.Generator("cuda").manual_seed(0)
    expected = torch.rand(3, generator=torch.Generator("cuda").manual_seed(0), device="cuda")
    with pytest.raises(RuntimeError):
        graphs.capture(lambda: synchronizes(lambda: torch.rand(3, device="cuda")), generator, None)
    assert torch.equal(torch.rand(3, generator=generator, device="cuda"), expected)
    torch.rand(3, device="cuda")
    decoder = Decoder(*models, **settings)
    assert texts(decoder) == texts(Decoder(*models, **settings))
