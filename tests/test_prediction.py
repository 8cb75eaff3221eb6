"""The predicted cost of a turn on a GPU: what is counted, and what follows from it."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_pair

from spectr_experiments import clocks, prediction
from spectr_experiments.prediction import Kernel, Kernels, as_on_a_gpu
from spectr_lite import kernels
from spectr_lite.decoding import Decoder
from spectr_lite.models import smollm2
from spectr_lite.models.transformer import Transformer
from spectr_lite.verifiers import paths

H100 = prediction.DEVICES["H100"]


def counted(call) -> list[tuple[str, int, int]]:
    with Kernels() as counted:
        call()
    return [(k.name.removeprefix("aten."), k.bytes, k.flops) for k in counted.launched]


def test_what_a_kernel_moves_and_computes():
    """In float32: 4 bytes a number; places are int64."""
    a, b, places = torch.zeros(3, 5), torch.zeros(5, 7), torch.tensor([2, 2])
    assert counted(lambda: a @ b) == [("mm", 4 * (15 + 35 + 21), 2 * 3 * 5 * 7)]
    assert counted(lambda: a + a) == [("add", 4 * (15 + 15), 0)]
    assert counted(lambda: a[:1].expand(3, 5) + a) == [("add", 4 * (5 + 15 + 15), 0)]
    assert counted(lambda: a.add_(1)) == [("add_", 4 * (15 + 15), 0)]
    assert counted(lambda: b[places]) == [("index", 16 + 2 * 4 * 14, 0)]  # not all of b
    table = torch.nn.functional.embedding
    assert counted(lambda: table(places, b)) == [("embedding", 16 + 2 * 4 * 14, 0)]
    values = torch.zeros(2, 7)

    def write():
        b[places] = values

    assert counted(write) == [("index_put_", 2 * (16 + 4 * 14), 0)]
    assert counted(lambda: [a.t(), a.view(15), a[0], torch.empty(9), a.detach()]) == []


def test_the_time_of_a_kernel_is_the_largest_of_three():
    for kernel, seconds in (
        (Kernel("few", 1_000, 0, 2), H100["floor"]),
        (Kernel("much", 2 * 10**9, 10**9, 2), 2 * 10**9 / H100["bandwidth"]),
        (Kernel("hard", 10**6, 10**12, 2), 10**12 / H100["peak"][2]),
        (Kernel("wide", 10**6, 10**12, 4), 10**12 / H100["peak"][4]),
    ):
        assert kernel.seconds(H100) == seconds
    turn = {"draft": [Kernel("few", 1, 0, 2)] * 5, "score": [Kernel("much", 10**9, 0, 2)]}
    found = prediction.staged(turn, {"H100": H100})
    assert [stage["kernels"] for stage in found["stages"].values()] == [5, 1]
    assert found["turn"]["H100"] == pytest.approx(5 * 2.2e-3 + 1e3 / 2.9e3)


@pytest.mark.parametrize("rule", prediction.RULES)
def test_a_fake_turn_launches_what_a_real_one_does(rule, monkeypatch):
    """But for the norm and the attention, which torch's CPU operations take apart."""
    settings = {"num_drafts": 3, "draft_length": 2, "verifier": rule}
    monkeypatch.setattr(kernels, "take", lambda rule, device: False)  # all of it in torch
    models = make_pair(dtype=torch.float32)
    with as_on_a_gpu():
        shapes = [Transformer(model.config).requires_grad_(False) for model in models]
        fake = prediction.trace(*shapes, **settings)
    monkeypatch.setattr(paths, "SYNC_IS_FREE", set())
    decoder = Decoder(*models, **settings)
    decoder.graphs.disabled = True
    next(decoder.decode([[1, 2, 3]], max_new_tokens=20))
    steps, _ = clocks.stage_steps(decoder, lambda: 10)
    for name, step in steps.items():
        with torch.no_grad(), Kernels() as counted:
            step()
        if name in ("verify", "commit"):
            assert [kernel.name for kernel in fake[name]] == [k.name for k in counted.launched]
        assert counted.launched and fake[name]


@pytest.mark.parametrize("rule", ["kseq", "optimal-block"])
def test_a_call_of_a_triton_kernel_is_one_kernel_with_all_that_it_is_given(rule):
    with as_on_a_gpu():
        models = prediction.fake_models("bundled")
        turn = prediction.trace(*models, num_drafts=3, draft_length=2, verifier=rule)["verify"]
    of_triton = [kernel for kernel in turn if not kernel.name.startswith("aten.")]
    assert 5 < len(of_triton) < len(turn) <= 20
    laws = 4 * 4096 * (3 * 2 + 1 + 3 * 2)  # of the draft and the target, in float32
    tables = {"kseq": 1.1, "optimal-block": 4}[rule]  # the plan's histograms are larger than they
    assert laws <= max(kernel.bytes for kernel in of_triton) < tables * laws


def test_an_autoregressive_step_reads_the_weights_once():
    target = make_shapes_of("bundled")[0]
    with as_on_a_gpu():
        turn = prediction.trace(prediction.fake_models("bundled")[0], None, num_drafts=0)
    weights = 2 * sum(weight.numel() for weight in target.parameters())
    moved = sum(kernel.bytes for kernel in turn["score"])
    assert weights < moved < 1.1 * weights  # the rest: activations
    flops = sum(kernel.flops for kernel in turn["score"])
    assert flops > weights  # a multiplication and an addition for each
    with torch.device("meta"):
        cache = target.new_cache(3, 50).entries.numel()
    read = prediction.step_bytes("bundled", torch.float32, 3, 50)
    assert read == 2 * weights + 4 * cache
    assert prediction.step_bytes("your own", torch.float32, 1, 50) is None


def make_shapes_of(pair):
    with torch.device("meta"):
        return [Transformer(config) for config in prediction.sizes(pair)]


def test_sizes_are_those_of_the_models():
    """Parameters, in millions, that their authors name; of the pairs at hand the layers dropped too."""
    millions = {name: [sum(w.numel() for w in model.parameters()) / 1e6 for model in
                       make_shapes_of(name)] for name in prediction.PAIRS}  # fmt: skip
    assert [round(m, -1) for m in millions["SmolLM2-1.7B + 135M"]] == [1710, 130]
    assert 6_500 < millions["Qwen2.5-7B + 0.5B"][0] < 7_620  # without a second embedding
    assert 490 < millions["Qwen2.5-7B + 0.5B"][1] < 500
    for name, dropped in smollm2.DROPPED.items():
        large, small = prediction.sizes(name)
        assert large.layers - small.layers == len(dropped)


def test_a_measurement_stands_beside_its_prediction(capsys):
    row = {"verifier": "kseq", "num_drafts": 8, "draft_length": 4}
    cell = row | {"stages": {"draft": {"kernels": 3}}, "turn": {"H100": 4.0}, "cost": {"H100": 2.0},
                  "speed": {"H100": 1.5}}  # fmt: skip
    pair = {"pair": "bundled", "step": {"turn": {"H100": 2.0}}, "cells": [cell]}
    found = {"is": "a prediction", "made": "now", "commit": "c", "pairs": [pair]}
    method = row | {"rows": 1, "block_efficiency": 3.0, "tokens_per_second": {"median": 500.0}}
    run = {
        "pair": "bundled",
        "environment": {"device": "NVIDIA H100 80GB HBM3"},
        "methods": [method],
    }
    prediction.show(found, [run])  # 3 tokens at 500 a second are 6 ms
    assert "1.50 times as fast  measured / predicted 1.50" in capsys.readouterr().out
    prediction.show(found, [run | {"environment": {"device": "CPU, Xeon"}}])
    assert "measured /" not in capsys.readouterr().out
