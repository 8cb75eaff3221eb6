"""The code on the page "Your own pair of models" runs, and its recorder's dump can be judged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from spectr_experiments import dumps, replay
from spectr_lite import verifiers
from spectr_lite.decoding.sampling import Sampling

PAGE = Path(__file__).resolve().parent.parent / "book" / "your-own-pair.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)


def run(block):
    names: dict = {}
    exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_the_call_from_python():
    assert len(BLOCKS) == 2
    found = run(BLOCKS[0])["found"]
    assert found.decoded is not None and len(found.settings) == 6


def test_the_recorder_writes_what_was_drafted_and_scored(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 24}
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=1, num_key_value_heads=2)
    torch.manual_seed(0)
    target, draft = (transformers.LlamaForCausalLM(config).eval() for _ in range(2))
    texts = [torch.randint(3, target.config.vocab_size, (1, 20)) for _ in range(2)]
    path = tmp_path / "pair.safetensors"
    run(BLOCKS[1])["record"](
        path, target, draft, texts, num_drafts=3, draft_length=2, temperature=0.7
    )
    shapes = dumps.check(path)
    assert shapes["paths"] == (4, 3, 2)
    sampling = Sampling(0.7, None, None)
    trees = list(dumps.trees(path, 1, sampling))
    assert len(trees) == 2
    for tree, end in zip(trees, (8, 16), strict=True):
        for j in range(3):
            text = torch.cat([texts[1][0, :end], tree.paths[j]])[None]
            for model, probs in ((target, tree.target_probs), (draft, tree.draft_probs)):
                logits = model(text).logits[0, end - 1 :].double()
                exact = sampling.probs(logits)[: probs.shape[1]]
                torch.testing.assert_close(probs[j], exact, rtol=0, atol=1e-5)
        tokens = replay.expected_tokens(verifiers.get("kseq"), tree, [1, 3], [2])
        assert (tokens >= 1).all() and (tokens <= 3).all()
