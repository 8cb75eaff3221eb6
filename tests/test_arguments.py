"""Every option of every command, with values that it should not be given, and how commands end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_pair

from spectr_experiments import appendix_e, command, records
from spectr_lite.__main__ import main
from spectr_lite.commands import check, decode
from spectr_lite.commands.arguments import Parser
from spectr_lite.commands.ending import ended, resumable

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from training import pair as training_pair
from training import smollm2_draft

NO_NUMBERS = ["-1", "nan", "inf", "", " ", "x\0y", "\udcff", "FILE"]
HOSTILE = [*NO_NUMBERS, "0", "1.5", "a/b", "ä" * 300, "9" * 30, "FOLDER", "kseq:1:1:nan"]
TEXTS = {"--prompt", "--run-id", "--results", "--pair", "--verifier", "--draft", "--target", ""}
LIGHT = (
    "table1",
    "appendix-e",
    "decoding",
    "transport",
    "verifiers",
    "models",
    "advise",
)  # need no SmolLM2


def options() -> Iterator[tuple[str, str]]:
    """Every command, and each of its options that takes a free value."""
    parser = Parser()
    command.add_arguments(parser)
    (verbs,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    parsers = {f"reproduce {name}": verbs.choices[name] for name in (*LIGHT, "verify")}
    for name, module in {"check": check, "decode": decode}.items():
        parsers[name] = Parser()
        module.add_arguments(parsers[name])
    for name, found in parsers.items():
        for action in found._actions:
            if action.nargs != 0 and action.choices is None:
                yield name, (action.option_strings or [""])[-1]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_pair(folder / "tiny")
    np.save(folder / "d.npy", [0.5, 0.5])
    return folder


@pytest.fixture
def base(inputs, tmp_path, monkeypatch) -> dict[str, list[str]]:
    """What each command needs besides; experiments open their run, and measure nothing."""
    pair, law = str(inputs / "tiny"), str(inputs / "d.npy")
    (tmp_path / "FILE").write_text("text")
    (tmp_path / "FOLDER").mkdir()
    monkeypatch.chdir(tmp_path)

    def opened(args, module, plan, *_):
        run = records.Run(args.results / module.FOLDER / plan.run_id, module.SCHEMA, module.KEYS)
        with run.lock():
            run.open(plan.config, args.resume, [])

    monkeypatch.setattr(command, "_record", opened)
    monkeypatch.setattr(appendix_e, "models", lambda *_: ())
    monkeypatch.setattr(command.torch, "set_num_threads", lambda _: None)
    few = ["--draft", law, "--target", law, "-k", "2", "--verifier", "kseq", "--samples", "10"]
    return {
        "check": few,
        "decode": ["--prompt", "a", "--pair", pair, "-K", "2", "-L", "2", "--max-new-tokens", "2"],
        "reproduce table1": ["--pair", pair, "--prompts", "2", "--device", "cpu"],
        "reproduce decoding": ["--pair", pair, "--device", "cpu"],
        "reproduce advise": ["--pair", pair, "--device", "cpu"],
        **{f"reproduce {name}": ["--device", "cpu"] for name in ("appendix-e", "verifiers")},
    }


@pytest.mark.parametrize(("verb", "option"), [*options()])
def test_a_hostile_value_is_refused_in_one_line_before_any_work(verb, option, base, capsys):
    for value in HOSTILE:
        glued = f"{option}={value}" if option.startswith("--") else f"{option}{value}"
        before = sorted(Path().rglob("*"))
        try:
            status = main([*verb.split(), *base.get(verb, []), glued])
        except SystemExit as stop:
            status = stop.code
        error = capsys.readouterr().err
        assert status in (0, 1, 2), (value, error)
        if status == 2:
            assert error.count("\n") == 1 and ": error: " in error, (value, error)
            assert sorted(Path().rglob("*")) == before, value
        else:
            assert option in TEXTS or value not in NO_NUMBERS, f"{glued!r} was taken"


# --- how commands end ---


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x: found 1.\nGive 2."),
        FileNotFoundError(2, "No such file", "x"),
        ImportError("No module named 'x'"),
        MemoryError(),
        RuntimeError("can't allocate memory: x"),
    ],
)
def test_an_expected_error_ends_in_one_line(error, capsys):
    assert ended("command", lambda: _raise(error)) == 2
    said = capsys.readouterr().err
    assert said.startswith("command: error: ") and said.count("\n") == 1


def test_an_error_that_explains_another_ends_in_one_line_and_a_bug_keeps_its_traceback(capsys):
    explained = RuntimeError("rule raised KeyError")
    explained.__cause__ = KeyError("x")
    assert ended("command", lambda: _raise(explained)) == 2
    for bug in (RuntimeError("shapes"), KeyError("x"), ZeroDivisionError(), AttributeError("y")):
        with pytest.raises(type(bug)):
            ended("command", lambda bug=bug: _raise(bug))


def test_ctrl_c_says_how_to_go_on_where_something_is_recorded(capsys, monkeypatch):
    def stopped(*words):
        with resumable(*words):
            raise KeyboardInterrupt

    assert ended("command", lambda: _raise(KeyboardInterrupt())) == 130
    assert ended("command", lambda: stopped("pack.age", "--id", "a b")) == 130
    assert capsys.readouterr().err == (
        "stopped\nstopped; what is recorded is kept. Resume with: python -m pack.age --id 'a b'\n"
    )
    monkeypatch.setenv("RANK", "1")
    assert ended("command", lambda: _raise(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == ""


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("module", [training_pair, smollm2_draft])
@pytest.mark.parametrize(
    "words", [["--run-id", "a/b"], ["--run-id", "x", "--stage", "none"], ["--run-id", ""], []]
)
def test_training_refuses_before_any_work(module, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["training", *words])
    monkeypatch.setattr(module, "TrainingRun", lambda *_: pytest.fail("the run began"))
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["--shards", "1"], ["--rows", "0"], ["--tokens", "x"], ["--device", "tpu"]]
)
def test_training_of_no_text_is_refused(words, monkeypatch, capsys):
    test_training_refuses_before_any_work(
        smollm2_draft, ["--run-id", "x", *words], monkeypatch, capsys
    )
