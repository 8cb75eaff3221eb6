"""K drafts inside transformers' generate: the same text if greedy, else the same distribution.

Tiny random models, written by save_pretrained and read back. The reference is always `generate`
itself, or the distribution its own processors give when every text is listed. False-alarm rate of
each test of a distribution: 1e-6.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from wrong_variants import RhoOne

from spectr_lite import stats

transformers = pytest.importorskip("transformers", minversion="5")

from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList  # noqa: E402

from spectr_lite import decoding  # noqa: E402
from spectr_lite.decoding import Turn  # noqa: E402
from spectr_lite.huggingface import generate, outputs  # noqa: E402
from spectr_lite.huggingface.causal_lm import CausalLM  # noqa: E402
from spectr_lite.models import TransformerConfig  # noqa: E402
from spectr_lite.models.weights import from_weights  # noqa: E402

FALSE_ALARM = 1e-6
SMALL = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gemma2": LLAMA | {"head_dim": 8},
    "gpt_neox": LLAMA,
}
IDS = torch.tensor([[0, 0, 5, 6, 7], [4, 5, 6, 7, 8], [0, 0, 0, 0, 9]])
MASK = (IDS != 0).long()


def random_model(folder: Path, kind: str = "llama", seed: int = 0, **changes):
    """Weights larger than a trainer's, so that the distributions are neither flat nor alike."""
    torch.manual_seed(seed)
    kwargs = CONFIGS.get(kind, {}) | SMALL | changes
    config = transformers.AutoConfig.for_model(kind, **kwargs)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(6)
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def as_ours(model):
    """A Llama of transformers as a Transformer of the package, with the same tensors."""
    theirs = model.config
    config = TransformerConfig(
        vocab_size=theirs.vocab_size,
        width=theirs.hidden_size,
        layers=theirs.num_hidden_layers,
        heads=theirs.num_attention_heads,
        kv_heads=theirs.num_key_value_heads,
        ffn=theirs.intermediate_size,
        context=theirs.max_position_embeddings,
        rope_theta=theirs.rope_parameters["rope_theta"],
        norm_eps=theirs.rms_norm_eps,
    )
    weights = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    del weights["lm_head.weight"]  # the embedding once more
    return from_weights(config, weights, "a Llama of transformers")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    small = {"hidden_size": 16, "num_hidden_layers": 1}
    return random_model(folder / "large"), random_model(folder / "small", seed=1, **small)


def both(target, loop, ids=IDS, mask=MASK, **settings):
    """What generate writes by itself and with our loop."""
    settings = {"max_new_tokens": 16, "do_sample": False} | settings
    plain = target.generate(input_ids=ids, attention_mask=mask, **settings)
    return plain, target.generate(
        input_ids=ids, attention_mask=mask, custom_generate=loop, **settings
    )


# --- greedy: the same text ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("verifier", ["kseq", "optimal-block"])
def test_greedy_text_of_every_architecture(kind, verifier, tmp_path):
    target, draft = (random_model(tmp_path / str(i), kind, seed=i) for i in (0, 1))
    plain, ours = both(
        target, generate.decoder(draft, verifier=verifier, num_drafts=3, draft_length=3)
    )
    assert torch.equal(plain, ours)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 12, "eos_token_id": [2, 8, 21]},
        {"eos_token_id": None, "forced_eos_token_id": 2},
        {"bad_words_ids": [[8], [5, 6]], "exponential_decay_length_penalty": (4, 1.5)},
        {"max_new_tokens": 1},
        {"max_length": 9, "max_new_tokens": None},
        {"prefix_allowed_tokens_fn": lambda row, text: [3 + row, 9, 10 + len(text) % 3]},
        {"num_beams": 1, "encoder_repetition_penalty": 1.5, "suppress_tokens": [8]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_greedy_text_under_processors_and_limits(pair, settings):
    target, draft = pair
    plain, ours = both(target, generate.decoder(draft, num_drafts=2, draft_length=4), **settings)
    assert torch.equal(plain, ours)


class StopsAt(StoppingCriteria):
    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == self.token


@pytest.mark.parametrize("end", [2, None])
@pytest.mark.parametrize("column", [6, 9, 14])
def test_stopping_criteria(pair, end, column):
    """Without an end token generate writes every row on until the last one has stopped."""
    target, draft = pair
    whole, _ = both(target, generate.decoder(draft, num_drafts=0), eos_token_id=None)
    plain, ours = both(
        target,
        generate.decoder(draft, num_drafts=2, draft_length=4),
        eos_token_id=end,
        stopping_criteria=StoppingCriteriaList([StopsAt(int(whole[1, column]))]),
    )
    assert torch.equal(plain, ours)


@pytest.mark.parametrize("has_end", [True, False])
def test_rows_are_padded_or_written_on_to_one_length(has_end):
    """Row 0 stops at its second token, row 1 at its fourth; the third turn is not asked for."""
    blocks = torch.tensor([[[1, 9, 3], [4, 5, 6]], [[7, 8, 1], [9, 2, 3]], [[1, 1, 1], [1, 1, 1]]])
    two, three = torch.tensor([2, 2]), torch.tensor([3, 3])
    turns = iter([Turn(block[:, None, :2], block, two, two - 2, three) for block in blocks])
    criteria = StoppingCriteriaList([StopsAt(9)])
    if has_end:
        criteria.append(transformers.generation.EosTokenCriteria(39))
    texts, taken = outputs.write(turns, IDS[:2], criteria, torch.tensor(0))
    assert texts[:, 5:].tolist() == [[1, 9, 0, 0] if has_end else [1, 9, 3, 7], [4, 5, 6, 9]]
    assert len(taken) == 2 and len([*turns]) == 1


def test_a_maximum_among_the_criteria(pair):
    target, draft = pair
    stop = StoppingCriteriaList([transformers.MaxLengthCriteria(max_length=8)])
    limits = {"stopping_criteria": stop, "max_new_tokens": None, "max_length": 30}
    plain, ours = both(target, generate.decoder(draft), **limits)
    assert plain.shape[1] == 8
    assert torch.equal(plain, ours)


def test_no_draft_model_is_needed_without_drafts(pair):
    plain, ours = both(pair[0], generate.decoder(None, num_drafts=0))
    assert torch.equal(plain, ours)


def test_a_draft_may_be_one_of_our_models(pair, tmp_path):
    draft = as_ours(random_model(tmp_path, seed=5, tie_word_embeddings=True))
    plain, ours = both(pair[0], generate.decoder(draft, num_drafts=2))
    assert torch.equal(plain, ours)


@pytest.mark.parametrize("width", [33, 48])
def test_vocabularies_padded_to_other_widths(pair, width, tmp_path):
    draft = random_model(tmp_path, seed=3, vocab_size=width)
    plain, ours = both(pair[0], generate.decoder(draft, num_drafts=2))
    assert torch.equal(plain, ours)
    pair[0].generate(
        IDS,
        attention_mask=MASK,
        do_sample=True,
        max_new_tokens=9,
        custom_generate=generate.decoder(draft),
    )


# --- sampling: the same distribution
# ---------------------------------------------------------------------

V, LENGTH = 5, 3
TINY = {"vocab_size": V, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
PROMPTS = torch.tensor([[0, 1, 2], [3, 3, 4]])
PROMPT_MASK = torch.tensor([[0, 1, 1], [1, 1, 1]])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    small = TINY | {"hidden_size": 16, "num_hidden_layers": 1}
    return (
        random_model(folder / "large", **TINY),
        random_model(folder / "small", seed=1, **small),
    )


def exact_distribution(model, settings) -> np.ndarray:
    """P(next three tokens) for both rows, (2, V, V, V): every text, through generate's processors."""
    caught = []

    def catch(model, input_ids, logits_processor, **_):
        caught.append(logits_processor)

    request = {"input_ids": PROMPTS, "attention_mask": PROMPT_MASK, "max_new_tokens": LENGTH}
    model.generate(**request, do_sample=True, custom_generate=catch, **settings)
    probs = np.ones((2, *[V] * LENGTH))
    for text in itertools.product(range(V), repeat=LENGTH):
        for i in range(LENGTH):
            behind = torch.tensor([text[:i]] * 2, dtype=torch.int64).reshape(2, i)
            ids = torch.cat([PROMPTS, behind], 1)
            mask = torch.cat([PROMPT_MASK, torch.ones_like(behind)], 1)
            positions = (mask.cumsum(1) - 1).clamp_min(0)
            with torch.no_grad():
                out = model(input_ids=ids, attention_mask=mask, position_ids=positions)
            scores = caught[0](ids, out.logits[:, -1].float())
            probs[(slice(None), *text)] *= torch.softmax(scores, -1)[:, text[i]].numpy()
    return probs


def draws(model, loop, settings, count=800) -> np.ndarray:
    """How often each text came, shape of `exact_distribution`."""
    torch.manual_seed(0)
    made = model.generate(
        input_ids=PROMPTS,
        attention_mask=PROMPT_MASK,
        do_sample=True,
        max_new_tokens=LENGTH,
        num_return_sequences=count,
        custom_generate=loop,
        **settings,
    )
    counts = np.zeros((2, *[V] * LENGTH))
    for row, text in enumerate(made[:, PROMPTS.shape[1] :].tolist()):
        counts[(row // count, *text)] += 1
    return counts


SETTINGS = [
    {"top_k": 0},
    {"temperature": 0.7, "top_k": 4, "top_p": 0.9},
    {"top_k": 0, "repetition_penalty": 1.8},
    {"temperature": 1.3, "top_k": 3, "no_repeat_ngram_size": 2},
]


RULES = [("kseq", 3), ("optimal", 2), ("traversal", 2), ("coupling", 1)]


@pytest.mark.parametrize(
    ("settings", "verifier", "num_drafts"),
    [(SETTINGS[0], "kseq", 3), *((s, *rule) for s, rule in zip(SETTINGS, RULES, strict=True))],
)
def test_sampled_texts_follow_the_distribution_of_generate(tiny, settings, verifier, num_drafts):
    target, draft = tiny
    loop = generate.decoder(draft, verifier=verifier, num_drafts=num_drafts, draft_length=2)
    probs = exact_distribution(target, settings)
    for counts, row in zip(draws(target, loop, settings), probs, strict=True):
        assert stats.chi_square(counts, row).p_value > FALSE_ALARM / 2


def test_the_test_sees_a_rule_that_is_not_lossless(tiny):
    target, draft = tiny
    loop = generate.decoder(draft, verifier=RhoOne(), num_drafts=3, draft_length=2)
    probs = exact_distribution(target, SETTINGS[0])
    counts = draws(target, loop, SETTINGS[0])
    p_values = [stats.chi_square(*pair).p_value for pair in zip(counts, probs, strict=True)]
    assert min(p_values) < FALSE_ALARM / 2


def test_a_seed_fixes_the_text(pair):
    target, draft = pair
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(
            target.generate(
                IDS,
                attention_mask=MASK,
                do_sample=True,
                max_new_tokens=12,
                custom_generate=generate.decoder(draft),
                return_dict_in_generate=True,
            ).sequences.tolist()
        )
    assert texts[0] == texts[1] != texts[2]


def test_the_adapter_reads_a_tree_as_our_transformer_does(tmp_path):
    """Same weights, same seed: the same text, turn by turn."""
    theirs, ours = [], []
    for i in (0, 1):
        model = random_model(tmp_path / str(i), seed=i, tie_word_embeddings=True).double()
        theirs.append(CausalLM(model))
        ours.append(as_ours(model))
    settings = {"num_drafts": 3, "draft_length": 4, "max_new_tokens": 20, "generator": 0}
    prompts = [[5, 6, 7], [9]]
    made = [decoding.generate(*models, prompts, **settings) for models in (theirs, ours)]
    assert made[0].tokens == made[1].tokens
    assert made[0].calls == made[1].calls


def test_a_pair_of_any_architecture(tmp_path):
    """Two folders, GPT-2 and a Llama, one tokenizer shorter than both."""
    from tokenizers import Tokenizer, models

    from spectr_lite.huggingface import pairs

    tokenizer = Tokenizer(models.WordLevel({f"word{i}": i for i in range(38)}))
    for kind in ("gpt2", "llama"):
        random_model(tmp_path / kind, kind)
        tokenizer.save(str(tmp_path / kind / "tokenizer.json"))
    pair = pairs.load_pair(str(tmp_path / "gpt2"), str(tmp_path / "llama"))
    assert pair.target.vocab_size == pair.draft.vocab_size == 38
    greedy = {"max_new_tokens": 12, "temperature": 0}
    plain = decoding.generate(pair.target, None, [[3], [5, 4]], num_drafts=0, **greedy)
    made = decoding.generate(pair.target, pair.draft, [[3], [5, 4]], **greedy)
    assert made.tokens == plain.tokens


# --- what is not served -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("bloom", {"hidden_size": 32, "n_layer": 1, "n_head": 2}, "no position_ids"),
        ("mamba", {"hidden_size": 16, "num_hidden_layers": 1}, "no position_ids"),
        (
            "jamba",
            LLAMA | {"num_experts": 2, "use_mamba_kernels": False},
            "recurrent state .*linear_attention",
        ),
        ("openai-gpt", {"n_embd": 32, "n_layer": 1, "n_head": 2}, "cannot read a tree"),
    ],
)
def test_architectures_that_cannot_be_rolled_back(kind, changes, message, tmp_path):
    config = transformers.AutoConfig.for_model(kind, **SMALL | changes)
    with pytest.raises(ValueError, match=message):
        CausalLM(AutoModelForCausalLM.from_config(config))


def test_a_window_that_the_text_outgrows(pair, tmp_path):
    draft = random_model(tmp_path, "mistral", **LLAMA, sliding_window=24)
    plain, ours = both(pair[0], generate.decoder(draft, num_drafts=1, draft_length=2))
    assert torch.equal(plain, ours)
    with pytest.raises(ValueError, match="beyond 24 tokens"):
        both(pair[0], generate.decoder(draft, num_drafts=4, draft_length=8))


def test_a_model_that_ignores_the_mask_is_found_out(pair):
    model = type(pair[0])(pair[0].config).eval()
    model.load_state_dict(pair[0].state_dict())
    forward = model.forward

    def ignores(attention_mask=None, position_ids=None, **others):
        if attention_mask is not None:
            attention_mask = torch.zeros_like(attention_mask)
        return forward(attention_mask=attention_mask, position_ids=position_ids, **others)

    CausalLM(model)
    model.forward = ignores
    with pytest.raises(ValueError, match="does not read a tree"):
        CausalLM(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 2}, "found mode 'beam_search'"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores"),
        ({"guidance_scale": 2.0}, "UnbatchedClassifierFree"),
        ({"attention_mask": MASK.flip(1)}, "Pad on the left"),
        ({"position_ids": torch.arange(5).expand(3, 5)}, "position_ids"),
        ({"max_new_tokens": 100}, "context of 64"),
    ],
)
def test_requests_that_cannot_be_honoured(pair, settings, message):
    target, draft = pair
    settings = {"attention_mask": MASK, "do_sample": False, "max_new_tokens": 4} | settings
    with pytest.raises(ValueError, match=message):
        target.generate(input_ids=IDS, custom_generate=generate.decoder(draft), **settings)


def test_a_draft_of_the_wrong_kind(pair):
    with pytest.raises(TypeError, match="found str"):
        both(pair[0], generate.decoder("small-model"))


def test_without_transformers_the_error_says_what_to_install():
    code = "import sys; sys.modules['transformers'] = None; import spectr_lite.huggingface"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'transformers>=5'" in done.stderr
