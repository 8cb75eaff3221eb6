"""Prompts: the same ones every time, from held-out speeches, and a clear refusal of anything else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import huggingface_hub
import pytest
from tokenizers import Tokenizer

from spectr_lite.models import PAIRS, load_pair, prompts, smollm2

RUN = json.loads((PAIRS["bundled"] / "config.json").read_text())["run"]
SPLIT = json.loads(
    (Path(__file__).parent.parent / "results" / "train-pair" / RUN / "config.json").read_text()
)["split"]
STORED = json.loads(prompts.SOTU.read_text("utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(PAIRS["bundled"] / "tokenizer.json"))


@pytest.fixture(scope="module")
def smollm2_tokenizer() -> Tokenizer:
    if not (smollm2.FOLDER / "tokenizer.json").is_file():
        pytest.skip("SmolLM2 is not in data/: run `make smollm2`")
    return Tokenizer.from_file(str(smollm2.FOLDER / "tokenizer.json"))


# --- the speeches -------------------------------------------------------------------------------


def test_the_default_needs_nothing_but_the_package(tokenizer: Tokenizer) -> None:
    found = prompts.load("sotu", tokenizer)
    assert len(found) == len(found.tokens) == len(found.documents) == 64
    assert {len(ids) for ids in found.tokens} == {32}
    assert found.name == "sotu"
    assert found.description.startswith("64 prompts of 32 tokens: starts of sentences of 23 State")
    assert found == prompts.load("sotu", load_pair().tokenizer, count=64, length=32)


@pytest.mark.parametrize("count", [64, 1000])
@pytest.mark.parametrize("name", ["bundled", "smollm2"])
def test_ids_are_the_recorded_ones(name: str, count: int, request: pytest.FixtureRequest) -> None:
    fixture = {"bundled": "tokenizer", "smollm2": "smollm2_tokenizer"}[name]
    found = prompts.load("sotu", request.getfixturevalue(fixture), count=count)
    assert len(found.tokens) == count
    assert (
        found.sha256 == prompts.ids_sha256(found.tokens) == STORED["ids_sha256"][name][str(count)]
    )


def test_a_shorter_list_begins_a_longer_one(tokenizer: Tokenizer) -> None:
    long = prompts.load("sotu", tokenizer, count=100, length=20)
    short = prompts.load("sotu", tokenizer, count=10, length=8)
    assert short.tokens == [ids[:8] for ids in long.tokens[:10]]
    assert short.documents == long.documents[:10]
    assert short.sha256 != long.sha256


def test_all_are_held_out_and_no_two_alike(tokenizer: Tokenizer) -> None:
    found = prompts.load("sotu", tokenizer, count=1000)
    speeches = [document.split(":")[0] for document in found.documents]
    assert set(speeches) == set(SPLIT["test"])
    assert set(speeches[:23]) == set(SPLIT["test"])  # every speech once before any twice
    assert len(set(found.documents)) == 1000
    assert len(set(map(tuple, found.tokens))) == 1000


def test_the_first_words(tokenizer: Tokenizer) -> None:
    text = tokenizer.decode(prompts.load("sotu", tokenizer, count=1).tokens[0])
    assert STORED["prompts"][0]["text"].startswith(text)


def write(path: Path, change: dict) -> None:
    path.write_text(json.dumps(STORED | change), encoding="utf-8")


def test_an_altered_text(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "SOTU", tmp_path / "prompts.json")
    write(prompts.SOTU, {})
    assert prompts.load("sotu", tokenizer).sha256 == STORED["ids_sha256"]["bundled"]["64"]
    first = STORED["prompts"][0]
    for changed in (first | {"text": first["text"] + "."}, first | {"character": 0}):
        write(prompts.SOTU, {"prompts": [changed, *STORED["prompts"][1:]]})
        with pytest.raises(ValueError, match=rf"was altered: .*{STORED['sha256']}.*reinstall"):
            prompts.load("sotu", tokenizer)
    prompts.SOTU.unlink()
    with pytest.raises(FileNotFoundError, match=r"prompts\.json is missing; reinstall"):
        prompts.load("sotu", tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "brown"}, "text='brown' is not known; choose one of sotu, lm1b"),
        ({"count": 0}, "count=0: give a number of prompts from 1 to 1000"),
        ({"count": 1001}, "count=1001: give a number"),
        ({"length": 0}, "length=0: give a number of tokens, at least 1"),
        ({"length": 200}, r"length=200: the text stored for 1795_.* tokens; give a smaller"),
    ],
)
def test_what_there_is_not(tokenizer: Tokenizer, change: dict, message: str) -> None:
    arguments = {"text": "sotu", "tokenizer": tokenizer} | change
    with pytest.raises(ValueError, match=message):
        prompts.load(arguments.pop("text"), arguments.pop("tokenizer"), **arguments)


def test_no_tokenizer() -> None:
    with pytest.raises(
        TypeError, match=r"tokenizer: found ModelPair; give a tokenizers\.Tokenizer"
    ):
        prompts.load("sotu", load_pair())


# --- LM1B ---------------------------------------------------------------------------------------

ROWS = [
    "Too short .",
    *(f"Row {i} : the State of the Union is strong , he said ." for i in range(9)),
]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that has the benchmark's test split, ten rows of it."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ROWS}), tmp_path / "0000.parquet")

    def hf_hub_download(repo_id: str, repo_type: str, revision: str, filename: str) -> str:
        assert (repo_id, repo_type) == ("billion-word-benchmark/lm1b", "dataset")
        assert (revision, filename) == ("refs/convert/parquet", "plain_text/test/0000.parquet")
        return str(tmp_path / "0000.parquet")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)


@pytest.mark.usefixtures("hub")
def test_lm1b_takes_the_first_rows_that_are_long_enough(tokenizer: Tokenizer) -> None:
    found = prompts.load("lm1b", tokenizer, count=3, length=8)
    assert found.documents == ["test/1:0", "test/2:0", "test/3:0"]
    assert found.tokens == [tokenizer.encode(row).ids[:8] for row in ROWS[1:4]]
    assert "billion-word-benchmark/lm1b" in found.description


@pytest.mark.usefixtures("hub")
def test_lm1b_has_too_few(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"count=10: .* gave 9 prompts of 8 tokens"):
        prompts.load("lm1b", tokenizer, count=10, length=8)


def test_lm1b_out_of_reach(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")

    def offline(**_: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(FileNotFoundError, match=r"text='lm1b'.*no route.*use text='sotu'"):
        prompts.load("lm1b", tokenizer)


def test_lm1b_without_its_reader(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub pyarrow"):
        prompts.load("lm1b", tokenizer)
