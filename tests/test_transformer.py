"""Cache, slots and tree mask must be invisible: the causal forward is the definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from spectr_experiments.prediction import Kernels
from spectr_lite.models.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(
    vocab_size=50, width=32, layers=3, heads=4, kv_heads=2, ffn=48, context=64
)
EXACT = {"atol": 1e-10, "rtol": 0.0}


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(CONFIG).double().eval().requires_grad_(False)
    for parameter in model.parameters():  # far from the origin, so that a wrong mask shows
        parameter.mul_(4 if parameter.dim() == 2 else 1)
    return model


def tokens_of(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def causal(slots: torch.Tensor, seen: int) -> torch.Tensor:
    """Each token sees the slots up to its own: mask (B, N, seen)."""
    return torch.arange(seen) <= slots.unsqueeze(-1)


def test_causal_forward_does_not_see_the_future(model: Transformer) -> None:
    tokens = tokens_of(2, 12)
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % CONFIG.vocab_size
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :8], after[:, :8], **EXACT)
    assert (before[:, 8:] - after[:, 8:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("pieces", [(12,), (1,) * 12, (5, 1, 4, 2)])
def test_cached_forward_equals_the_causal_forward(
    model: Transformer, pieces: tuple[int, ...]
) -> None:
    tokens = tokens_of(2, 12)
    cache, logits, end = model.new_cache(2, 20), [], 0
    for size in pieces:
        slots = torch.arange(end, end + size).expand(2, -1)
        end += size
        logits.append(model(tokens[:, end - size : end], slots, cache, slots, causal(slots, end)))
    torch.testing.assert_close(torch.cat(logits, 1), model(tokens), **EXACT)


def test_slots_need_not_follow_positions(model: Transformer) -> None:
    """Where a token lies in the cache says nothing about where it stands in the text."""
    tokens = tokens_of(2, 10)
    positions = torch.arange(10).expand(2, -1)
    slots = torch.stack([torch.randperm(20)[:10] for _ in range(2)])
    mask = torch.zeros(2, 10, 20, dtype=torch.bool)
    for row in range(2):
        for n in range(10):
            mask[row, n, slots[row, : n + 1]] = True
    logits = model(tokens, positions, model.new_cache(2, 20), slots, mask)
    torch.testing.assert_close(logits, model(tokens), **EXACT)


def run_tree(
    model: Transformer, prefix: torch.Tensor, paths: torch.Tensor
) -> tuple[torch.Tensor, object]:
    """Feed prefix (N,), then all K paths (K, L) in one forward; logits (K, L, V) and the cache."""
    count, (branches, length) = len(prefix), paths.shape
    cache = model.new_cache(1, count + branches * length)
    slots = torch.arange(count).unsqueeze(0)
    model(prefix.unsqueeze(0), slots, cache, slots, causal(slots, count))
    slots = torch.arange(count, cache.slots).unsqueeze(0)
    positions = (count + torch.arange(length)).repeat(branches).unsqueeze(0)
    own_path = torch.block_diag(*[torch.ones(length, length).tril()] * branches).bool()
    mask = torch.cat((torch.ones(branches * length, count, dtype=torch.bool), own_path), 1)
    logits = model(paths.reshape(1, -1), positions, cache, slots, mask.unsqueeze(0))
    return logits.unflatten(1, (branches, length))[0], cache


def test_a_tree_of_paths_equals_separate_forwards(model: Transformer) -> None:
    prefix, paths = tokens_of(7), tokens_of(4, 5, seed=2)
    logits, _ = run_tree(model, prefix, paths)
    alone = model(torch.cat((prefix.expand(4, -1), paths), 1))[:, 7:]
    torch.testing.assert_close(logits, alone, **EXACT)


def test_move_then_continue_equals_a_clean_run(model: Transformer) -> None:
    """Accept three tokens of the last path, compact them behind the prefix, and go on."""
    prefix, paths, rest = tokens_of(7), tokens_of(4, 5, seed=2), tokens_of(6, seed=3)
    _, cache = run_tree(model, prefix, paths)
    cache.move(torch.tensor([[22, 23, 24]]), torch.tensor([[7, 8, 9]]))
    slots = torch.arange(10, 16).unsqueeze(0)  # overwrites rejected drafts
    logits = model(rest.unsqueeze(0), slots, cache, slots, causal(slots, 16))
    clean = model(torch.cat((prefix, paths[3, :3], rest)).unsqueeze(0))[:, 10:]
    torch.testing.assert_close(logits, clean, **EXACT)


def test_move_reads_before_it_writes_and_keeps_rows_apart(model: Transformer) -> None:
    cache = model.new_cache(2, 6)
    keys, values = cache.entries.chunk(2, 2)
    keys.copy_(torch.arange(6.0)[:, None].expand_as(keys))
    values.copy_(-keys)
    cache.move(torch.tensor([[1, 2, 3], [5, 4, 3]]), torch.tensor([[0, 1, 2], [3, 4, 5]]))
    expected = torch.tensor([[1.0, 2, 3, 3, 4, 5], [0.0, 1, 2, 5, 4, 3]]).double()
    assert torch.equal(keys[1, :, 0, :, 0], expected)
    assert torch.equal(values[2, :, 1, :, 3], -expected)


def test_slots_not_attended_leave_no_trace(model: Transformer) -> None:
    tokens = tokens_of(1, 8)
    slots = torch.arange(8).unsqueeze(0)
    clean, dirty = model.new_cache(1, 16), model.new_cache(1, 16)
    dirty.entries.fill_(1e3)
    mask = causal(slots, 16)
    logits = [model(tokens, slots, cache, slots, mask) for cache in (clean, dirty)]
    assert torch.equal(*logits)


def test_rows_of_a_ragged_batch_do_not_meet(model: Transformer) -> None:
    """Rows of 9, 4 and 1 tokens, padded on the right; padding writes to a spare last slot."""
    lengths = torch.tensor([9, 4, 1])
    tokens, more = tokens_of(3, 9), tokens_of(3, 2, seed=2)
    columns = torch.arange(9).expand(3, -1)
    slots = torch.where(columns < lengths[:, None], columns, 15)
    cache = model.new_cache(3, 16)
    model(tokens, columns, cache, slots, causal(columns, 15))
    slots = lengths[:, None] + torch.arange(2)
    logits = model(more, slots, cache, slots, causal(slots, 16))
    for row, length in enumerate(lengths.tolist()):
        text = torch.cat((tokens[row, :length], more[row])).unsqueeze(0)
        torch.testing.assert_close(logits[row], model(text)[0, length:], **EXACT)


def test_a_token_that_sees_nothing_gives_finite_logits(model: Transformer) -> None:
    slots = torch.arange(3).unsqueeze(0)
    mask = torch.zeros(1, 3, 4, dtype=torch.bool)
    assert model(tokens_of(1, 3), slots, model.new_cache(1, 4), slots, mask).isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 0.02), (torch.bfloat16, 0.15)]
)
def test_lower_precision_stays_close(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    model = Transformer(CONFIG).eval().requires_grad_(False)
    exact = Transformer(CONFIG).double()
    exact.load_state_dict(model.state_dict())
    tokens = tokens_of(2, 16)
    slots = torch.arange(16).expand(2, -1)
    low = model.to(dtype)
    cache = low.new_cache(2, 16)
    assert cache.entries.dtype == dtype
    reference = exact(tokens)
    for logits in (low(tokens), low(tokens, slots, cache, slots, causal(slots, 16))):
        assert logits.dtype == dtype
        assert (logits.double() - reference).abs().max() < tolerance * reference.abs().max()


def test_grouped_heads_equal_repeated_key_heads() -> None:
    """Two key heads for four query heads are four key heads of which two pairs are equal."""
    torch.manual_seed(0)
    grouped = Transformer(CONFIG).double()
    full = Transformer(
        TransformerConfig(
            vocab_size=50, width=32, layers=3, heads=4, kv_heads=4, ffn=48, context=64
        )
    ).double()
    weights = grouped.state_dict()
    for name, weight in weights.items():
        if "k_proj" in name or "v_proj" in name:
            heads = weight.unflatten(0, (CONFIG.kv_heads, CONFIG.head_dim))
            weights[name] = heads.repeat_interleave(2, 0).flatten(0, 1)
    full.load_state_dict(weights)
    tokens = tokens_of(2, 9)
    slots = torch.arange(9).expand(2, -1)
    expected = full(tokens)
    torch.testing.assert_close(grouped(tokens), expected, **EXACT)
    cached = grouped(tokens, slots, grouped.new_cache(2, 9), slots, causal(slots, 9))
    torch.testing.assert_close(cached, expected, **EXACT)


def test_rotary_attention_depends_on_distance_alone(model: Transformer) -> None:
    tokens = tokens_of(1, 6)
    slots = torch.arange(6).unsqueeze(0)
    mask = causal(slots, 6)
    here = model(tokens, slots, model.new_cache(1, 6), slots, mask)
    there = model(tokens, slots + 40, model.new_cache(1, 6), slots, mask)
    torch.testing.assert_close(here, there, atol=1e-6, rtol=0)  # angles are tabled in float32


def test_errors_say_what_to_do(model: Transformer) -> None:
    with pytest.raises(ValueError, match="tokens has 65 columns but the model's context is 64"):
        model(tokens_of(1, 65))
    with pytest.raises(ValueError, match="needs positions, slots and mask"):
        model(tokens_of(1, 2), cache=model.new_cache(1, 4))
    with pytest.raises(ValueError, match="heads must be a multiple of kv_heads"):
        TransformerConfig(50, 32, 1, 4, 3, 48, 64)
    with pytest.raises(ValueError, match="width must be an even multiple of heads"):
        TransformerConfig(50, 30, 1, 4, 2, 48, 64)


# --- kernels and names ---------------------------------------------------------------------------


def kernels_of_a_layer(rows: int, count: int, device: str = "cpu") -> int:
    """Of the cached forward: that of two layers, less that of one."""
    found = []
    for layers in (1, 2):
        with torch.device("meta"):
            model = Transformer(replace(CONFIG, layers=layers)).eval().requires_grad_(False)
        zeros = {n: torch.zeros(t.shape, device=device) for n, t in model.state_dict().items()}
        model.load_state_dict(zeros, assign=True)
        model.cos, model.sin = (torch.zeros(model.cos.shape, device=device) for _ in range(2))
        slots = torch.zeros(rows, count, dtype=torch.int64, device=device)
        mask = torch.ones(rows, count, 8, dtype=torch.bool, device=device)
        with Kernels() as kernels:
            model(slots, slots, model.new_cache(rows, 20), slots, mask)
        found.append(len(kernels.launched))
    return found[1] - found[0]


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (1, 6), (3, 1), (3, 6)])
def test_a_layer_is_at_most_16_kernels(
    rows: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The norm is one kernel on a GPU; on a CPU torch takes it apart.
    monkeypatch.setattr(F, "rms_norm", lambda x, shape, weight, eps: x * weight)
    assert 12 < kernels_of_a_layer(rows, count) <= 16


@pytest.mark.gpu
@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")
@pytest.mark.parametrize(("rows", "count"), [(1, 1), (1, 6), (3, 6)])
def test_a_layer_is_at_most_16_kernels_on_cuda(
    rows: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU torch would choose no kernel of attention; this is the one for a mask."""

    def attention(query, key, value, attn_mask):  # type: ignore[no-untyped-def]
        mask = attn_mask.expand(-1, key.shape[1], -1, -1)
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        return efficient(query, key, value, mask, False)[0]

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    with FakeTensorMode():
        assert 12 < kernels_of_a_layer(rows, count, "cuda") <= 16


def test_saved_matrices_carry_the_names_of_hugging_face(model: Transformer) -> None:
    weights = model.state_dict()
    layer = {name.removeprefix("layers.1."): tuple(w.shape) for name, w in weights.items()
             if name.startswith("layers.1.")}  # fmt: skip
    assert layer == {
        "input_layernorm.weight": (32,),
        "self_attn.q_proj.weight": (32, 32),
        "self_attn.k_proj.weight": (16, 32),
        "self_attn.v_proj.weight": (16, 32),
        "self_attn.o_proj.weight": (32, 32),
        "post_attention_layernorm.weight": (32,),
        "mlp.gate_proj.weight": (48, 32),
        "mlp.up_proj.weight": (48, 32),
        "mlp.down_proj.weight": (32, 48),
    }
    again = Transformer(CONFIG).double()
    again.load_state_dict(weights)
    assert torch.equal(again(tokens_of(1, 9)), model(tokens_of(1, 9)))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q_proj": 16, "k_proj": 32}, r"q_proj.weight: found \(16, 32\), needed \(32, 32\)"),
        ({"v_proj": 48}, r"v_proj.weight: found \(48, 32\), needed \(16, 32\)"),
        ({"k_proj": None}, r"k_proj.weight: found nothing, needed \(16, 32\)"),
    ],
    ids=["rows that sum up", "more rows", "missing"],
)
def test_matrices_that_do_not_fit(
    changes: dict[str, int | None], message: str, strict: bool, assign: bool
) -> None:
    """The first has as many rows in all as the model."""
    weights = Transformer(CONFIG).state_dict()
    for name, rows in changes.items():
        weights.pop(key := f"layers.1.self_attn.{name}.weight")
        if rows is not None:
            weights[key] = torch.zeros(rows, 32)
    with pytest.raises(RuntimeError, match=message):
        Transformer(CONFIG).load_state_dict(weights, strict=strict, assign=assign)
