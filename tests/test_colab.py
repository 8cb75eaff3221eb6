"""Table 1 on the reader's machine: the pair that fits, what is said first, what is measured."""

from __future__ import annotations

import dataclasses
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

from spectr_experiments import colab, table1
from spectr_lite.book import recorded
from spectr_lite.models import load_pair

CPU = torch.device("cpu")
SMALL = colab.Choice("bundled", prompts=2, rounds=2, minutes=None)
T4, A100, H100 = 15.6e9, 42.0e9, 84.5e9  # bytes


@pytest.mark.parametrize(
    ("free", "target"),
    [
        (T4, "HuggingFaceTB/SmolLM2-1.7B"),
        (24e9, "HuggingFaceTB/SmolLM2-1.7B"),
        (A100, "Qwen/Qwen2.5-7B"),
        (H100, "Qwen/Qwen2.5-14B"),
    ],
)
def test_the_largest_pair_that_leaves_half_of_the_memory(free: float, target: str) -> None:
    choice = colab.choose_pair(int(free), online=True)
    assert choice.name.split(" + ")[0] == target
    assert choice.weights <= free / 2
    assert all(pair.weights > free / 2 for pair in colab.PAIRS if pair.weights > choice.weights)


def test_the_pair_of_the_package_where_nothing_else_can_be_had() -> None:
    for free, online in ((int(T4), False), (int(3e9), True), (None, True), (None, False)):
        choice = colab.choose_pair(free, online)
        assert choice.name == "bundled"
        assert choice.prompts == (8 if free is None else 200)


def test_a_gpu_without_a_network_says_so(monkeypatch, capsys) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(colab, "free_bytes", lambda _: int(T4))
    monkeypatch.setattr(colab.importlib.metadata, "version", lambda _: "5.1.0")
    monkeypatch.setattr(socket, "create_connection", unreachable)
    assert colab.choose(torch.device("cuda")).name == "bundled"
    assert "cannot be reached (no route)" in capsys.readouterr().out
    monkeypatch.setattr(
        socket, "create_connection", lambda *_, **__: SimpleNamespace(close=lambda: None)
    )
    assert colab.choose(torch.device("cuda")).name.startswith("HuggingFaceTB/")
    monkeypatch.setattr(colab.importlib.metadata, "version", lambda _: "4.57.0")
    assert colab.choose(torch.device("cuda")).name == "bundled"
    assert "transformers 5" in capsys.readouterr().out


def test_without_a_gpu_no_network_is_asked(monkeypatch, capsys) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("it was asked"))
    assert colab.choose(CPU) == colab.BUNDLED["cpu"]
    assert capsys.readouterr().out == ""


def test_what_is_downloaded_and_how_long_it_takes_is_said() -> None:
    for pair, size, wait in zip(colab.PAIRS, (30.5, 16.2, 3.7), (9, 5, 2), strict=True):
        assert f"{size} GB to download, {wait} min at 60 MB/s" in str(pair)
        assert "10 minutes" in str(pair)
    assert "nothing to download" in str(colab.BUNDLED["cpu"])


def test_a_hub_that_gives_nothing_is_replaced_by_the_package(monkeypatch, capsys) -> None:
    pytest.importorskip("transformers", minversion="5")

    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    choice, pair = colab.load(colab.PAIRS[2], CPU, torch.float32)
    assert (choice, pair.name) == (colab.BUNDLED["cpu"], "bundled")
    assert "SmolLM2-1.7B' is not a folder" in capsys.readouterr().out


def test_no_memory_for_the_weights_is_no_end(monkeypatch, capsys) -> None:
    real = colab.pairs.load

    def load(name: str, *arguments: object) -> object:
        if name != "bundled":
            raise torch.OutOfMemoryError("tried to allocate 28 GiB")
        return real(name, *arguments)

    monkeypatch.setattr(colab.pairs, "load", load)
    assert colab.load(colab.PAIRS[0], CPU, torch.float32)[1].name == "bundled"
    assert "Qwen2.5-0.5B is not loaded. tried to allocate 28 GiB" in capsys.readouterr().out


def test_a_hub_pair_is_measured(tmp_path: Path, monkeypatch) -> None:
    """Folders of two tiny models stand for the hub."""
    pytest.importorskip("transformers", minversion="5")
    from test_hub import REAL, random_model, write_model

    names = colab.PAIRS[2].name.split(" + ")
    folders = {
        name: write_model(tmp_path / str(seed), random_model(REAL, seed=seed), end=REAL - 1)
        for seed, name in enumerate(names)
    }
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: folders[name])
    held = SimpleNamespace(tokens=[[0, 1, 2], [3, 4, 5]], description="two prompts", sha256="0")
    monkeypatch.setattr(table1.texts, "load", lambda *_, **__: held)
    choice, pair = colab.load(colab.PAIRS[2], CPU, torch.float32)
    assert choice is colab.PAIRS[2] and pair.name == choice.name
    found = colab.measure(dataclasses.replace(SMALL, name=choice.name), pair, CPU)
    assert colab.beside_paper(found).splitlines()[3].startswith(f"| tokens per call, {choice.name}")
    assert all(cell["n"] == 2 and cell["steps"] for cell in found["cells"][1:])


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table1, "NEW_TOKENS", 12)
        patch.setattr(table1, "TIMED_TOKENS", 20)
        yield


@pytest.fixture(scope="module")
def measured() -> dict:
    return colab.measure(SMALL, load_pair("bundled"), CPU)


def test_the_papers_cells_are_measured_with_speed(measured: dict) -> None:
    shapes = [(c["num_drafts"], c["draft_length"]) for c in measured["cells"]]
    assert sorted(shapes) == sorted(
        (row["num_drafts"], row["draft_length"]) for row in recorded.paper()["table1"]
    )
    for cell in measured["cells"][1:]:
        assert cell["verifier"] == "kseq" and cell["n"] == 2 and cell["timing"]["n"] == 2


def test_they_are_the_recorded_experiments_own(measured: dict) -> None:
    """The same texts as `reproduce table1`: the first prompts, seed 0, the same generator."""
    pair = load_pair("bundled")
    held = table1.texts.load("sotu", pair.tokenizer, count=2, length=32).tokens
    cell = table1.Cell("kseq", 8, 4)
    made = table1._decode_batch(pair, cell, held, range(2), 0, table1.NEW_TOKENS)
    found = recorded.cell([measured], 8, 4)
    emitted, calls = (sum(record[name] for record in made) for name in ("emitted", "calls"))
    assert found["block_efficiency"] == pytest.approx(emitted / calls)


def test_the_table_has_the_papers_rows_above_ours(measured: dict) -> None:
    lines = colab.beside_paper(measured).splitlines()
    assert len(lines) == 6 and [line.count("|") for line in lines] == [6] * 6
    assert [*re.findall(r"\d\.\d+", lines[2])] == ["2.4", "3.1", "2.9", "4.0"]
    assert lines[3].startswith("| tokens per call, bundled, CPU |")
    for line, name in ((lines[3], "block_efficiency"), (lines[5], "steps")):
        assert line.count("[") == 4, name
    value = recorded.cell([measured], 8, 8)["block_efficiency"]
    assert f"{value:.2f} [" in lines[3].split("|")[5]


def test_without_memory_for_a_cell_the_others_are_measured(monkeypatch, capsys) -> None:
    real = table1.decode

    def decode(*arguments: object, **settings: object) -> object:
        if settings["num_drafts"] == 8:
            raise torch.OutOfMemoryError("caches of 2 x 96 slots: 9 MiB. Lower num_drafts.")
        return real(*arguments, **settings)

    monkeypatch.setattr(table1, "decode", decode)
    found = colab.measure(SMALL, load_pair("bundled"), CPU)
    said = capsys.readouterr().out
    assert "8 x 8: caches of 2 x 96 slots: 9 MiB. Lower num_drafts. Here: at_once=2" in said
    assert said.count("Going on without") == 2
    measured = {(c["num_drafts"], c["draft_length"]): c["n"] for c in found["cells"]}
    assert measured[1, 4] == measured[1, 8] == 2
    assert colab.beside_paper(found).splitlines()[3].count("–") == 2


def test_time_that_is_up_leaves_one_round(monkeypatch) -> None:
    choice = colab.Choice("bundled", prompts=4, rounds=4, minutes=1e-6)
    found = colab.measure(choice, load_pair("bundled"), CPU, at_once=2)
    for cell in found["cells"][1:]:
        assert cell["n"] == 2 and cell["timing"]["n"] == 1
