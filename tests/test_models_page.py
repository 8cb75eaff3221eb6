"""The page "The models in this book": its ten lines run, and its numbers are the records'."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from recorded_numbers import models_page as page
from test_hub import random_model

from spectr_experiments import command
from spectr_lite.models import PAIRS, pair_names

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "book" / "models.md"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub whose every model is tiny, padded to its own width, and reads the bundled tokenizer."""
    asked = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        folder = tmp_path / str(len(asked))
        sizes = {"num_hidden_layers": 1, "max_position_embeddings": 256, "eos_token_id": 0}
        model = random_model(4096 + 32 * len(asked), "llama", len(asked), **sizes)
        model.save_pretrained(folder)
        tokenizer = (PAIRS["bundled"] / "tokenizer.json").read_bytes()
        (folder / "tokenizer.json").write_bytes(tokenizer)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_ten_lines_bring_a_pair_from_the_hub(
    hub: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    assert len([line for line in block.splitlines() if line]) <= 10
    names: dict = {}
    exec(compile(block, str(PAGE), "exec"), names)
    assert hub == ["HuggingFaceTB/SmolLM2-1.7B", "HuggingFaceTB/SmolLM2-135M"]
    assert [len(row) for row in names["run"].tokens] == [64] * 8
    assert "tokens for each call of the target" in capsys.readouterr().out


def test_every_pair_is_on_the_page() -> None:
    assert set(page.ABOUT) == set(pair_names())
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"\{\{ (\w+) \}\}", text)) == set(page.FRAGMENTS)
    assert set(re.findall(r"_build/drawn/([\w.]+)", text)) == set(page.FIGURES)
    assert all(f"`{name}`" in page.pairs() for name in pair_names())


def test_the_cards_numbers_reach_the_page() -> None:
    run = json.loads((PAIRS["bundled"] / "config.json").read_text())["run"]
    records = ROOT / "results" / "train-pair" / run / "evaluation.json"
    evaluation = json.loads(records.read_text())
    text = page.gained()
    for name in ("test_before_distillation", "test"):
        assert f"{evaluation[name]['acceptance']:.3f}" in text
    cards = re.findall(
        r"```\{include\} (\S+)\n:start-line: 1\n:heading-offset: 1\n```",
        PAGE.read_text(encoding="utf-8"),
    )
    sotu, _smollm2 = ((PAGE.parent / card).read_text(encoding="utf-8") for card in cards)
    assert f"{evaluation['test']['acceptance']:.3f}" in sotu


def test_what_is_not_recorded_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "summary", lambda name: {"runs": []})
    assert "Not recorded yet" in page.quality()
    assert "Not recorded yet" in page.smollm2_drafts()
    assert page.pairs().count("\n") == 2 + len(page.ABOUT)


@pytest.mark.parametrize("name", page.FRAGMENTS)
def test_a_table_of_a_recorded_run_names_it(name: str) -> None:
    text = page.FRAGMENTS[name]()
    if re.search(r"\d\.\d{3}", text):
        assert re.search(r"[Rr]un `[\w-]+`|results/[\w-]+/[\w-]+", text)


def test_the_summary_is_that_of_the_newest_run(tmp_path: Path) -> None:
    (recorded,) = (ROOT / "results" / "models").iterdir()
    older = tmp_path / "results" / "models" / "older"
    shutil.copytree(recorded, older)
    env = json.loads((older / "env.json").read_text())
    (older / "env.json").write_text(json.dumps(env | {"start": "2000-01-01T00:00:00+00:00"}))
    shutil.copytree(recorded, older.parent / recorded.name)
    (tmp_path / "spectr_lite" / "results").mkdir(parents=True)
    command.write_summaries(tmp_path)
    found = (tmp_path / "spectr_lite" / "results" / "models.json").read_bytes()
    assert found == (ROOT / "spectr_lite" / "results" / "models.json").read_bytes()
