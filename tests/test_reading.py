"""How a prompt is read: into the slots it fills, without logits, and with attention chosen here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_models import make_pair
from torch import nn
from torch.backends.cuda import cudnn_sdp_enabled

from spectr_lite import decoding
from spectr_lite.decoding import loop
from spectr_lite.models.markov import worked_pair
from spectr_lite.models.ngram import TrigramModel

PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8], [3], [2, 9, 4]]


@pytest.fixture
def pieces(monkeypatch):
    """Prompts are read in pieces of three tokens."""
    monkeypatch.setattr(loop, "PROMPT_PIECE", 3)


def as_transformers():
    """A Llama of transformers over 11 tokens, with weights that show."""
    transformers = pytest.importorskip("transformers", minversion="5")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 11}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    config = transformers.LlamaConfig(**sizes, **heads, **ids)
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(6 if parameter.dim() == 2 else 1)
    return model


class Watched:
    """A model, and what its reading calls were: the slots they saw and their tokens' slots."""

    def __init__(self, model, fill=True):
        self.model, self.seen = model, []
        self.config, self.vocab_size, self.device = model.config, model.vocab_size, model.device
        self.new_cache = model.new_cache
        if fill:
            self.fill = lambda *where: self._note(where) or model.fill(*where)
        self.filled = fill

    def _note(self, where):
        self.seen.append((where[3][0].tolist(), where[4].shape[-1]))

    def __call__(self, *where):
        if not self.filled:
            self._note(where)
        return self.model(*where)


def greedy(target, draft, **settings):
    settings = {
        "num_drafts": 2,
        "draft_length": 3,
        "max_new_tokens": 12,
        "temperature": 0,
    } | settings
    return decoding.generate(target, draft, PROMPTS, **settings).tokens


def test_a_piece_sees_the_slots_filled_so_far(pieces):
    target, draft = make_pair()
    plain = greedy(target, draft)
    for fill in (True, False):  # a model without it is read by calls
        watched = Watched(target, fill)
        assert greedy(watched, draft) == plain
        assert watched.seen[:3] == [([0, 1, 2], 3), ([3, 4, 5], 6), ([6], 7)]
        assert len(watched.seen) == 3 or not fill


def test_a_prompt_costs_no_head(pieces, monkeypatch):
    """The head makes logits of the nodes of a turn and of nothing else."""
    target, draft = make_pair()
    made = {}
    for name, model in (("target", target), ("draft", draft)):
        head = model.head

        def counted(hidden, name=name, head=head):
            made.setdefault(name, []).append(hidden.shape[1])
            return head(hidden)

        monkeypatch.setattr(model, "head", counted)
    next(decoding.decode(target, draft, PROMPTS, num_drafts=2, draft_length=3))
    assert made == {"target": [1 + 2 * 3], "draft": [2, 2, 2]}


def test_fill_leaves_the_cache_of_a_call():
    target, _ = make_pair()
    tokens, slots = torch.tensor([[4, 2, 7, 1]]), torch.arange(4)[None]
    mask = torch.arange(4) <= slots[..., None]
    caches = target.new_cache(1, 6), target.new_cache(1, 6)
    target(tokens, slots, caches[0], slots, mask)
    target.fill(tokens, slots, caches[1], slots, mask)
    assert torch.equal(caches[0].entries, caches[1].entries)
    assert caches[1].entries[..., :4, :].abs().amax(-1).min() > 0


def test_models_without_a_cache_of_keys_read_prompts_too(pieces):
    trigram = TrigramModel([[1, 2, 3, 4, 5, 1, 2, 6]], 11)
    target, _ = make_pair()
    assert greedy(target, trigram) == greedy(target, None, num_drafts=0)
    chain, draft = worked_pair()
    made = decoding.generate(chain, draft, [[0, 1, 2, 0, 1], [3]], temperature=0)
    assert made.tokens == decoding.generate(chain, None, [[0, 1, 2, 0, 1], [3]], num_drafts=0,
                                            temperature=0).tokens  # fmt: skip


def test_a_model_of_transformers_reads_without_logits(pieces):
    model = as_transformers()
    from spectr_lite.huggingface.causal_lm import CausalLM

    adapted = CausalLM(model)
    made = []
    hook = model.lm_head.register_forward_hook(lambda _, x, __: made.append(x[0].shape[1]))
    next(decoding.decode(adapted, None, PROMPTS, num_drafts=0, max_new_tokens=9))
    assert made == [1, 1, 1, 1]  # three pieces, of which a head is asked about one token; a turn
    hook.remove()
    texts = torch.tensor([PROMPTS[0]])
    found = decoding.generate(adapted, None, [PROMPTS[0]], num_drafts=0, temperature=0,
                              max_new_tokens=9).tokens  # fmt: skip
    plain = model.generate(texts, attention_mask=torch.ones_like(texts), max_new_tokens=9,
                           do_sample=False)  # fmt: skip
    assert found == [plain[0, 8:].tolist()]


def test_the_loop_inside_generate_reads_without_logits(pieces):
    model = as_transformers()
    from spectr_lite.huggingface import generate

    made, text = [], torch.tensor([PROMPTS[0]])
    settings = {"attention_mask": torch.ones_like(text), "max_new_tokens": 1, "do_sample": False}
    loop = generate.decoder(None, num_drafts=0)
    plain = model.generate(text, **settings)
    assert torch.equal(model.generate(text, custom_generate=loop, **settings), plain)  # and checked
    model.lm_head.register_forward_hook(lambda _, x, __: made.append(x[0].shape[1]))
    model.generate(text, custom_generate=loop, **settings)
    assert made == [1, 1, 1, 1]


# --- attention's backend ------------------------------------------------------------------------


@pytest.fixture
def backends(monkeypatch):
    """Whether cuDNN might have been chosen, at every call of attention."""
    allowed, attention = [], F.scaled_dot_product_attention

    def watched(*args, **kwargs):
        allowed.append(cudnn_sdp_enabled())
        return attention(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    return allowed


def test_cudnn_is_never_chosen_for_attention(backends):
    before = cudnn_sdp_enabled()
    assert before, "torch allows it by default, or there is nothing to test"
    greedy(*make_pair())
    ours = len(backends)
    from spectr_lite.huggingface import causal_lm

    model = as_transformers()
    adapted = causal_lm.CausalLM(model)
    backends[ours:] = []  # its check also reads texts as transformers does
    greedy(adapted, None, num_drafts=0)
    assert len(backends) > ours > 0
    assert not any(backends)
    assert cudnn_sdp_enabled() == before


# --- the adapter and models that are not as usual --------------------------------------------------


class Wrapped(nn.Module):
    """A layer whose matrix has another name, as that of a quantised layer may."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize("vocab_size", [None, 10, 14])
def test_a_head_and_an_embedding_without_a_weight(vocab_size):
    from spectr_lite.huggingface.causal_lm import CausalLM

    model = as_transformers()
    settings = {"num_drafts": 0, "max_new_tokens": 8}
    expected = greedy(CausalLM(model, vocab_size), None, **settings)
    model.set_output_embeddings(Wrapped(model.get_output_embeddings()))
    model.set_input_embeddings(Wrapped(model.get_input_embeddings()))
    adapted = CausalLM(model, vocab_size)
    assert adapted.vocab_size == (vocab_size or 11) and adapted.own_size == 11
    assert greedy(adapted, None, **settings) == expected


def test_a_model_of_transformers_that_overflows():
    from spectr_lite.huggingface.causal_lm import CausalLM

    model = as_transformers().half()
    CausalLM(model)
    model.model.layers[1].mlp.down_proj.weight.fill_(6e4)
    message = (
        r"LlamaForCausalLM: the output of model\.layers\.1\.mlp.* is not finite in torch.float16"
    )
    with pytest.raises(ValueError, match=message + "; load the model in bfloat16 or float32"):
        CausalLM(model)
    CausalLM(model.bfloat16())
