"""The pair that ships with the package: what it claims on its card, and how loading it can fail."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spectr_lite import models
from spectr_lite.models import (
    ModelPair,
    Transformer,
    TransformerConfig,
    load_pair,
    pair_names,
    prompts,
)

PAIR = models.PAIRS["bundled"]
CONFIG = json.loads((PAIR / "config.json").read_text())
RECORDS = Path(__file__).parent.parent / "results" / "train-pair" / CONFIG["run"]


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return load_pair()


@pytest.fixture(scope="module")
def all_probs(pair: ModelPair) -> dict[str, torch.Tensor]:
    """Log distributions of both models on the held-out excerpt, (4, 512, V), and the tokens that
    came.
    """
    excerpt = torch.tensor(json.loads((PAIR / "excerpt.json").read_text())["tokens"])
    logits = {role: getattr(pair, role)(excerpt[:, :-1]) for role in ("target", "draft")}
    return {role: row.log_softmax(-1) for role, row in logits.items()} | {"next": excerpt[:, 1:]}


def test_held_out_loss_is_the_card_s(all_probs: dict[str, torch.Tensor]) -> None:
    for role, bound in (("target", 3.7), ("draft", 3.9)):  # log 4096 = 8.32 would be ignorance
        loss = -all_probs[role].gather(-1, all_probs["next"].unsqueeze(-1)).mean().item()
        assert loss == pytest.approx(CONFIG["measured"]["excerpt"][f"{role}_loss"], abs=1e-3)
        assert loss < bound


def test_acceptance_is_the_card_s(all_probs: dict[str, torch.Tensor]) -> None:
    acceptance = torch.minimum(all_probs["target"], all_probs["draft"]).exp().sum(-1).mean().item()
    assert acceptance == pytest.approx(CONFIG["measured"]["excerpt"]["acceptance"], abs=1e-3)
    assert acceptance > 0.7


def test_the_excerpt_is_like_the_whole_test_split() -> None:
    excerpt, test = CONFIG["measured"]["excerpt"], CONFIG["measured"]["test"]
    for name, tolerance in (("target_loss", 0.3), ("draft_loss", 0.3), ("acceptance", 0.03)):
        assert excerpt[name] == pytest.approx(test[name], abs=tolerance)


def test_numbers_come_from_the_recorded_run() -> None:
    evaluation = json.loads((RECORDS / "evaluation.json").read_text())
    settings = json.loads((RECORDS / "config.json").read_text())
    assert {name: evaluation[name] for name in ("test", "excerpt")} == CONFIG["measured"]
    card = (PAIR / "card.md").read_text()
    for row in (evaluation["test"], evaluation["test_before_distillation"]):
        assert (
            f"{row['target_loss']:.3f} | {row['draft_loss']:.3f} | {row['acceptance']:.3f}" in card
        )
    gain = evaluation["test"]["acceptance"] - evaluation["test_before_distillation"]["acceptance"]
    assert gain > 0.05, "distillation bought little"
    assert evaluation["step"] == {
        "target": settings["fit_target"]["steps"],
        "draft": settings["fit_distil"]["steps"],
    }, "the weights shipped are not those of the finished run"


def test_sizes(pair: ModelPair) -> None:
    assert pair.name == "bundled"
    assert "bundled" in pair_names()
    for role, millions in (("target", 5.8), ("draft", 1.1)):
        model = getattr(pair, role)
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        assert model.config.context >= 512
    assert sum(file.stat().st_size for file in PAIR.iterdir()) < 16e6


def test_tokenizer_is_lossless_and_has_a_start(pair: ModelPair) -> None:
    text = "My fellow Americans — 47° north: naïve\n\tcafé 雪 \x00."
    assert pair.tokenizer.decode(pair.tokenizer.encode(text).ids) == text
    assert pair.tokenizer.id_to_token(pair.end_of_text) == models.END_OF_TEXT
    opening = pair.target(torch.tensor([[pair.end_of_text]]))[0, 0].softmax(-1)
    likely = {pair.tokenizer.decode([token]) for token in opening.topk(5).indices.tolist()}
    assert likely & {"Mr", "Fellow", "To", "F", "Gentlemen", "M"}, likely


def test_splits_share_no_speech() -> None:
    split = json.loads((RECORDS / "config.json").read_text())["split"]
    ids = [id for part in split.values() for id in part]
    assert len(ids) == len(set(ids)) == 233


def test_cached_decoding_equals_the_forward(pair: ModelPair) -> None:
    tokens = torch.tensor(prompts.load("sotu", pair.tokenizer, count=1).tokens)
    for model in (pair.target, pair.draft):
        cache, logits = model.new_cache(1, 32), []
        for slot in range(32):
            place = torch.tensor([[slot]])
            mask = (torch.arange(32) <= slot)[None, None]
            logits.append(model(tokens[:, slot : slot + 1], place, cache, place, mask))
        torch.testing.assert_close(torch.cat(logits, 1), model(tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.06), (torch.float64, 1e-5)]
)
def test_other_precisions_give_nearly_the_same_distribution(
    pair: ModelPair, dtype: torch.dtype, tolerance: float
) -> None:
    other = load_pair(dtype=dtype)
    tokens = pair.tokenizer.encode("The state of the Union is strong, and our people").ids
    tokens = torch.tensor([tokens])
    for role in ("target", "draft"):
        model = getattr(other, role)
        assert model.embed_tokens.weight.dtype == dtype
        difference = model(tokens).softmax(-1) - getattr(pair, role)(tokens).softmax(-1)
        assert difference.abs().sum(-1).max() / 2 < tolerance  # total variation


# --- failures -----------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PAIR, tmp_path / "pair"))


def test_a_directory_is_a_pair_too(copy: Path, pair: ModelPair) -> None:
    other = load_pair(str(copy))
    assert torch.equal(other.draft.norm.weight, pair.draft.norm.weight)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"name='sotuu' is neither.*known pairs: bundled"):
        load_pair("sotuu")


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "target.safetensors", "draft.safetensors"]
)
def test_missing_file(copy: Path, file: str) -> None:
    (copy / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{file} is missing; reinstall"):
        load_pair(str(copy))


@pytest.mark.parametrize("file", ["tokenizer.json", "target.safetensors", "draft.safetensors"])
def test_corrupt_file(copy: Path, file: str) -> None:
    content = bytearray((copy / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file} is corrupt: SHA-256 .* is promised"):
        load_pair(str(copy))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"target": {}}', "KeyError: 'file'"),
        ('{"target": {"file": 3, "sha256": "", "architecture": {}}}', "TypeError"),
    ],
)
def test_a_config_that_describes_no_pair(copy: Path, content: str, message: str) -> None:
    (copy / "config.json").write_text(content)
    with pytest.raises(
        ValueError, match=rf"does not describe target, draft, tokenizer \({message}.*it needs"
    ):
        load_pair(str(copy))


@pytest.mark.parametrize(
    ("name", "value"), [("experts", 8), ("heads", 0), ("layers", -1), ("context", "512")]
)
def test_an_architecture_that_is_not_ours(copy: Path, name: str, value: object) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["draft"]["architecture"][name] = value
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"draft.safetensors does not fit .*'{name}'"):
        load_pair(str(copy))


@pytest.mark.parametrize(
    ("role", "file", "message"),
    [
        ("tokenizer", "tokenizer.json", "no tokenizer"),
        ("draft", "draft.safetensors", "no safetens"),
    ],
)
def test_a_promised_file_of_another_kind(copy: Path, role: str, file: str, message: str) -> None:
    (copy / file).write_bytes(b"{}")
    config = json.loads((copy / "config.json").read_text())
    config[role]["sha256"] = hashlib.sha256(b"{}").hexdigest()
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"{file} is {message}"):
        load_pair(str(copy))


def test_vocabularies_must_agree(copy: Path) -> None:
    small = TransformerConfig(
        vocab_size=4095, width=16, layers=1, heads=2, kv_heads=1, ffn=16, context=512
    )
    save_file(Transformer(small).state_dict(), copy / "draft.safetensors")
    config = json.loads((copy / "config.json").read_text())
    config["draft"]["architecture"] = asdict(small)
    digest = hashlib.sha256((copy / "draft.safetensors").read_bytes()).hexdigest()
    config["draft"]["sha256"] = digest
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"one vocabulary.*'draft': 4095"):
        load_pair(str(copy))


def test_weights_of_another_shape(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["draft"]["architecture"]["layers"] = 2
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"draft.safetensors: the weights do not fit its architecture"
    ):
        load_pair(str(copy))
