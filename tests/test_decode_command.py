from __future__ import annotations

import sys

import pytest

from spectr_lite import models
from spectr_lite.__main__ import main
from spectr_lite.decoding import generate
from spectr_lite.decoding.rendering import TextStream, pieces, to_html


@pytest.fixture(scope="module")
def pair():
    return models.load_pair("bundled")


def run(*words):
    return main(["decode", "--device", "cpu", *words])


def test_streams_the_text_and_its_block_efficiency(pair, capsys):
    words = ["--prompt", "My fellow citizens", "-K", "2", "-L", "3", "--seed", "4"]
    assert run(*words, "--max-new-tokens", "12") == 0
    shown = capsys.readouterr().out
    prompt = pair.tokenizer.encode("My fellow citizens").ids
    settings = {"num_drafts": 2, "draft_length": 3, "max_new_tokens": 12, "generator": 4}
    made = generate(pair.target, pair.draft, [prompt], stop_tokens=[pair.end_of_text], **settings)
    assert shown.startswith(pair.tokenizer.decode(prompt + made.tokens[0]))
    assert f"in {made.calls[0]} calls of the large model" in shown
    assert f"block efficiency {made.block_efficiency:.2f} " in shown
    assert "\033[" not in shown


def test_top_k_and_a_rule_of_your_own(pair, capsys, tmp_path, monkeypatch):
    """The likeliest token alone is greedy decoding, whatever the temperature."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_rule.py").write_text(
        "from spectr_lite.verifiers.target_only import TargetOnly\nclass Mine(TargetOnly): ...\n"
    )
    words = ["--prompt", "We", "-K", "2", "-L", "2", "--max-new-tokens", "8", "--verifier"]
    shown = []
    for more in (["own_rule:Mine", "--top-k", "1"], ["kseq", "--temperature", "0"]):
        assert run(*words, *more) == 0
        shown.append(capsys.readouterr().out.splitlines()[0])
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry != str(tmp_path)])
    sys.modules.pop("own_rule")
    assert shown[0] == shown[1]
    assert run(*words, "kseq", "--top-p", "0.5", "--top-k", "20", "--seed", "1") == 0


def test_drafts_are_listed(capsys):
    assert run("--prompt", "", "-K", "3", "-L", "2", "--max-new-tokens", "2", "--show-drafts") == 0
    shown = capsys.readouterr().out
    assert "turn 1" in shown
    assert shown.split("=>")[0].count(" | ") >= 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--verifier", "best"], "no rule named 'best'"),
        (["--pair", "nowhere"], "nowhere"),
        (["--verifier", "nowhere:Rule"], "--verifier: 'nowhere' could not be imported"),
        (["--verifier", "math:pi"], "--verifier: 'math:pi' is float, which decodes nothing"),
        (["--top-k", "0"], "top_k: found 0"),
        (["--top-p", "1.5"], "top_p: found 1.5"),
        (["-L", "0"], "draft_length: found 0"),
        (["--max-new-tokens", "600"], "exceed the models' context of 512"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words, message, capsys):
    assert run("--prompt", "We", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("spectr_lite decode: error: ")


@pytest.mark.parametrize("error", ["KeyError", "ValueError"])
def test_a_rule_of_your_own_that_crashes_is_one_line(error, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crashing.py").write_text(
        "from spectr_lite.verifiers.target_only import TargetOnly\n"
        "class Mine(TargetOnly):\n"
        f"    def _select(self, *arguments): raise {error}('no such token')\n"
    )
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    assert run("--prompt", "We", "--verifier", "crashing:Mine") == 2
    sys.modules.pop("crashing")
    message = capsys.readouterr().err
    assert message.startswith("spectr_lite decode: error: ")
    assert "no such token" in message and message.count("\n") == 1


def test_pieces_join_to_the_text(pair):
    prompt = pair.tokenizer.encode("My fellow citizens").ids
    made = generate(pair.target, pair.draft, [prompt], max_new_tokens=20, generator=2)
    marked = pieces(pair.tokenizer, prompt, made.turns)
    assert len(marked) == 21
    assert "".join(text for _, text in marked) == pair.tokenizer.decode(prompt + made.tokens[0])


def test_half_a_character_waits(pair):
    tokens = pair.tokenizer.encode("caf\u00e9 \u2014 \u6f22").ids
    stream = TextStream(pair.tokenizer)
    parts = [stream.add(token) for token in tokens]
    assert "".join(parts) == "caf\u00e9 \u2014 \u6f22"
    assert len(tokens) > len("caf\u00e9 \u2014 \u6f22")


def test_html_escapes_text_and_names_every_kind():
    page = to_html([("accepted", "<b>"), ("corrected", " & ")])
    assert '<span class="tok-accepted">&lt;b&gt;</span>' in page
    assert '<span class="tok-corrected"> &amp; </span>' in page
    assert page.count("tok-legend") == 1
