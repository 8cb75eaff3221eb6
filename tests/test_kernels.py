"""The Triton kernels without a GPU: how many launches, what they compile to, and what they choose.

A GPU is not needed to compile for one. No time is measured here, and nothing is said of one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from interpreted_kernels import same_probabilities, same_tokens
from launches import launches
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from spectr_lite import kernels, verifiers
from spectr_lite.decoding import loop
from spectr_lite.decoding.sampling import Sampling

TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16",
         torch.int64: "*i64", torch.int32: "*i32", torch.bool: "*i1"}  # fmt: skip
T4_SHARED = 64 * 1024
RULES = {"kseq": 12, "optimal": 16, "optimal-block": 20}


def recorded(name: str, monkeypatch) -> tuple[list[str], list[tuple]]:
    """The operations of torch, and the calls of kernels, in the verification of a turn."""
    calls: list[tuple] = []

    def record(self, *args, grid, warmup, **settings):
        calls.append((self, args, settings))

    monkeypatch.setattr(JITFunction, "run", record)
    names = launches(kernels.verify, verifiers.get(name), Sampling(0.8))
    monkeypatch.undo()
    return names, calls


@pytest.mark.parametrize("name", RULES)
def test_a_turn_is_verified_in_so_many_launches(name, monkeypatch):
    names, calls = recorded(name, monkeypatch)
    assert len(calls) > 5 and 1 < len(names) + len(calls) <= RULES[name], names


def compiled(kernel, args, settings, capability: int) -> tuple[str, object]:
    """What the kernel becomes for a GPU of this capability, as it was called."""
    given = dict(zip(kernel.arg_names, args, strict=False)) | settings
    options = {name: value for name, value in settings.items() if name not in kernel.arg_names}
    fixed = {part.name for part in kernel.params if part.is_constexpr}
    # As when a kernel is called: a 1 is a constant, and multiples of 16 and aligned tensors are known.
    ones = {name for name in kernel.arg_names if type(given[name]) is int and given[name] == 1}
    constants = {name: given[name] for name in kernel.arg_names if name in fixed | ones}
    even = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if isinstance(given[name], torch.Tensor)
        or (type(given[name]) is int and name not in constants and given[name] % 16 == 0)
    }

    def type_of(value) -> str:
        if isinstance(value, torch.Tensor):
            return TYPES[value.dtype]
        return "fp32" if isinstance(value, float) else "i32"

    signature = {
        name: "constexpr" if name in constants else type_of(given[name])
        for name in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=even)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return f"{kernel.__name__} {constants}", made


def resources(cubin: Path) -> dict[str, int]:
    """Registers a thread, and bytes of stack, shared and local memory."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    listed = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True)
    return {name: int(count) for name, count in re.findall(r"(\w+):(\d+)", listed.stdout)}


@pytest.mark.parametrize("capability", [75, 80, 90])
def test_every_kernel_compiles_and_spills_no_register(capability, monkeypatch, tmp_path):
    seen: dict[str, dict[str, int]] = {}
    for name in RULES:
        for call in recorded(name, monkeypatch)[1]:
            key, made = compiled(*call, capability)
            if key not in seen:
                (tmp_path / "kernel.cubin").write_bytes(made.asm["cubin"])
                seen[key] = resources(tmp_path / "kernel.cubin")
                assert made.metadata.shared <= T4_SHARED, key
    assert len(seen) >= 15
    for key, used in seen.items():
        assert used["STACK"] == used["LOCAL"] == 0 < used["REG"] < 255, (key, used)


def test_the_kernels_choose_the_tokens_of_the_steps_in_torch():
    script = Path(__file__).parent / "interpreted_kernels.py"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("name", ["coupling", *RULES])
def test_the_kernels_choose_the_same_tokens_on_a_gpu(name):
    same_probabilities("cuda")
    for seed in range(10):
        same_tokens(name, 1 if name == "coupling" else 4, 3, 5_000, seed, "cuda")


def test_kernels_are_for_gpus_and_for_the_rules_they_were_made_for(monkeypatch):
    monkeypatch.setattr(kernels, "ready", lambda: True)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")

    class Derived(verifiers.get("kseq").__class__):
        pass

    for name in verifiers.names():
        rule = verifiers.get(name)
        assert kernels.take(rule, gpu) == (name in {*RULES, "coupling"})
        assert not kernels.take(rule, cpu)
    assert not kernels.take(Derived(), gpu)
    assert not kernels.take(verifiers.get("kseq").__class__(rho=2.0), gpu)
    assert not kernels.take(verifiers.get("optimal").__class__(None), gpu)
    assert loop.selection(verifiers.get("kseq"), 8, Sampling(), gpu) is kernels.verify
    assert loop.selection(verifiers.get("recursive"), 8, Sampling(), gpu) is loop.verify_paths
    assert loop.selection(verifiers.get("kseq"), 8, Sampling(), cpu) is loop.walk_down
    monkeypatch.setattr(kernels, "ready", lambda: False)
    assert loop.selection(verifiers.get("kseq"), 8, Sampling(), gpu) is loop.verify_paths


def test_without_a_c_compiler_no_kernel_can_be_started(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    for found in (None, "/usr/bin/gcc"):
        kernels.ready.cache_clear()
        monkeypatch.setattr(kernels.shutil, "which", lambda name, found=found: found)
        assert kernels.ready() == (found is not None)
    kernels.ready.cache_clear()
