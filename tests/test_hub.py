"""Two models with one tokenizer, from folders as a hub lays them out; the hub itself is not asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from test_llama_loading import random_model, write_folder
from tokenizers import AddedToken, Tokenizer, models

from spectr_lite.decoding import generate
from spectr_lite.huggingface import pairs
from spectr_lite.models import END_OF_TEXT, Transformer, TransformerConfig

WORDS = ["a", "b", "c", "d", "e", "f"]
REAL = len(WORDS) + 1  # and END_OF_TEXT


def config(vocab_size: int, **changes: object) -> TransformerConfig:
    sizes = {"width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "ffn": 24, "context": 64}
    return TransformerConfig(vocab_size=vocab_size, **sizes | changes)


def write_model(folder: Path, model: Transformer, words: list[str] = WORDS, **changes) -> str:
    write_folder(folder, model, **{"eos_token_id": len(words)} | changes)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """A Qwen-like pair: paddings of different size, and padding that would win every draw."""
    target = random_model(config(REAL + 9, qkv_bias=True, tied=False))
    draft = random_model(config(REAL + 3, qkv_bias=True), seed=1)
    target.lm_head.weight[REAL:] *= 1000
    return write_model(tmp_path / "large", target), write_model(tmp_path / "small", draft)


def test_a_pair_decodes_without_its_padding(folders: tuple[str, str]) -> None:
    pair = pairs.load_pair(*folders, dtype=torch.float64)
    assert pair.target.vocab_size == pair.draft.vocab_size == pair.tokenizer.get_vocab_size()
    assert pair.end_of_text == REAL - 1
    made = generate(
        pair.target, pair.draft, [[0], [2, 1]], num_drafts=3, draft_length=2, max_new_tokens=20
    )
    assert {token for row in made.tokens for token in row} <= set(range(REAL))


def test_other_words(folders: tuple[str, str], tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", random_model(config(9)), ["a", "b", "x", "d", "e", "f"])
    with pytest.raises(ValueError, match=r"1 of 7 token ids differ, the first is 2: 'c' and 'x'"):
        pairs.load_pair(folders[0], other)


def test_more_words(folders: tuple[str, str], tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", random_model(config(9)), [*WORDS, "g"])
    with pytest.raises(ValueError, match=r"2 of 8 token ids differ, the first is 6"):
        pairs.load_pair(folders[0], other)


def test_a_tokenizer_larger_than_a_model_of_transformers(
    folders: tuple[str, str], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    config = transformers.GPT2Config(vocab_size=REAL - 1, n_embd=8, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    shutil.copy(Path(folders[0]) / "tokenizer.json", tmp_path / "gpt2")
    with pytest.raises(ValueError, match="gpt2: the tokenizer has 7 tokens, the model 6"):
        pairs.load_pair(folders[0], str(tmp_path / "gpt2"))


@pytest.mark.parametrize(("end", "token"), [(None, END_OF_TEXT), ([3, 4], "d"), (2, "c")])
def test_the_end_of_a_text(tmp_path: Path, end: object, token: str) -> None:
    folder = write_model(tmp_path, random_model(config(REAL)), eos_token_id=end)
    pair = pairs.load_pair(folder, folder)
    assert pair.end_of_text == pair.tokenizer.token_to_id(token)


def test_an_end_that_is_no_token(tmp_path: Path) -> None:
    folder = write_model(tmp_path, random_model(config(REAL)), eos_token_id=70)
    with pytest.raises(ValueError, match="eos_token_id=70"):
        pairs.load_pair(folder, folder)


def test_no_tokenizer(folders: tuple[str, str]) -> None:
    (Path(folders[1]) / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        pairs.load_pair(*folders)


def test_a_corrupt_tokenizer(folders: tuple[str, str]) -> None:
    (Path(folders[1]) / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is corrupt"):
        pairs.load_pair(*folders)


def test_a_name_is_fetched_from_the_hub(
    folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        assert "tokenizer.json" in allow_patterns
        return folders[name == "maker/small"]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    pair = pairs.load_pair("maker/large", "maker/small")
    assert asked == ["maker/large", "maker/small"]
    assert pair.name == "maker/large + maker/small"


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match=r"target: 'maker/large' is not a folder.*no route"):
        pairs.load_pair("maker/large", "maker/small")


def test_a_name_no_hub_could_have() -> None:
    with pytest.raises(FileNotFoundError, match=r"draft: 'not//a name'.*HFValidationError"):
        pairs.folder_of("not//a name", "draft")


def test_sharded_folder_without_a_part(folders: tuple[str, str]) -> None:
    index = {"weight_map": {"norm.weight": "model-1.safetensors"}}
    path = Path(folders[0])
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"model-1\.safetensors is missing"):
        pairs.load_pair(*folders)
    save_file({"norm.weight": torch.ones(16)}, path / "model-1.safetensors")
    with pytest.raises(ValueError, match="do not fit its architecture"):
        pairs.load_pair(*folders)
