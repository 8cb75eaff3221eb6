"""The page "The models in this book": its ten lines run, and its numbers are the records'."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import huggingface_hub
import pytest
from test_llama_loading import random_model, write_folder

from spectr_experiments import command
from spectr_lite.models import PAIRS, TransformerConfig, pair_names

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "book" / "models.md"
TINY = TransformerConfig(
    vocab_size=4096, width=16, layers=1, heads=2, kv_heads=1, ffn=24, context=256
)


def load_script(name: str) -> ModuleType:
    if name == "models_page":
        spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return importlib.import_module(name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub whose every model is tiny, padded to its own width, and reads the bundled tokenizer."""
    asked = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        folder = tmp_path / str(len(asked))
        model = random_model(replace(TINY, vocab_size=4096 + 32 * len(asked)), seed=len(asked))
        write_folder(folder, model, eos_token_id=0)
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


def test_every_pair_is_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = load_script("models_page")
    assert set(page.ABOUT) == set(pair_names())
    monkeypatch.setattr(page, "OUT", tmp_path)
    page.write_models_page()
    included = set(re.findall(r"_generated/([\w.-]+)", PAGE.read_text(encoding="utf-8")))
    assert included == {path.name for path in tmp_path.iterdir()}
    table = (tmp_path / "models-pairs.md").read_text()
    assert all(f"`{name}`" in table for name in pair_names())


def test_the_cards_numbers_reach_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = load_script("models_page")
    monkeypatch.setattr(page, "OUT", tmp_path)
    run = json.loads((PAIRS["bundled"] / "config.json").read_text())["run"]
    records = ROOT / "results" / "train-pair" / run / "evaluation.json"
    evaluation = json.loads(records.read_text())
    text = page.curves()
    for name in ("test_before_distillation", "test"):
        assert f"{evaluation[name]['acceptance']:.3f}" in text
    assert f"{evaluation['test']['acceptance']:.3f}" in page.card("sotu")
    assert not re.search(r"^# ", page.card("sotu"), flags=re.M)


def test_what_is_not_recorded_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = load_script("models_page")
    monkeypatch.setattr(page, "summary", lambda name: {"runs": []})
    monkeypatch.setattr(page, "DATA", tmp_path)
    assert "Not recorded yet" in page.quality()
    assert "Not recorded yet" in page.smollm2_drafts()
    assert "Not in the package yet" in page.card("smollm2")
    assert page.pairs().count("\n") == 2 + len(page.ABOUT)


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
