"""The adviser: its choice against exhaustive decoding, its records, dumps, words and errors."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from spectr_experiments import advice, advise, dumps, replay
from spectr_experiments.records import Run
from spectr_lite.__main__ import main
from spectr_lite.decoding import generate
from spectr_lite.models.markov import worked_pair

PROMPTS = [[token] for token in (0, 1, 2)] * 12
SMALL = {"num_drafts": [1, 3], "draft_lengths": [1, 4], "verifiers": ["kseq", "recursive"]}


def made_up_cost(cell):
    if cell["num_drafts"] == 0:
        return 1.0
    k, length = cell["num_drafts"], cell["draft_length"]
    return 1 + 0.1 * length + 0.02 * k * length - (0.01 if cell["verifier"] != "kseq" else 0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on the worked chain whose costs are made up, with their noise."""
    run = Run(tmp_path_factory.mktemp("advice"), advice.SCHEMA, advice.KEYS)
    config = advise.make_config(PROMPTS, new_tokens=48, **SMALL)
    run.open(config, resume=False, kinds=[])
    advise.phases(config, *worked_pair(), PROMPTS)[0].measure(run, None)
    rng = np.random.default_rng(0)
    for cell in (advice.PLAIN, *advice.cells(config)):
        seconds = made_up_cost(cell) * rng.lognormal(0, 0.01, size=8)
        run.append("turns", 0, [
            {**cell, "round": n, "turns": 10, "seconds": 10 * float(s)} for n, s in enumerate(seconds)
        ])  # fmt: skip
    return run


def test_the_choice_is_that_of_exhaustive_decoding(run):
    """Replayed turns begin where K-SEQ's 3 x 4 begin. On this chain, whose every token changes what
    the draft is worth, that moves another shape's mean by up to 3%."""
    settings = advice.settings_of(run, run.config)
    really = {}
    for setting in settings:
        shape = {name: setting[name] for name in advice.CELL}
        texts = generate(*worked_pair(), PROMPTS, max_new_tokens=200, generator=1, **shape)
        really[tuple(shape.values())] = texts.block_efficiency / made_up_cost(setting)
        speed, low, high = setting["speed"]
        assert speed == pytest.approx(really[tuple(shape.values())], rel=0.05)
        assert low < speed < high < 1.2 * low
    assert len(really) == 6  # with one draft the two rules are one
    chosen = tuple(settings[0][name] for name in advice.CELL)
    assert really[chosen] == max(really.values())
    assert [s["speed"][0] for s in settings] == sorted(
        (s["speed"][0] for s in settings), reverse=True
    )


def test_shares_of_the_optimum(run):
    depths = advice.depths_of(run)
    assert [line["depth"] for line in depths] == [0, 1, 2, 3]
    for line in depths:
        share, low, high = line["shares"]["kseq"]
        assert low <= share <= high and share <= 1 + 1e-9
    assert depths[0]["shares"]["kseq"][0] < 0.999  # three drafts: K-SEQ is not the optimum


def test_advice_from_python_goes_on_where_it_stopped(tmp_path):
    settings = {"new_tokens": 24, "folder": tmp_path, **SMALL}
    first = advise.advise(*worked_pair(), PROMPTS[:6], minutes=0, **settings)
    done = (tmp_path / "tokens.part-0.jsonl").read_bytes()
    again = advise.advise(*worked_pair(), PROMPTS[:6], minutes=0.05, **settings)
    assert (tmp_path / "tokens.part-0.jsonl").read_bytes().startswith(done)
    assert len({r["text"] for r in Run(tmp_path, advice.SCHEMA, advice.KEYS).read("tokens")}) > 2
    assert {len(first.settings), len(again.settings)} == {6}
    shape = [{name: a.decoded[name] for name in advice.CELL} for a in (first, again)]
    assert shape[0] == shape[1]  # the setting once decoded with stays
    assert len(again.calls) == len([1, 2, 5, 4, 13]) + len([1, 3])
    again.save_report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("<svg role") == 3 and page.count("<tr>") == 7
    assert not re.findall(
        r"(?:src|href)=\"https?:", page.split("<details>")[0]
    )  # nothing is fetched from elsewhere
    for sentence in advice.verdict(vars(again)):
        assert sentence in page and sentence in str(again)


def setting(speed, tokens=(2.0, 1.9, 2.1)):
    cost = None if speed is None else [1.0, 0.9, 1.1]
    cell = {"verifier": "kseq", "num_drafts": 2, "draft_length": 4}
    return cell | {"tokens": list(tokens), "cost": cost, "speed": speed}


@pytest.mark.parametrize(
    ("speed", "word"),
    [
        ([1.5, 1.2, 1.9], "Use kseq with 2 x 4 drafts: predicted to be 1.50 [1.20, 1.90] times"),
        ([0.8, 0.7, 1.1], "Do not draft"),
        ([1.1, 0.9, 1.3], "No setting is clearly faster"),
        (None, "Most tokens per call"),
    ],
)
def test_verdicts(speed, word):
    best = setting(speed) if speed and speed[1] > 1 else None
    said = advice.verdict({"settings": [setting(speed)], "best": best, "decoded": None})
    assert said[0].startswith(word)


# --- dumps ---


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """Every turn of four texts of the worked chain, 2 x 3 drafts; and its trees."""
    decoder = replay.Watched(*worked_pair(), num_drafts=2, draft_length=3)
    path, trees, rows = tmp_path_factory.mktemp("dump") / "worked.safetensors", [], []
    for text, prompt in enumerate(PROMPTS[:4]):
        for _, tree in replay.turns_of_text(decoder, prompt, 30, text):
            trees.append((text, tree))
            rows.append((text, *decoder.scored_logits()))
    dumps.write(path, rows, pair="worked")
    return path, trees


def test_advice_from_a_dump(dump, tmp_path, capsys):
    path, trees = dump
    command = ["reproduce", "advise", "--dump", str(path), "--results", str(tmp_path)]
    assert main([*command, "--verifiers", "kseq", "optimal-block"]) == 0
    out = capsys.readouterr().out
    run = Run(tmp_path / "advise" / "worked", advice.SCHEMA, advice.KEYS)
    found = advice.summarise(run, run.config, [])
    for one in found["settings"]:
        rule = advise.verifiers.get(one["verifier"])
        shape = [one["num_drafts"]], [one["draft_length"]]
        exact = np.mean([float(replay.expected_tokens(rule, tree, *shape)) for _, tree in trees])
        assert one["tokens"][0] == pytest.approx(exact, rel=1e-5)  # six digits are recorded
        assert one["speed"] is None
    assert {one["num_drafts"] for one in found["settings"]} == {1, 2}
    assert {one["draft_length"] for one in found["settings"]} == {1, 2, 3}
    assert "only your device can say" in out
    assert advice.report(found).count("<svg role") == 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda f: f.pop("target_logits"), "needs a field 'target_logits' of 4 dimensions"),
        (lambda f: f.update(text=f["text"][1:]), "text has shape"),
        (lambda f: f["draft_logits"][2].fill_(torch.nan), r"draft_logits\[2\] holds logits"),
        (lambda f: f["target_logits"][1, 0, 0].fill_(-torch.inf), r"target_logits\[1\] holds"),
        (lambda f: f["paths"][0].fill_(9), r"paths\[0\] holds a token outside 0 to 3"),
    ],
)
def test_a_wrong_dump_is_refused_by_name(dump, tmp_path, capsys, change, word):
    fields = {name: tensor.clone() for name, tensor in load_file(dump[0]).items()}
    change(fields)
    path = tmp_path / "wrong.safetensors"
    save_file(fields, path)
    assert main(["reproduce", "advise", "--dump", str(path), "--results", str(tmp_path)]) != 0
    error = capsys.readouterr().err
    assert re.search(word, error) and "Traceback" not in error


# --- errors ---


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--pair", "bundled", "--target", "x", "--draft", "y"], "--target and --draft"),
        (["--target", "x"], "--target and --draft: give both"),
        (["--prompts", "ONE"], "found 1. An interval over texts needs two"),
        (["--prompts", "LATIN"], "is not UTF-8 text"),
        (["--prompts", "MISSING"], "No such file"),
        (["--verifiers", "spechub", "--num-drafts", "1"], "none of spechub decodes with"),
        (["--verifiers", "nonsense"], "nonsense"),
        (["--num-drafts", "0"], "--num-drafts"),
        (["--temperature", "-1"], "temperature"),
        (["--dump", "ONE"], "is no safetensors file"),
        (["--dump", "MISSING"], "No such file"),
    ],
)
def test_bad_input_is_named_before_any_work(tmp_path, capsys, arguments, word):
    (tmp_path / "ONE").write_text("Only one line.\n", "utf-8")
    (tmp_path / "LATIN").write_bytes(b"caf\xe9\ncaf\xe9\n")
    files = {name: str(tmp_path / name) for name in ("ONE", "LATIN", "MISSING")}
    arguments = [files.get(argument, argument) for argument in arguments]
    with contextlib.suppress(SystemExit):
        assert main(["advise", *arguments, "--results", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1
    assert not (tmp_path / "results").exists()
