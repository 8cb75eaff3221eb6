"""SmolLM2 and its drafts: the loaders on toy models, then what ships and what was fetched."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from tiny_models import TINY, random_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from spectr_lite.decoding import generate
from spectr_lite.models import ModelPair, load_pair, pair_names, prompts, smollm2, weights
from spectr_lite.models.smollm2 import NarrowDraft, load_narrow, load_trigram
from spectr_lite.models.transformer import Transformer, TransformerConfig

ROOT = Path(__file__).parent.parent
TEXT = torch.randint(TINY.vocab_size, (2, 20), generator=torch.Generator().manual_seed(3))
NARROW = TransformerConfig(20, 8, 2, 2, 2, 16, 64)
PROPOSED = [1, 4, 7, 11, 19]


@pytest.fixture(scope="module")
def target():
    torch.manual_seed(0)
    return Transformer(TransformerConfig(20, 16, 2, 2, 2, 16, 64)).eval().requires_grad_(False)


@pytest.fixture
def folder(tmp_path):
    """A draft for `target` and a text, laid out as in the package."""
    torch.manual_seed(1)
    draft = NarrowDraft(NARROW, 16, len(PROPOSED))
    draft.proposed.copy_(torch.tensor(PROPOSED))
    weights = draft.state_dict()
    weights.pop("embed_tokens.weight")
    weights = {name: (t.int() if name == "proposed" else t.half()) for name, t in weights.items()}
    tokens = {"tokens": torch.randint(20, (3, 9)).to(torch.uint16)}
    files = {"draft": ("draft.safetensors", weights), "text": ("text.safetensors", tokens)}
    config = {}
    for role, (name, content) in files.items():
        (tmp_path / name).write_bytes(save(content))
        sha256 = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        config[role] = {"file": name, "sha256": sha256}
    config["draft"] |= {"architecture": asdict(NARROW), "proposed": len(PROPOSED)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_only_the_listed_tokens_are_proposed(folder, target):
    draft = load_narrow(folder, target)
    probs = draft(torch.tensor([[3, 5, 19]])).softmax(-1)
    assert probs.shape == (1, 3, 20)
    torch.testing.assert_close(probs.sum(-1), torch.ones(1, 3))
    assert (probs[0, 0] > 0).nonzero().flatten().tolist() == PROPOSED


def test_the_embedding_is_the_targets_own_tensor(folder, target):
    draft = load_narrow(folder, target)
    assert draft.embed_tokens.weight.data_ptr() == target.embed_tokens.weight.data_ptr()
    assert not any(p.requires_grad for p in draft.parameters())


def test_it_takes_the_dtype_of_the_target(folder, target):
    half = Transformer(target.config).half()
    draft = load_narrow(folder, half)
    assert {p.dtype for p in draft.parameters()} == {torch.float16}
    assert draft.proposed.dtype == torch.int64


@pytest.mark.parametrize("loader", [load_narrow, load_trigram])
@pytest.mark.parametrize("verifier", ["kseq", "optimal"])
def test_it_drafts_for_the_loop(folder, target, loader, verifier):
    """With zeros in the way of drafting the rule still accepts no more than it may."""
    draft = loader(folder, target)
    found = generate(
        target,
        draft,
        [[1], [2, 3]],
        verifier=verifier,
        num_drafts=3,
        draft_length=2,
        max_new_tokens=12,
        generator=0,
    )
    assert [len(row) for row in found.tokens] == [12, 12]
    assert 1 < found.block_efficiency < 3


@pytest.mark.parametrize(
    ("file", "loader"), [("draft.safetensors", load_narrow), ("text.safetensors", load_trigram)]
)
def test_a_missing_or_corrupt_file(folder, target, file, loader):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"{file} is corrupt: SHA-256 .* is promised"):
        loader(folder, target)
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} is missing; reinstall"):
        loader(folder, target)


def test_a_draft_for_another_target(folder, target):
    config = json.loads((folder / "config.json").read_text())
    other = Transformer(TransformerConfig(21, 16, 1, 2, 2, 16, 64))
    with pytest.raises(ValueError, match="a draft for 20 tokens, but the target has 21"):
        load_narrow(folder, other)
    config["draft"]["architecture"]["layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"do not fit its architecture"):
        load_narrow(folder, target)


# --- layers dropped -----------------------------------------------------------------------------


def test_dropped_layers_are_skipped_and_the_rest_is_shared() -> None:
    model = random_model()
    short = weights.drop_layers(model, [1])
    other = random_model(replace(TINY, layers=2), seed=1)
    other.embed_tokens, other.norm = model.embed_tokens, model.norm
    other.layers[0], other.layers[1] = model.layers[0], model.layers[2]
    assert torch.equal(short(TEXT), other(TEXT))
    storage = {tensor.data_ptr() for tensor in model.parameters()}
    assert {tensor.data_ptr() for tensor in short.parameters()} < storage
    assert torch.equal(weights.drop_layers(model, ())(TEXT), model(TEXT))


def test_dropped_layers_keep_the_precision() -> None:
    model = random_model().double()
    assert weights.drop_layers(model, [0])(TEXT).dtype == torch.float64


def test_a_model_without_layers_moves_alone() -> None:
    """The two share memory, not parameters: one in another precision leaves the other as it was."""
    model = random_model()
    short, before = weights.drop_layers(model, [1]), model(TEXT)
    short.double()
    assert torch.equal(model(TEXT), before)
    assert (short.config.layers, model.config.layers, len(model.layers)) == (2, 3, 3)


# --- numbers that end -----------------------------------------------------------------------------


def loaded(model: Transformer, dtype: torch.dtype) -> Transformer:
    return weights.from_weights(
        model.config, {name: w.to(dtype) for name, w in model.state_dict().items()}, "the file"
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "layers.1.self_attn.k_proj.weight",
            7e4,
            r"layers\.1\.self_attn\.k_proj\.weight is not finite",
        ),
        ("embed_tokens.weight", 7e4, r"embed_tokens\.weight is not finite"),
        ("layers.1.mlp.down_proj.weight", 5e4, r"the output of layers\.1\.mlp.* is not finite"),
        (
            "layers.2.post_attention_layernorm.weight",
            6e4,
            r"the output of layers\.2\..* is not finite",
        ),
    ],
)
def test_what_float16_cannot_hold_is_found_by_name(name: str, value: float, message: str) -> None:
    """The first two are too large themselves, the others make the model's states so."""
    model = random_model()
    loaded(model, torch.float16)
    state = model.state_dict()
    state[name][-1:] = value
    with pytest.raises(ValueError, match=f"^the file: {message} in torch.float16; .*bfloat16"):
        loaded(model, torch.float16)
    for dtype in (torch.bfloat16, torch.float32):
        loaded(model, dtype)
    state[name][-1:] = torch.nan
    with pytest.raises(
        ValueError, match=r"weight is not finite in torch.float32; load .*other weights"
    ):
        loaded(model, torch.float32)


def test_a_probe_leaves_no_hook_behind() -> None:
    from torch.nn.modules import module

    model = random_model()
    model.state_dict()["layers.1.mlp.down_proj.weight"].fill_(5e4)
    with pytest.raises(ValueError, match="not finite"):
        loaded(model, torch.float16)
    assert not module._global_forward_hooks


@pytest.mark.parametrize("layers", [[3], [-1], [0, 1, 2]])
def test_layers_that_cannot_be_dropped(layers: list[int]) -> None:
    with pytest.raises(ValueError, match="give numbers from 0 to 2, and not all"):
        weights.drop_layers(random_model(), layers)


# --- what ships ---


def test_every_pair_has_a_name():
    assert set(smollm2.DRAFTS) <= set(pair_names())


def test_the_shipped_files_are_whole_and_small():
    config = json.loads((smollm2.SHIPPED / "config.json").read_text())
    for entry in (config["draft"], config["text"]):
        weights.check_file(smollm2.SHIPPED / entry["file"], entry["sha256"])
    assert config["target"]["sha256"] == smollm2.SHA256
    assert sum(path.stat().st_size for path in smollm2.SHIPPED.iterdir()) < 30e6


@pytest.fixture(scope="module")
def smollm2_pair() -> ModelPair:
    if not (smollm2.FOLDER / "config.json").is_file():
        pytest.skip("SmolLM2 is not in data/: run `make smollm2`")
    return load_pair("smollm2")


@pytest.mark.parametrize(("name", "least"), [("smollm2-distilled", 0.3), ("smollm2-trigram", 0.2)])
def test_acceptance_on_the_prompts(smollm2_pair, name, least):
    """On public text, not the target's own: a floor that a broken draft falls through."""
    target, tokenizer = smollm2_pair.target, smollm2_pair.tokenizer
    draft = smollm2.DRAFTS[name](target)
    tokens = torch.tensor(prompts.load("sotu", tokenizer, count=8).tokens)
    with torch.no_grad():
        all_probs = [model(tokens).softmax(-1) for model in (target, draft)]
    found = torch.minimum(*all_probs).sum(-1).mean().item()
    assert math.isfinite(found) and found > least


# --- what was fetched --------------------------------------------------------------------------

REFERENCE = json.loads((ROOT / "tests" / "cases" / "smollm2.json").read_text())


def test_smollm2_says_what_transformers_says(smollm2_pair: ModelPair) -> None:
    logits = smollm2_pair.target(torch.tensor([REFERENCE["ids"]]))[0]
    top = logits.topk(3)
    assert top.indices.tolist() == REFERENCE["top_ids"]
    close = {"atol": 1e-4, "rtol": 0.0}
    torch.testing.assert_close(top.values, torch.tensor(REFERENCE["top_logits"]), **close)
    torch.testing.assert_close(logits.logsumexp(-1), torch.tensor(REFERENCE["logsumexp"]), **close)


def test_smollm2_reads_what_transformers_reads(smollm2_pair: ModelPair) -> None:
    tokenizer = smollm2_pair.tokenizer
    assert tokenizer.get_vocab_size() == smollm2_pair.target.vocab_size == 49152
    for case in [REFERENCE, *REFERENCE["encodings"]]:
        assert tokenizer.encode(case["text"]).ids == case["ids"]
    assert smollm2_pair.end_of_text == 0


def rounding_noise(logits: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square of what a lower precision does to the logits, in units of their spread."""
    return float((logits.float() - exact).square().mean().sqrt() / exact.std())


@pytest.fixture(scope="module", params=["bundled", "smollm2"])
def trained(request: pytest.FixtureRequest) -> tuple[Transformer, torch.Tensor]:
    """A trained model and a text for it."""
    smollm2 = request.param == "smollm2"
    pair = request.getfixturevalue("smollm2_pair") if smollm2 else load_pair()
    return pair.target, torch.tensor(prompts.load("sotu", pair.tokenizer, count=2).tokens)


def test_logits_equal_those_of_transformers(trained: tuple[Transformer, torch.Tensor]) -> None:
    model, text = trained
    theirs = as_transformers(model)(input_ids=text).logits
    torch.testing.assert_close(model(text), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_off_by_its_rounding_alone(
    trained: tuple[Transformer, torch.Tensor], dtype: torch.dtype
) -> None:
    """Two roundings in every layer add up as a root; transformers has the same noise."""
    model, text = trained
    exact = model(text)
    noise = rounding_noise(copy.deepcopy(model).to(dtype)(text), exact)
    assert noise < (2 * model.config.layers) ** 0.5 * torch.finfo(dtype).eps
    theirs = as_transformers(model).to(dtype)(input_ids=text).logits
    assert noise < 1.3 * rounding_noise(theirs, exact)


def as_transformers(model: Transformer) -> torch.nn.Module:
    """The same weights in transformers' own Llama, if that is installed."""
    transformers = pytest.importorskip("transformers", minversion="5")
    ours = model.config
    config = transformers.LlamaConfig(
        vocab_size=ours.vocab_size,
        hidden_size=ours.width,
        num_hidden_layers=ours.layers,
        num_attention_heads=ours.heads,
        num_key_value_heads=ours.kv_heads,
        intermediate_size=ours.ffn,
        max_position_embeddings=ours.context,
        rms_norm_eps=ours.norm_eps,
        rope_parameters={"rope_theta": ours.rope_theta, "rope_type": "default"},
        tie_word_embeddings=True,
    )
    theirs = transformers.LlamaForCausalLM(config)
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    theirs.load_state_dict(weights | {"lm_head.weight": model.embed_tokens.weight})
    return theirs.eval().requires_grad_(False)


def test_smollm2_decodes(smollm2_pair: ModelPair) -> None:
    prompt = smollm2_pair.tokenizer.encode("The capital of France is").ids
    settings = {"num_drafts": 2, "draft_length": 2, "max_new_tokens": 3, "temperature": 0}
    made = generate(smollm2_pair.target, smollm2_pair.draft, [prompt], **settings)
    greedy = generate(smollm2_pair.target, None, [prompt], **settings | {"num_drafts": 0})
    assert made.tokens == greedy.tokens
    assert smollm2_pair.tokenizer.decode(made.tokens[0]).startswith(" Paris")


@pytest.fixture
def fetched(tmp_path: Path) -> Path:
    """A folder as `make smollm2` leaves it, of a model so small that nobody published it."""
    file = tmp_path / "model.safetensors"
    save_file(random_model().state_dict(), file)
    Tokenizer(WordLevel({f"word{i}": i for i in range(20)})).save(str(tmp_path / "tokenizer.json"))
    config = {
        "source": {"file": smollm2.FILE, "sha256": smollm2.SHA256},
        "target": {"file": file.name, "architecture": asdict(TINY)},
        "tokenizer": {"file": "tokenizer.json"},
    }
    for part in ("target", "tokenizer"):
        config[part]["sha256"] = weights.sha256_of(tmp_path / config[part]["file"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_the_fetched_folder_gives_back_its_model(fetched: Path) -> None:
    model, tokenizer = smollm2.load_target(dtype=torch.float64, folder=fetched)
    assert model.config == TINY and tokenizer.get_vocab_size() == 20
    assert torch.equal(model.norm.weight, random_model().norm.weight.double())
    assert not model.training and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_smollm2_not_fetched(fetched: Path, file: str) -> None:
    (fetched / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{file} is missing; run `make smollm2`"):
        smollm2.load("smollm2", folder=fetched)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_smollm2_corrupt(fetched: Path, file: str) -> None:
    (fetched / file).write_bytes((fetched / file).read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{file} is corrupt: SHA-256 .*make smollm2"):
        smollm2.load("smollm2", folder=fetched)


@pytest.mark.parametrize("content", ["", "{}", '{"source": {"file": "a", "sha256": "b"}}'])
def test_smollm2_with_another_config(fetched: Path, content: str) -> None:
    (fetched / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json does not describe.*make smollm2"):
        smollm2.load("smollm2", folder=fetched)


def test_another_model_in_its_place(fetched: Path) -> None:
    path = fetched / "config.json"
    path.write_text(path.read_text().replace(smollm2.SHA256, "0" * 64))
    with pytest.raises(ValueError, match=r"SHA-256 0+, not b179.*make smollm2"):
        smollm2.load("smollm2", folder=fetched)
