"""SmolLM2's drafts: the narrow one and its loader on a toy target, the shipped one on the real."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save

from spectr_lite.decoding import generate
from spectr_lite.models import pair_names, prompts, smollm2, weights
from spectr_lite.models.smollm2 import NarrowDraft, load_narrow, load_trigram
from spectr_lite.models.transformer import Transformer, TransformerConfig

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


# --- what ships ---


def test_every_pair_has_a_name():
    assert set(smollm2.DRAFTS) <= set(pair_names())


def test_the_shipped_files_are_whole_and_small():
    config = json.loads((smollm2.SHIPPED / "config.json").read_text())
    for entry in (config["draft"], config["text"]):
        weights.read(smollm2.SHIPPED / entry["file"], entry["sha256"])
    assert config["target"]["sha256"] == smollm2.SHA256
    assert sum(path.stat().st_size for path in smollm2.SHIPPED.iterdir()) < 30e6


@pytest.fixture(scope="module")
def smollm2_target():
    if not (smollm2.FOLDER / smollm2.FILE).is_file():
        pytest.skip("SmolLM2 is not in data/: run `make smollm2`")
    return smollm2.load_target()


@pytest.mark.parametrize(("name", "least"), [("smollm2-distilled", 0.3), ("smollm2-trigram", 0.2)])
def test_acceptance_on_the_prompts(smollm2_target, name, least):
    """On public text, not the target's own: a floor that a broken draft falls through."""
    target, tokenizer = smollm2_target
    draft = smollm2.DRAFTS[name](target)
    tokens = torch.tensor(prompts.load("sotu", tokenizer, count=8).tokens)
    with torch.no_grad():
        all_probs = [model(tokens).softmax(-1) for model in (target, draft)]
    found = torch.minimum(*all_probs).sum(-1).mean().item()
    assert math.isfinite(found) and found > least
