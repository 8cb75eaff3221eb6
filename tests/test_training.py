"""Training: text and losses that could be wrong and still train, kills, records and cards."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from spectr_lite.commands.ending import ended
from spectr_lite.models import smollm2
from spectr_lite.models.transformer import Transformer, TransformerConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from training import cards, pair, train
from training import smollm2_draft as distil

# Autocast alone, where nothing is compiled, is slower, and torch says so.
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return Transformer(TransformerConfig(30, 16, 2, 2, 2, 16, 64)).eval().requires_grad_(False)


def test_the_teachers_laws_come_back_from_what_is_kept(teacher):
    forced = torch.tensor([[0, -1, -1], [5, 6, 7]])
    text = distil.write_text(teacher, forced, 12, torch.Generator().manual_seed(1))
    tokens = text["tokens"].long()
    assert tokens[0, 0] == 0 and tokens[1, :3].tolist() == [5, 6, 7]
    logits = F.linear(text["hidden"].float(), teacher.embed_tokens.weight)
    found = logits - text["log_normaliser"][..., None]
    torch.testing.assert_close(found, teacher(tokens[:, :-1]).log_softmax(-1), atol=1e-3, rtol=0)


def test_the_text_has_the_teachers_law(teacher):
    """The second token, 4,000 times: the sampler's own arithmetic against softmax."""
    forced = torch.full((4000, 1), 3)
    text = distil.write_text(teacher, forced, 2, torch.Generator().manual_seed(2))
    counts = torch.bincount(text["tokens"][:, 1].long(), minlength=30)
    expected = 4000 * teacher(torch.tensor([[3]]))[0, 0].softmax(-1)
    assert ((counts - expected).square() / expected).sum() < 75  # 29 degrees: beyond, 1e-5


@pytest.mark.parametrize("final", [False, True])
def test_slopes_by_hand_are_those_of_autograd(monkeypatch, final):
    """On a part of the vocabulary, where the teacher's mass is below one."""
    monkeypatch.setattr(distil, "compiled_loss", lambda: distil.loss_and_slope)
    generator = torch.Generator().manual_seed(3)
    hidden, teaching = (torch.randn(7, 4, generator=generator) for _ in range(2))
    weight, goal_rows = (torch.randn(9, 4, generator=generator) for _ in range(2))
    bias = torch.randn(9, generator=generator)
    normaliser = (teaching @ goal_rows.T).logsumexp(-1) + 0.5
    inputs = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]

    def plain():
        draft = F.linear(hidden, weight, bias).softmax(-1)
        law = (teaching @ goal_rows.T - normaliser[:, None]).exp()
        if final:
            return (1 - torch.minimum(draft, law).sum(-1)).mean()
        return (law * (law.log() - draft.log())).sum(-1).mean()

    loss = distil.HeadLoss.apply(
        hidden, weight, bias, teaching, goal_rows.bfloat16(), normaliser, final, 3
    )
    expected = plain()
    torch.testing.assert_close(loss, expected, atol=0.03, rtol=0.03)  # bfloat16 products
    for found, true in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        assert F.cosine_similarity(found.flatten(), true.flatten(), dim=0) > 0.995
        assert 0.9 < found.norm() / true.norm() < 1.1


def test_every_row_comes_once_before_any_comes_again():
    seen = torch.cat([distil.rows_at(step, 4, 12, seed=0) for step in range(6)])
    assert sorted(seen[:12].tolist()) == sorted(seen[12:].tolist()) == list(range(12))
    assert seen[:12].tolist() != seen[12:].tolist()


def test_predicted_speed():
    assert distil.speed(1.0, 0.25) == 5 / 2
    assert distil.speed(0.0, 0.0) == 1


# --- runs and their loop -------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch):
    """A checkout of its own for every run; nothing is compiled."""
    monkeypatch.setattr(train, "ROOT", tmp_path)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(distil, "compiled_loss", lambda: distil.loss_and_slope)
    return tmp_path


def test_other_settings_under_the_same_name_are_refused():
    run = train.TrainingRun("a")
    run.settle(distil.Settings(tokens=5))
    run.settle(distil.Settings())  # nothing was made yet: that command was refused, or stopped
    run.save("shard-000", {})
    run.settle(distil.Settings())
    with pytest.raises(ValueError, match="run-id a was started with other settings"):
        run.settle(distil.Settings(tokens=5))


def test_ctrl_c_in_a_stage_names_the_command_that_goes_on(monkeypatch, capsys):
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["here/smollm2_draft.py", "--run-id", "a"])
    run, stages = train.TrainingRun("a"), {"sample": stopped}
    assert ended("training", lambda: run.run(distil.Settings(), stages, ["training"], "")) == 130
    command = "python -m training.smollm2_draft --run-id a"
    assert capsys.readouterr().err.splitlines() == [
        f"stopped; what is recorded is kept. Resume with: {command}"
    ]


def test_a_stage_without_its_text_names_the_stage_to_run():
    with pytest.raises(FileNotFoundError, match="run --stage sample first"):
        distil.load_text(train.TrainingRun("a"), [0])
    with pytest.raises(FileNotFoundError, match="run --stage train first"):
        distil.stage_export(train.TrainingRun("a"), distil.Settings(), "cpu")
    with pytest.raises(FileNotFoundError, match="no checkpoint of stage target"):
        pair.load_model(train.TrainingRun("a"), "target", pair.TARGET)


def test_a_session_is_noted_once_and_keeps_its_end(monkeypatch):
    monkeypatch.setattr(train, "environment", lambda *_: {})  # the test's checkout is not git's
    run, ended = train.TrainingRun("a"), []

    def stage():
        (session,) = json.loads((run.records / "env.json").read_text())["sessions"]
        ended.append("end" in session)

    run.run(distil.Settings(), {"sample": stage}, ("training",), "float32")
    (session,) = json.loads((run.records / "env.json").read_text())["sessions"]
    assert ended == [False] and session["end"] >= session["start"]
    assert session["stage"] == "sample" and session["command"].startswith("python -m training.")


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (9, 0), (40, 4), (6, 100), (7, 7)])
def test_rates_are_a_warm_up_then_a_cosine_to_a_twentieth(steps, warmup):
    model = torch.nn.Linear(2, 2)
    fit = train.Fit(steps, 2e-3, warmup=warmup)
    optimizer, schedule = train.optimizer_at(model, fit)
    for step in range(steps):
        turn = math.pi * (step - warmup) / max(steps - warmup, 1)
        expected = (
            2e-3 * (step + 1) / warmup
            if step < warmup
            else 1e-4 + 1.9e-3 * (1 + math.cos(turn)) / 2
        )
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected] * 2)
        state = optimizer.state_dict()  # a checkpoint here would go on at the same rate
        resumed, _ = train.optimizer_at(torch.nn.Linear(2, 2), fit, step, state if step else None)
        assert resumed.param_groups[0]["lr"] == pytest.approx(expected)
        optimizer.step()
        schedule.step()


def test_only_matrices_decay():
    optimizer, _ = train.optimizer_at(torch.nn.Linear(2, 2), train.Fit(5, 1e-3))
    decay = {group["params"][0].dim(): group["weight_decay"] for group in optimizer.param_groups}
    assert decay == {2: 0.1, 1: 0.0}


class Killed(BaseException):
    """Stands for a kill: nothing in training catches it."""


def kill_at(monkeypatch, number):
    """Let the gradients of the first `number` steps through, then end the process, so to speak."""
    real, calls = torch.nn.utils.clip_grad_norm_, []

    def clip(*arguments):
        calls.append(1)
        if len(calls) > number:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)


def outcome(run, stages):
    """Weights of the stages and the curve without its clock."""
    curve = [{**record, "seconds": 0} for record in run.read(train.CURVE)]
    return {stage: run.load(stage)["model"] for stage in stages}, curve


def assert_same(found, expected):
    assert found[1] == expected[1]
    for stage, weights in expected[0].items():
        assert found[0][stage].keys() == weights.keys()
        for name, tensor in weights.items():
            assert torch.equal(found[0][stage][name], tensor), name


def cut_curve(run, size):
    path = run.records / train.CURVE
    os.truncate(path, int(path.stat().st_size * size))


TINY = TransformerConfig(30, 16, 1, 2, 2, 16, 8)
STAGES = ("target", "draft", "distil")


@pytest.fixture
def tiny_pair(monkeypatch):
    """The pair's stages on 300 random tokens; a function that runs them all."""
    tokens = torch.randint(30, (300,), generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(pair, "CONTEXT", 8)
    monkeypatch.setattr(pair, "PROMPT", 2)
    monkeypatch.setattr(pair, "HELD_BACK", 2)
    monkeypatch.setattr(pair, "load_tokens", lambda run, part: tokens)
    monkeypatch.setattr(pair, "train", functools.partial(train.train, every=2))
    fit = train.Fit(7, 1e-2, dropout=0.2, batch=4, warmup=2)
    settings = pair.Settings(
        target=TINY, draft=TINY, fit_target=fit, fit_draft=fit, fit_distil=fit, sampled_texts=6
    )

    def go(run):
        for stage in ("target", "draft", "sample", "distil"):
            pair.STAGES[stage](run, settings)
        return run

    return go


@pytest.mark.parametrize("steps", [1, 5, 18])  # in the target, in it again, in the distillation
def test_a_killed_pair_ends_as_one_that_ran_through(tiny_pair, monkeypatch, steps):
    whole = outcome(tiny_pair(train.TrainingRun("whole")), STAGES)
    assert [record["step"] for record in whole[1]] == [0, 2, 4, 6, 7] * 3
    run = train.TrainingRun("killed")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, steps)
        tiny_pair(run)
    assert len(run.read(train.CURVE)) < 15
    assert_same(outcome(tiny_pair(run), STAGES), whole)


def test_sampled_texts_begin_as_speeches_do_and_are_not_written_twice(tiny_pair):
    run = tiny_pair(train.TrainingRun("a"))
    texts = run.load("sampled")["tokens"]
    assert texts.shape == (6, 9) and texts.dtype == torch.int64
    speech = pair.load_tokens(run, "train").unfold(0, 2, 1).tolist()
    assert all(start in speech for start in texts[:, :2].tolist())
    run.save("target", {"model": {}})  # would not load, if anything were written again
    pair.stage_sample(run, pair.Settings(target=TINY))
    assert torch.equal(run.load("sampled")["tokens"], texts)


@pytest.fixture
def tiny_distillation(teacher, monkeypatch):
    """Two shapes and the draft on 12 windows that a tiny teacher wrote; a function that runs them."""
    monkeypatch.setattr(distil, "VOCABULARY", 30)
    narrow = distil.Shape(20, 64, 1)
    shapes = {"copied": distil.Shape(30, 16, 1, (1,)), "narrow": narrow}
    monkeypatch.setattr(distil, "SHAPES", shapes)
    wide = Transformer(TransformerConfig(30, 64, 2, 2, 2, 32, 64)).requires_grad_(False)
    monkeypatch.setattr(distil, "load_pair", lambda *_: SimpleNamespace(target=wide.eval()))
    settings = distil.Settings(
        shards=3, rows=6, length=10, prompt=2, shape="narrow", shape_tokens=200, tokens=400,
        batch=4, held_out_rows=5, every=3,
    )  # fmt: skip

    def go(run):
        for shard in range(3):
            generator = torch.Generator().manual_seed(shard)
            text = distil.write_text(wide, torch.zeros(6, 1, dtype=int), 10, generator)
            run.save(f"shard-{shard:03d}", text)
        distil.stage_shapes(run, settings, "cpu")
        distil.stage_train(run, settings, "cpu")
        return run

    return go


STAGES_DISTILLED = ("shape-copied", "shape-narrow", "draft")


@pytest.mark.parametrize("steps", [2, 7, 19])
def test_a_killed_distillation_ends_as_one_that_ran_through(tiny_distillation, monkeypatch, steps):
    whole = outcome(tiny_distillation(train.TrainingRun("whole")), STAGES_DISTILLED)
    losses = [record["loss"] for record in whole[1] if record["stage"] == "draft"]
    assert losses == ["KL"] * 4 + ["total variation"]
    run = train.TrainingRun("killed")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, steps)
        tiny_distillation(run)
    cut_curve(run, 0.7)
    assert_same(outcome(tiny_distillation(run), STAGES_DISTILLED), whole)
    shapes = [record["shape"] for record in run.read("shapes.jsonl")]
    assert shapes == ["copied", "narrow"]
    assert all("embed_tokens.weight" not in whole[0][stage] for stage in STAGES_DISTILLED)


def toy(run, steps=6):
    """A training of two numbers, checkpoint after every second step."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    fit = train.Fit(steps, 0.1, warmup=2)

    def loss_at(step, generator):
        assert model.training  # with its dropout, if it has any
        return model(torch.randn(3, 2, generator=generator)).square().mean()

    def validate(done):
        assert not model.training and not torch.is_grad_enabled()
        return {"weight": model.weight[0, 0].item()}

    return train.train(run, "toy", model, fit, 1, 10, loss_at, validate, every=2)


def test_the_last_line_is_returned_and_counts_what_was_read():
    last = toy(train.TrainingRun("a"), steps=5)
    assert (last["stage"], last["step"], last["tokens"]) == ("toy", 5, 50)
    assert toy(train.TrainingRun("a"), steps=5) == last  # finished: nothing is trained again


def test_a_curve_cut_at_any_byte_comes_back():
    run = train.TrainingRun("a")
    run.append(train.CURVE, {"stage": "other", "step": 5})  # without a checkpoint: stays as it is
    toy(run, steps=2)
    path = run.records / train.CURVE
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for size in range(first, len(content)):
        path.write_bytes(content[:size])
        toy(run, steps=2)
        assert path.read_bytes() == content, size


def test_a_line_is_added_after_what_a_kill_left():
    run = train.TrainingRun("a")
    (run.records / "x.jsonl").write_bytes(b'{"n": 1}\n{"n"')
    run.append("x.jsonl", {"n": 2})
    assert (run.records / "x.jsonl").read_bytes() == b'{"n": 1}\n{"n": 2}\n'


def test_a_recorded_curve_without_its_checkpoint_is_left_alone():
    run = train.TrainingRun("a")
    toy(run)
    content = (run.records / train.CURVE).read_bytes()
    (run.files / "toy.pt").unlink()
    with pytest.raises(ValueError, match=r"stage toy up to step 6.*no checkpoint of it"):
        toy(run)
    assert (run.records / train.CURVE).read_bytes() == content


# --- model cards ---------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [pair, distil], ids=["sotu", "smollm2"])
def test_a_card_comes_back_byte_for_byte(module):
    assert module.card().encode() == (module.SHIPPED / "card.md").read_bytes()


def test_cards_are_written_where_they_ship(tmp_path, monkeypatch):
    for module in (pair, distil):
        folder = tmp_path / module.__name__
        shutil.copytree(module.SHIPPED, folder)
        (folder / "card.md").unlink()
        monkeypatch.setattr(module, "SHIPPED", folder)
    cards.main()
    for module, name in ((pair, "sotu"), (distil, "smollm2")):
        shipped = Path(smollm2.SHIPPED).parent / name / "card.md"
        assert (module.SHIPPED / "card.md").read_bytes() == shipped.read_bytes()
