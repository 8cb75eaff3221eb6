"""`python -m spectr_lite check`: what it reads, what it prints, and how it ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

import spectr_lite
from spectr_lite import distributions as D
from spectr_lite.__main__ import main
from spectr_lite.commands.check import load

RULES = """
from spectr_lite.verifiers.kseq import KSeq

class Good(KSeq):
    name = "good"

class Bad:
    def acceptance(self, draft, target, k):
        return 1.0
    def select(self, draft, target, tokens, generator):
        return tokens[:, 0]

class Crash(Bad):
    def select(self, draft, target, tokens, generator):
        raise KeyError("x")

good = Good()
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The running pair in every format, and a module with rules, in the current directory."""
    monkeypatch.chdir(tmp_path)
    draft, target = D.five_tokens()
    for name, values in (("d", draft), ("t", target)):
        np.save(f"{name}.npy", values)
        np.savez(f"{name}.npz", values)
        np.savetxt(f"{name}.csv", values[None], delimiter=",")
        np.savetxt(f"{name}-column.csv", values, delimiter=",")
        (tmp_path / f"{name}.json").write_text(json.dumps(values.tolist()))
    np.savez("both.npz", draft=draft, target=target)
    (tmp_path / "their_rules.py").write_text(RULES)
    yield tmp_path
    sys.modules.pop("their_rules", None)
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


def check(*arguments: str, pair=("d.npy", "t.npy")) -> int:
    few = [] if "--samples" in arguments else ["--samples", "5000"]
    return main(["check", "--draft", pair[0], "--target", pair[1], *few, *arguments])


# --- what it prints and how it ends ---


def test_the_table_then_a_verdict_for_each_rule_and_k(files, capsys):
    assert check("-k", "1", "2", "--verifier", "kseq", "coupling") == 0
    text = capsys.readouterr().out
    assert text.startswith("P(Y in S) against the optimum, V = 5")
    assert "0.728201" in text
    verdicts = [line.split(",")[:2] for line in text.splitlines() if "lossless, enum" in line]
    assert verdicts == [
        ["kseq", " k=1: lossless"], ["kseq", " k=2: lossless"], ["coupling", " k=1: lossless"],
    ]  # fmt: skip


def test_every_token_rule_unless_one_is_named(files, capsys):
    assert check("-k", "2") == 0
    text = capsys.readouterr().out
    assert "optimal, k=2: lossless" in text
    assert "spechub, k=2: lossless" in text
    assert "NOT" not in text


def test_a_rule_of_your_own(files, capsys):
    assert check("-k", "2", "--verifier", "their_rules:Good", "their_rules:good") == 0
    assert capsys.readouterr().out.count("good, k=2: lossless") == 2


def test_the_exit_status_says_when_something_is_biased(files, capsys):
    assert check("-k", "2", "--verifier", "kseq", "--verifier", "their_rules:Bad") == 1
    text = capsys.readouterr().out
    assert "kseq, k=2: lossless" in text
    assert "Bad, k=2: NOT lossless" in text
    assert "said too often: 0 (0.4" in text


def test_json(files, capsys):
    assert check("-k", "2", "--verifier", "their_rules:Bad", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["acceptance"] == 1
    assert found["verdicts"][0]["lossless"] is False


def test_a_seed_repeats_the_output(files, capsys):
    texts = []
    for seed in ("1", "1", "2"):
        check("-k", "2", "--verifier", "kseq", "--seed", seed)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_several_pairs(files, capsys):
    rows = [D.dirichlet(4, seed=seed) for seed in range(3)]
    draft, target = (np.stack(side) for side in zip(*rows, strict=True))
    np.save("many-d.npy", draft)
    np.save("many-t.npy", target)
    assert check("-k", "2", "--verifier", "kseq", pair=("many-d.npy", "many-t.npy")) == 0
    assert "means over 3 pairs" in capsys.readouterr().out


def test_the_table_without_verdicts(files, capsys, monkeypatch):
    monkeypatch.setattr("spectr_lite.commands.check.lossless", None)  # is not asked
    assert check("-k", "2", "--verifier", "kseq", "their_rules:Bad", "--no-verdicts") == 0
    text = capsys.readouterr().out
    assert "kseq" in text
    assert "samples" not in text
    assert check("-k", "2", "--verifier", "kseq", "--no-verdicts", "--json") == 0
    assert json.loads(capsys.readouterr().out)["verdicts"] == []


def test_no_bias_found_is_no_failure(files, capsys):
    for name, values in zip("dt", D.zipf(300), strict=True):
        np.save(f"large-{name}.npy", values)
    assert check("-k", "3", "--verifier", "kseq", pair=("large-d.npy", "large-t.npy")) == 0
    text = capsys.readouterr().out
    assert "kseq, k=3: no bias found\n  a TV above 0.0" in text


# --- what it reads ---


@pytest.mark.parametrize("kind", [".csv", "-column.csv", ".json"])
def test_a_byte_order_mark_and_float32_as_text(files, kind):
    """Excel begins its files with a mark; a float32 softmax misses 1 by more than float64 would."""
    for name, values in zip("dt", D.zipf(1_000), strict=True):
        single = np.exp(np.log(values).astype(np.float32))
        single /= single.cumsum()[-1]
        assert abs(single.sum(dtype=np.float64) - 1) > 1.5e-8
        comma = "\n" if kind == "-column.csv" else ","
        text = str(single.tolist()) if kind == ".json" else comma.join(map(str, single))
        (files / f"{name}{kind}").write_text(text, encoding="utf-8-sig")
    pair = (f"d{kind}", f"t{kind}")
    assert check("-k", "2", "--verifier", "kseq", "--no-verdicts", pair=pair) == 0


@pytest.mark.parametrize("kind", [".npy", ".npz", ".csv", "-column.csv", ".json"])
def test_formats(files, kind):
    draft, target = D.five_tokens()
    np.testing.assert_allclose(load(f"d{kind}", "--draft"), draft)
    np.testing.assert_allclose(load(f"t{kind}", "--target"), target)
    assert check("-k", "2", "--verifier", "kseq", pair=(f"d{kind}", f"t{kind}")) == 0


def test_a_key_picks_an_array(files):
    draft, target = D.five_tokens()
    np.testing.assert_array_equal(load("both.npz:draft", "--draft"), draft)
    np.testing.assert_array_equal(load("both.npz:target", "--target"), target)


def test_a_csv_of_several_rows_is_a_batch(files):
    np.savetxt("m.csv", np.tile(D.five_tokens()[0], (3, 1)), delimiter=",")
    assert load("m.csv", "--draft").shape == (3, 5)


# --- what it refuses, in one line ---


def bad_file(name: str, content: bytes | str) -> None:
    with open(name, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


BAD = {
    "a missing file": (("none.npy", "t.npy"), [], "--draft: there is no file 'none.npy'"),
    "a directory": (("d.npy", "folder.npy"), [], "--target: there is no file 'folder.npy'"),
    "an unknown format": (("d.txt", "t.npy"), [], "--draft: found 'd.txt'. Give a file that ends in"),
    "text in csv": (("words.csv", "t.npy"), [], "--draft: 'words.csv' could not be read as csv: .*'a'"),
    "ragged csv": (("ragged.csv", "t.npy"), [], "--draft: 'ragged.csv' could not be read as csv"),
    "empty csv": (("empty.csv", "t.npy"), [], r"draft: shape \(0,\) has no vocabulary"),
    "broken json": (("broken.json", "t.npy"), [], "--draft: 'broken.json' could not be read as json"),
    "a json object": (("object.json", "t.npy"), [], "--draft: 'object.json' could not be read as json"),
    "broken npy": (("d.npy", "broken.npy"), [], "--target: 'broken.npy' could not be read as npy"),
    "empty npy": (("d.npy", "empty.npy"), [], "--target: 'empty.npy' could not be read as npy"),
    "broken npz": (("d.npy", "broken.npz"), [], "--target: 'broken.npz' could not be read as npz"),
    "pickled npy": (("d.npy", "pickled.npy"), [], "--target: 'pickled.npy' could not be read as npy"),
    "two arrays": (
        ("both.npz", "t.npy"), [],
        "--draft: 'both.npz' holds 2 arrays; it has draft, target. Choose one with both.npz:NAME",
    ),
    "no such array": (("both.npz:x", "t.npy"), [], "--draft: 'both.npz' holds no array 'x'"),
    "negative": (("negative.json", "t.npy"), [], r"draft: entry \[1\] is -0.1"),
    "NaN": (("d.npy", "nan.json"), [], r"target: entry \[0\] is nan"),
    "a wrong sum": (("sum.json", "t.npy"), [], "draft: row 0 sums to 0.9"),
    "other vocabularies": (("three.json", "t.npy"), [], "vocabularies of 3 and 5 tokens"),
    "other batches": (("two.json", "three-rows.json"), [], r"shapes \(2, 2\) and \(3, 2\)"),
    "importance with too many": (
        ("d.npy", "t.npy"), ["-k", "100000", "--verifier", "importance"],
        r"verifiers: 'importance' is not defined for k in \[100000\]",
    ),
    "k = 0": (("d.npy", "t.npy"), ["-k", "0"], "argument -k: found '0'. Give a whole number"),
    "k = 1.5": (("d.npy", "t.npy"), ["-k", "1.5"], "argument -k: found '1.5'"),
    "k = two": (("d.npy", "t.npy"), ["-k", "two"], "argument -k: found 'two'"),
    "no samples": (("d.npy", "t.npy"), ["--samples", "0"], "argument --samples: found '0'"),
    "a bad seed": (("d.npy", "t.npy"), ["--seed", "-1"], "argument --seed: found '-1'"),
    "an unknown rule": (("d.npy", "t.npy"), ["--verifier", "best"], "verifier: no rule named 'best'"),
    "an unknown module": (
        ("d.npy", "t.npy"), ["--verifier", "nowhere:Rule"],
        "--verifier: 'nowhere' could not be imported .ModuleNotFoundError",
    ),
    "an unknown class": (
        ("d.npy", "t.npy"), ["--verifier", "their_rules:None_"],
        "--verifier: module 'their_rules' has no 'None_'",
    ),
    "a module that fails": (
        ("d.npy", "t.npy"), ["--verifier", "broken_rules:Rule"],
        "--verifier: 'broken_rules' could not be imported .ZeroDivisionError",
    ),
    "something that is no rule": (
        ("d.npy", "t.npy"), ["--verifier", "json:dumps"], "verifier: .* has no method 'acceptance'",
    ),
    "a rule that crashes": (
        ("d.npy", "t.npy"), ["-k", "2", "--verifier", "their_rules:Crash"],
        "verifier: Crash.select raised KeyError",
    ),
    "no fitting k": (
        ("d.npy", "t.npy"), ["-k", "2", "--verifier", "coupling"],
        r"verifiers: 'coupling' is not defined for k in \[2\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line(case, files, capsys):
    (files / "folder.npy").mkdir()
    for name, content in {
        "d.txt": "0.5", "words.csv": "a,b\n", "ragged.csv": "0.5,0.5\n1\n", "empty.csv": "",
        "broken.json": "[0.5,", "object.json": '{"a": 1}', "broken.npy": b"\x93NUMPY\x01",
        "empty.npy": b"", "broken.npz": b"PK\x03\x04 nothing",
        "negative.json": "[0.5, -0.1, 0.2, 0.2, 0.2]",
        "nan.json": "[NaN, 0.5, 0.5, 0, 0]", "sum.json": "[0.5, 0.4, 0, 0, 0]",
        "three.json": "[0.5, 0.5, 0]", "two.json": "[[0.5, 0.5], [0.5, 0.5]]",
        "three-rows.json": "[[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]", "broken_rules.py": "1 / 0",
    }.items():  # fmt: skip
        bad_file(name, content)
    np.save("pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    pair, arguments, message = BAD[case]
    try:
        status = check(*arguments, pair=pair)
    except SystemExit as stop:  # argparse's own way out
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    error = captured.err
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert error.startswith("spectr_lite check: error: ")
    assert re.search(message, error), error


@pytest.mark.parametrize("arguments", [[], ["train"], ["check"], ["check", "--draft", "d.npy"]])
def test_missing_and_unknown_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == spectr_lite.__version__


def test_as_a_program(files):
    """The real thing, in its own process: status, streams, and a rule from the current directory."""
    command = "-m spectr_lite check --draft d.npy --target t.npy -k 2 --samples 2000"
    run = subprocess.run(
        [sys.executable, *command.split(), "--verifier", "their_rules:Bad"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stderr
    assert run.stderr == ""
    assert "Bad, k=2: NOT lossless" in run.stdout


@pytest.mark.parametrize(("sink", "said"), [("/dev/full", 1), ("| true", 0)])
def test_output_that_nobody_can_take_ends_in_one_line_at_most(files, sink, said):
    command = f"'{sys.executable}' -m spectr_lite check --draft d.npy --target t.npy -k 2 --json"
    sink = sink if sink.startswith("|") else f"> {sink}"
    run = subprocess.run(
        ["bash", "-c", f"{command} --verifier kseq --samples 10 {sink}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.stderr.count("\n") == said and "Traceback" not in run.stderr, run.stderr
    assert said == 0 or run.returncode == 2


def test_check_loads_neither_the_decoder_nor_the_solver(files):
    code = """
import sys
from spectr_lite.__main__ import main
main("check --draft d.npy --target t.npy -k 2 --verifier kseq --samples 1000".split())
heavy = {"tokenizers", "cvxpy", "spectr_lite.decoding"}
sys.exit(", ".join(heavy & set(sys.modules)) or 0)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
