"""transformers' contract with a loop of one's own: processors, criteria, padding, streams, outputs.

The reference is `generate` itself on tiny random models. False-alarm rate of each test of a
distribution: 1e-6.
"""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

from spectr_lite import stats

transformers = pytest.importorskip("transformers", minversion="5")

from transformers import (  # noqa: E402
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer  # noqa: E402

from spectr_lite.huggingface import decoder  # noqa: E402
from spectr_lite.huggingface.causal_lm import CausalLM  # noqa: E402
from spectr_lite.huggingface.processors import Processed  # noqa: E402

V = 8
SIZES = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
PROMPT = torch.tensor([[4, 5, 6, 7]])
TWO = torch.tensor([[4, 5, 6, 7], [1, 2, 3, 3]])


def model(kind: str = "llama", seed: int = 0, **changes):
    torch.manual_seed(seed)
    made = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **SIZES | changes)
    )
    for parameter in made.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(6)
    return made.eval()


@pytest.fixture(scope="module")
def pair():
    return model(), model(seed=1, hidden_size=16, num_hidden_layers=1)


def loop_of(draft, **settings):
    return decoder(draft, **{"num_drafts": 2, "draft_length": 4} | settings)


def both(target, loop, ids=PROMPT, **settings):
    settings = {"max_new_tokens": 12, "do_sample": False, "attention_mask": ids * 0 + 1} | settings
    return target.generate(ids, **settings), target.generate(ids, custom_generate=loop, **settings)


def frequencies(target, loop, length, count=4000, **settings):
    torch.manual_seed(0)
    made = target.generate(
        PROMPT,
        attention_mask=PROMPT * 0 + 1,
        do_sample=True,
        top_k=0,
        max_new_tokens=length,
        num_return_sequences=count,
        custom_generate=loop,
        **settings,
    )
    counts = np.zeros([V] * length)
    np.add.at(counts, tuple(made[:, PROMPT.shape[1] :].T.tolist()), 1)
    return counts


# --- processors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("verifier", ["block", "kseq"])
def test_a_processor_that_leaves_nothing_behind_the_last_token(pair, verifier):
    """no_repeat_ngram_size=1 forbids all eight tokens behind the third new one."""
    target, draft = pair
    probs = np.zeros([V] * 3)
    for text in itertools.permutations(range(4)):
        probs[text[:3]] = math.prod(
            float(_law(target, [4, 5, 6, 7, *text[:i]])[text[i]]) for i in range(3)
        )
    loop = decoder(draft, verifier=verifier, num_drafts=1, draft_length=3)
    counts = frequencies(target, loop, 3, no_repeat_ngram_size=1)
    assert stats.chi_square(counts, probs).p_value > FALSE_ALARM


def _law(target, ids):
    with torch.no_grad():
        logits = target(torch.tensor([ids])).logits[0, -1].double()
    logits[ids] = -torch.inf
    return logits.softmax(0)


FALSE_ALARM = 1e-6


@pytest.mark.parametrize("ids", [PROMPT, TWO])
def test_nothing_behind_max_new_tokens_is_asked(pair, ids):
    table = [[1, 2], [3, 5], [0, 6]]
    plain, ours = both(
        pair[0],
        loop_of(pair[1]),
        ids,
        max_new_tokens=3,
        prefix_allowed_tokens_fn=lambda row, text: table[len(text) - 4],
    )
    assert torch.equal(plain, ours)


@pytest.mark.parametrize("eos", [0, [0, 7]])
def test_nothing_behind_an_end_token_is_asked(pair, eos):
    trie = {(): [1, 2], (1,): [3, 0], (2,): [0], (1, 3): [0]}
    plain, ours = both(
        pair[0],
        loop_of(pair[1]),
        eos_token_id=eos,
        prefix_allowed_tokens_fn=lambda row, text: trie.get(tuple(text[4:].tolist()), []),
    )
    assert torch.equal(plain, ours)


@pytest.mark.parametrize("late", [0, 1])
def test_a_row_that_has_ended_shows_padding(pair, late):
    """One row ends at its second token; the function knows no other text behind an end."""

    def allowed(row, text):
        new = text[4:].tolist()
        if 0 in new:
            assert set(new[new.index(0) + 1 :]) <= {7}
            return [7]
        return [0] if row != late and new else [1, 2, 3, 5]

    settings = {"eos_token_id": 0, "pad_token_id": 7, "prefix_allowed_tokens_fn": allowed}
    plain, ours = both(pair[0], loop_of(pair[1]), TWO, **settings)
    assert torch.equal(plain, ours)


def asked_texts(processor, target):
    """The new tokens of each text that `processor` is asked about: a tree, then the next root.

    Slots 0 to 3 hold the prompt, whose last token is the root; then come two paths of two tokens.
    """
    asked = []

    def recording(text, scores):
        asked.append(text[0, 4:].tolist())
        return processor(text, scores)

    seen = torch.ones(1, 4, dtype=torch.bool)
    wrapped = Processed(CausalLM(target), [recording], PROMPT, seen, 9, [], 0, is_draft=False)
    cache, slots = wrapped.new_cache(1, 9), torch.arange(9)[None]
    mask = slots <= slots.mT
    wrapped(PROMPT[:, :3], slots[:, :3], cache, slots[:, :3], mask[None, :3, :4])
    mask[6:8, 4:6] = False
    tree = torch.tensor([[7, 1, 5, 2, 3]])
    positions = torch.tensor([[3, 4, 5, 4, 5]])
    wrapped(tree, positions, cache, slots[:, 3:8], mask[None, 3:8])
    cache.move(slots[:, 6:8], slots[:, 4:6])
    wrapped(tree[:, 1:2], slots[:, 6:7], cache, slots[:, 6:7], slots[None] <= 6)
    return asked


def test_nothing_behind_a_token_without_probability_is_asked(pair):
    def forbids_five(text, scores):
        return scores.index_fill(1, torch.tensor([5]), -torch.inf)

    assert asked_texts(forbids_five, pair[0]) == [[], [1], [2], [2, 3], [2, 3, 1]]


def test_every_node_is_asked_and_then_the_path_that_was_kept(pair):
    texts = [[], [1], [2], [1, 5], [2, 3], [2, 3, 1]]
    assert asked_texts(lambda text, scores: scores, pair[0]) == texts


class Warmer(TemperatureLogitsWarper):
    """Reads the text, though it derives from a warper that does not."""

    def __call__(self, input_ids, scores):
        return scores * (0.1 if input_ids.shape[1] % 2 else 1.5)


def test_a_class_derived_from_a_warper_reads_the_text(pair):
    target, draft = pair
    probs = np.zeros([V] * 2)
    for text in itertools.product(range(V), repeat=2):
        with torch.no_grad():
            logits = target(torch.tensor([[4, 5, 6, 7, text[0]]])).logits[0, 3:].double()
        first, second = (logits[0] * 1.5).softmax(0), (logits[1] * 0.1).softmax(0)
        probs[text] = float(first[text[0]] * second[text[1]])
    counts = frequencies(
        target,
        decoder(draft, num_drafts=2, draft_length=2),
        2,
        logits_processor=LogitsProcessorList([Warmer(1.0)]),
    )
    assert stats.chi_square(counts, probs).p_value > FALSE_ALARM


class Counter(LogitsProcessor):
    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        return scores if self.calls < 6 else scores.index_fill(1, torch.tensor([3]), -torch.inf)


class Automaton(LogitsProcessor):
    """Behind a 6 it forbids 1 for ever. The prompt's own tokens are not counted."""

    def __init__(self, start=4):
        self.seen, self.start = False, start

    def __call__(self, input_ids, scores):
        self.seen |= input_ids.shape[1] > self.start and int(input_ids[0, -1]) == 6
        return scores.index_fill(1, torch.tensor([1]), -torch.inf) if self.seen else scores


class Matcher(LogitsProcessor):
    """A grammar's matcher: one call for each token, in order."""

    def __init__(self):
        self.length = None

    def __call__(self, input_ids, scores):
        assert self.length is None or input_ids.shape[1] == self.length + 1
        self.length = input_ids.shape[1]
        return scores


@pytest.mark.parametrize("processor", [Counter, Automaton, Matcher])
def test_a_processor_with_a_memory_is_refused(pair, processor):
    settings = {"max_new_tokens": 12, "logits_processor": LogitsProcessorList([processor()])}
    with pytest.raises(ValueError, match=f"{processor.__name__}. Asked again .* remembers"):
        pair[0].generate(PROMPT, custom_generate=loop_of(pair[1]), **settings)


def test_a_function_with_a_memory_is_refused(pair):
    turns = itertools.count()
    with pytest.raises(ValueError, match=r"PrefixConstrained.* remembers"):
        both(
            pair[0],
            loop_of(pair[1]),
            prefix_allowed_tokens_fn=lambda row, text: [next(turns) % 5, 6],
        )


# --- stopping and padding -----------------------------------------------------------------------


class Second(StoppingCriteria):
    """Stops at the second 5 behind the prompt; its attributes are its own."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids[:, 4:] == self.token).sum(1) >= 2


@pytest.mark.parametrize("name", ["eos_token_id", "max_length", "none"])
@pytest.mark.parametrize("ids", [PROMPT, TWO])
def test_a_criterion_with_the_attributes_of_another(pair, name, ids):
    target, draft = pair
    whole, _ = both(target, loop_of(draft), ids, max_new_tokens=24, eos_token_id=None)
    token = int(whole[0, 4:].mode().values)
    stop = Second(token=token, **{name: torch.tensor([token])})
    plain, ours = both(
        target,
        loop_of(draft),
        ids,
        max_new_tokens=24,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([stop]),
    )
    assert plain.shape[1] < 28 or len(ids) > 1
    assert torch.equal(plain, ours)


class PerRow(StoppingCriteria):
    def __init__(self, limits):
        self.limits = torch.tensor(limits)
        self.shapes = []

    def __call__(self, input_ids, scores, **kwargs):
        self.shapes.append(tuple(input_ids.shape))
        return input_ids.shape[1] >= self.limits


@pytest.mark.parametrize("eos", [None, 2])
def test_a_criterion_with_a_flag_for_each_row(pair, eos):
    asked = []
    for custom in ({}, {"custom_generate": loop_of(pair[1])}):
        stop = PerRow([7, 10])
        made = pair[0].generate(
            TWO,
            attention_mask=TWO * 0 + 1,
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=eos,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([stop]),
            **custom,
        )
        asked.append((made.tolist(), stop.shapes))
    assert asked[0] == asked[1]


def test_padding_is_the_first_end_token(pair):
    target, draft = pair
    whole, _ = both(target, loop_of(draft), TWO)
    end = int(whole[0, 6])
    assert end not in whole[1, 4:9] or end not in whole[1, 4:6]
    for ends in ([end, (end + 1) % V], [(end + 1) % V, end]):
        plain, ours = both(target, loop_of(draft), TWO, eos_token_id=ends)
        assert torch.equal(plain, ours)


@pytest.mark.parametrize("eos", [-1, [-1, 5], 99])
def test_an_end_token_that_is_no_token(pair, eos):
    plain, ours = both(*[pair[0], loop_of(pair[1])], TWO, eos_token_id=eos, pad_token_id=0)
    assert torch.equal(plain, ours)


@pytest.mark.parametrize("num_drafts", [0, 1, 3])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_prompts_of_one_token(kind, num_drafts):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64} if kind == "gpt2" else {}
    target = model(kind, **sizes)
    loop = decoder(target, num_drafts=num_drafts, draft_length=2)
    plain, ours = both(target, loop, torch.tensor([[5], [3]]))
    assert torch.equal(plain, ours)
    started = {"max_new_tokens": 6, "do_sample": False, "bos_token_id": 1}
    plain = target.generate(**started)
    assert torch.equal(plain, target.generate(**started, custom_generate=loop))


# --- streams and outputs ------------------------------------------------------------------------


class Recorder(BaseStreamer):
    def __init__(self):
        self.events = []

    def put(self, value):
        self.events.append(value.tolist())

    def end(self):
        self.events.append("end")


@pytest.mark.parametrize("eos", [None, 2])
def test_a_streamer_gets_what_generate_gives_it(pair, eos):
    events = []
    for custom in ({}, {"custom_generate": loop_of(pair[1])}):
        streamer = Recorder()
        pair[0].generate(
            TWO,
            attention_mask=TWO * 0 + 1,
            do_sample=False,
            max_new_tokens=9,
            eos_token_id=eos,
            pad_token_id=0,
            streamer=streamer,
            **custom,
        )
        events.append(streamer.events)
    assert events[0] == events[1]
    assert events[0][-1] == "end"


def test_the_output_counts_calls_and_acceptance(pair):
    """The draft is the target: every greedy draft is accepted, so ten tokens take two calls."""
    loop = decoder(pair[0], num_drafts=1, draft_length=4)
    settings = {"max_new_tokens": 10, "do_sample": False, "attention_mask": TWO * 0 + 1}
    made = pair[0].generate(TWO, custom_generate=loop, return_dict_in_generate=True, **settings)
    assert isinstance(made, transformers.generation.GenerateDecoderOnlyOutput)
    assert made.target_calls.tolist() == [2, 2]
    assert made.accepted.tolist() == [[2] * 4] * 2
    assert made.block_efficiency == 5
    assert made["sequences"] is made.sequences
    plain = pair[0].generate(TWO, custom_generate=loop, **settings)
    assert torch.equal(plain, made.sequences)
    assert loop.output.target_calls.tolist() == [2, 2]
    alone = decoder(None, num_drafts=0)
    pair[0].generate(TWO, custom_generate=alone, **settings)
    assert alone.output.block_efficiency == 1
    assert alone.output.target_calls.tolist() == [10, 10]
    assert alone.output.accepted.shape == (2, 0)


# --- models -------------------------------------------------------------------------------------


def test_a_model_that_changes_after_its_check():
    target, draft = model(), model(seed=1)
    loop = loop_of(draft)
    both(target, loop)
    draft.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="flex_attention"):
        both(target, loop)
    draft.set_attn_implementation("sdpa")
    both(target, loop)
    adapter = CausalLM(target)
    adapter.new_cache(1, 9)
    target.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="flex_attention"):
        adapter.new_cache(1, 9)


@pytest.mark.parametrize("size", [6, 11])
def test_embeddings_resized_between_two_texts(size):
    target, draft = model(), model(seed=1)
    loop, adapter = loop_of(draft), CausalLM(target)
    both(target, loop)
    for changed in (target, draft):
        changed.resize_token_embeddings(size)
        ids = PROMPT % 6
        plain, ours = both(target, loop, ids)
        assert torch.equal(plain, ours)
    with pytest.raises(ValueError, match=rf"8\).* has .* {size}\) now.*Make a new decoder"):
        adapter.new_cache(1, 9)


@pytest.mark.parametrize("role", [0, 1])
def test_training_mode(role):
    models = [model(attention_dropout=0.5), model(seed=1, attention_dropout=0.5)]
    models[role].train()
    with pytest.raises(ValueError, match=r"training mode.*Call model.eval\(\)"):
        both(models[0], loop_of(models[1]))


def test_a_compiled_draft(pair):
    with warnings.catch_warnings(action="ignore"):  # torch's own, as it is imported
        compiled = torch.compile(pair[1])
    plain, ours = both(pair[0], loop_of(compiled))
    assert torch.equal(plain, ours)


def test_a_quantised_model_is_refused_for_what_it_is(pair):
    with warnings.catch_warnings(action="ignore"):
        draft = torch.ao.quantization.quantize_dynamic(model(), {torch.nn.Linear})
    with pytest.raises(ValueError, match="quantised at run time"):
        both(pair[0], loop_of(draft))


def test_a_wrapper_of_another_library(pair):
    class PeftModel(torch.nn.Module):
        pass

    with pytest.raises(TypeError, match=r"found PeftModel.*base_model\.model"):
        both(pair[0], loop_of(PeftModel()))


@pytest.mark.parametrize(("draft", "target"), [(100, 512), (40, 100), (512, 100)])
def test_vocabularies_that_cannot_be_one(draft, target):
    with pytest.raises(ValueError, match=f"{min(draft, target)} and {max(draft, target)} tokens"):
        both(model(vocab_size=target), loop_of(model(seed=1, vocab_size=draft)))


def test_a_row_of_padding(pair):
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])
    with pytest.raises(ValueError, match="row 1 is padding alone"):
        both(pair[0], loop_of(pair[1]), TWO, attention_mask=mask, pad_token_id=0)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("falcon", {"alibi": True, "num_key_value_heads": None}, "alibi=True"),
        ("mamba2", {"num_heads": 8, "head_dim": 8}, "carries a recurrent state"),
    ],
)
def test_models_refused_by_name(kind, changes, message):
    target = model(kind, **changes)
    with pytest.raises(ValueError, match=message):
        both(target, decoder(target, num_drafts=1))


LAYER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 40}
HEADS = LAYER | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "depth": 1}
VISION |= {"num_attention_heads": 4, "num_heads": 4, "image_size": 28, "patch_size": 14}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("gemma3", {}),
        ("llava", {"model_type": "llama"}),
        ("qwen2_vl", {"rope_parameters": ROPE}),
        ("qwen2_5_vl", {"rope_parameters": ROPE}),
        ("qwen3_vl", {"rope_parameters": ROPE}),
    ],
)
def test_text_alone_for_a_model_that_also_sees(kind, text):
    config = transformers.AutoConfig.for_model(
        kind,
        text_config=HEADS | text,
        vision_config=VISION,
        image_token_id=39,
        video_token_id=38,
        vision_start_token_id=37,
        vision_end_token_id=36,
    )
    torch.manual_seed(0)
    target = transformers.AutoModelForImageTextToText.from_config(config).eval()
    for parameter in target.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(6)
    ids = torch.tensor([[0, 0, 5, 6, 7], [4, 5, 6, 7, 8]])
    settings = {"attention_mask": (ids != 0).long(), "eos_token_id": None, "pad_token_id": 0}
    plain, ours = both(target, loop_of(target), ids, **settings)
    assert torch.equal(plain, ours)
