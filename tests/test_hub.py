"""Two models with one tokenizer, from folders as a hub lays them out; the hub itself is not asked."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models

transformers = pytest.importorskip("transformers", minversion="5")

from spectr_experiments import table1  # noqa: E402
from spectr_experiments.command import run_at  # noqa: E402
from spectr_lite.__main__ import main  # noqa: E402
from spectr_lite.decoding import generate  # noqa: E402
from spectr_lite.huggingface import pairs  # noqa: E402
from spectr_lite.models import END_OF_TEXT  # noqa: E402

HELD = SimpleNamespace(description="two prompts", sha256="0")
WORDS = ["a", "b", "c", "d", "e", "f"]
REAL = len(WORDS) + 1  # and END_OF_TEXT
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def random_model(vocab_size: int, kind: str = "qwen2", seed: int = 0, **changes: object) -> Any:
    """Weights far from the origin, norms and biases too, so that every one of them shows."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, vocab_size=vocab_size, **SIZES | changes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.3)
    return model


def write_model(folder: Path, model: Any, words: list[str] = WORDS, end: object = 0) -> str:
    """The folder that save_pretrained writes, and a tokenizer of `words`; `end` is eos_token_id."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": end}))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """A Qwen pair: paddings of different size, and padding that would win every draw."""
    target = random_model(REAL + 9, tie_word_embeddings=False)
    draft = random_model(REAL + 3, tie_word_embeddings=True, seed=1)
    target.lm_head.weight[REAL:] *= 1000
    large = write_model(tmp_path / "large", target, end=REAL - 1)
    return large, write_model(tmp_path / "small", draft)


def test_a_pair_decodes_without_its_padding(folders: tuple[str, str]) -> None:
    pair = pairs.load_pair(*folders, dtype=torch.float64)
    assert pair.target.vocab_size == pair.draft.vocab_size == pair.tokenizer.get_vocab_size()
    assert pair.end_of_text == REAL - 1
    made = generate(
        pair.target, pair.draft, [[0], [2, 1]], num_drafts=3, draft_length=2, max_new_tokens=20
    )
    assert {token for row in made.tokens for token in row} <= set(range(REAL))


def test_other_words(folders: tuple[str, str], tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", random_model(9), ["a", "b", "x", "d", "e", "f"])
    with pytest.raises(ValueError, match=r"1 of 7 token ids differ, the first is 2: 'c' and 'x'"):
        pairs.load_pair(folders[0], other)


def test_more_words(folders: tuple[str, str], tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", random_model(9), [*WORDS, "g"])
    with pytest.raises(ValueError, match=r"2 of 8 token ids differ, the first is 6"):
        pairs.load_pair(folders[0], other)


def test_a_tokenizer_larger_than_the_model(folders: tuple[str, str], tmp_path: Path) -> None:
    small = write_model(tmp_path / "other", random_model(REAL - 1))
    with pytest.raises(ValueError, match="other: the tokenizer has 7 tokens, the model 6"):
        pairs.load_pair(folders[0], small)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [False, True])
def test_greedy_text_is_that_of_transformers(tmp_path: Path, kind: str, tied: bool) -> None:
    """From folders, in parts; Qwen2 has biases."""
    for role, seed in (("large", 0), ("small", 1)):
        model = random_model(REAL, kind, seed, tie_word_embeddings=tied)
        write_model(tmp_path / role, model, end=None)
        model.save_pretrained(tmp_path / role, max_shard_size="4KB")
        assert (tmp_path / role / "model.safetensors.index.json").is_file()
    pair = pairs.load_pair(str(tmp_path / "large"), str(tmp_path / "small"))
    made = generate(
        pair.target, pair.draft, [[3, 1], [2, 5]], num_drafts=3, draft_length=2,
        max_new_tokens=20, temperature=0,
    )  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "large").generate(
        torch.tensor([[3, 1], [2, 5]]),
        attention_mask=torch.ones(2, 2),
        do_sample=False,
        max_new_tokens=20,
        pad_token_id=0,
    )
    assert made.tokens == theirs[:, 2:].tolist()


def test_the_models_are_frozen_and_in_the_dtype(folders: tuple[str, str]) -> None:
    pair = pairs.load_pair(*folders, dtype=torch.bfloat16)
    for adapter in (pair.target, pair.draft):
        assert not adapter.model.training
        found = {(p.dtype, p.requires_grad) for p in adapter.model.parameters()}
        assert found == {(torch.bfloat16, False)}


@pytest.mark.parametrize(("end", "token"), [(None, END_OF_TEXT), ([3, 4], "d"), (2, "c")])
def test_the_end_of_a_text(tmp_path: Path, end: object, token: str) -> None:
    folder = write_model(tmp_path, random_model(REAL), end=end)
    pair = pairs.load_pair(folder, folder)
    assert pair.end_of_text == pair.tokenizer.token_to_id(token)


def test_an_end_that_is_no_token(tmp_path: Path) -> None:
    folder = write_model(tmp_path, random_model(REAL), end=70)
    with pytest.raises(ValueError, match="eos_token_id=70"):
        pairs.load_pair(folder, folder)


def test_no_tokenizer(folders: tuple[str, str]) -> None:
    (Path(folders[1]) / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        pairs.load_pair(*folders)


def test_a_corrupt_tokenizer(folders: tuple[str, str]) -> None:
    (Path(folders[1]) / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer.*fetch or save"):
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


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b""),
        ("config.json", None),
        ("model.safetensors", b"half a file"),
        ("model.safetensors", None),
    ],
)
def test_a_file_that_is_not_whole(
    folders: tuple[str, str], file: str, content: bytes | None
) -> None:
    path = Path(folders[1]) / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"(?s)small: transformers cannot load it .*fetch or save"):
        pairs.load_pair(*folders)


def test_sharded_folder_without_a_part(folders: tuple[str, str]) -> None:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-1.safetensors"}}
    path = Path(folders[0])
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"(?s)cannot load it .*model-1\.safetensors"):
        pairs.load_pair(*folders)
    save_file({"model.norm.weight": torch.ones(16)}, path / "model-1.safetensors")
    with pytest.raises(ValueError, match=r"large: \d+ weights are missing, such as lm_head"):
        pairs.load_pair(*folders)


def test_more_layers_than_weights(folders: tuple[str, str]) -> None:
    """transformers would draw the missing layer at random."""
    path = Path(folders[1]) / "config.json"
    values = json.loads(path.read_text()) | {"num_hidden_layers": 3, "layer_types": None}
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"12 weights are missing, such as model\.layers\.2"):
        pairs.load_pair(*folders)


def test_weights_of_another_width(folders: tuple[str, str]) -> None:
    path = Path(folders[1]) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 32}))
    with pytest.raises(ValueError, match="small: transformers cannot load it"):
        pairs.load_pair(*folders)


def test_decode_takes_two_models_and_shapes_the_draft_alone(
    folders: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """At temperature 0 the text is the target's, however the draft is shaped."""
    words = ["decode", "--device", "cpu", "--prompt", "a", "--max-new-tokens", "6"]
    words += ["--temperature", "0", "-L", "2", "--target", folders[0]]
    shown = []
    for more in (["-K", "0"], ["-K", "2", "--draft-temperature", "2"], ["--draft-top-k", "1"]):
        assert main([*words, "--draft", folders[1], *more]) == 0
        shown.append(capsys.readouterr().out.splitlines()[0])
    assert len(set(shown)) == 1
    assert main(words) == 2
    assert "--target and --draft: give both of them" in capsys.readouterr().err
    assert main([*words, "--draft", folders[1], "--pair", "bundled"]) == 2


def test_table1_takes_two_models(folders: tuple[str, str], tmp_path: Path) -> None:
    results = tmp_path / "results"
    words = ["reproduce", "table1", "--device", "cpu", "--results", str(results), "--prompts", "2"]
    words += ["--target", folders[0], "--draft", folders[1], "--cell", "kseq:2:2"]
    tokens = {"tokens": [[0, 1, 2], [3, 4, 5]]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table1, "_prompts", lambda *_: SimpleNamespace(**tokens))
        patch.setattr(table1.texts, "load", lambda *_, **__: HELD)
        patch.setattr(table1, "NEW_TOKENS", 6)
        patch.setattr(table1, "TIMED_TOKENS", 6)
        assert main(words) == 0
    (folder,) = results.glob("table1/*")
    assert folder.name.startswith("large-small-")
    assert run_at(folder).config["pair"] == " + ".join(folders)
