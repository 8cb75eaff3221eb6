"""The parts of the distillation that could be wrong and still train: its text, its losses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from spectr_lite.models.transformer import Transformer, TransformerConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from training import smollm2_draft as distil


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return Transformer(TransformerConfig(30, 16, 2, 2, 2, 16, 64)).eval().requires_grad_(False)


def test_the_teachers_distributions_come_back_from_what_is_kept(teacher):
    forced = torch.tensor([[0, -1, -1], [5, 6, 7]])
    text = distil.write_text(teacher, forced, 12, torch.Generator().manual_seed(1))
    tokens = text["tokens"].long()
    assert tokens[0, 0] == 0 and tokens[1, :3].tolist() == [5, 6, 7]
    logits = F.linear(text["hidden"].float(), teacher.embed_tokens.weight)
    found = logits - text["log_normaliser"][..., None]
    torch.testing.assert_close(found, teacher(tokens[:, :-1]).log_softmax(-1), atol=1e-3, rtol=0)


def test_the_text_has_the_teachers_distribution(teacher):
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
        probs = (teaching @ goal_rows.T - normaliser[:, None]).exp()
        if final:
            return (1 - torch.minimum(draft, probs).sum(-1)).mean()
        return (probs * (probs.log() - draft.log())).sum(-1).mean()

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


def test_other_settings_under_the_same_name_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(distil, "ROOT", tmp_path)
    run = distil.Run("a")
    run.settle(distil.Settings())
    run.settle(distil.Settings())
    with pytest.raises(ValueError, match="run-id a was started with other settings"):
        run.settle(distil.Settings(tokens=5))


def test_a_stage_without_its_text_names_the_stage_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(distil, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="run --stage sample first"):
        distil.load_text(distil.Run("a"), [0])


def test_predicted_speed():
    assert distil.speed(1.0, 0.25) == 5 / 2
    assert distil.speed(0.0, 0.0) == 1
