"""What this machine offers, in a few printed lines: called by the first cell of every notebook."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys

import torch

import spectr_lite

OLDEST_PYTHON = (3, 11)
LOWER_BOUNDS = {"torch": (2, 5), "numpy": (2, 0), "cvxpy": (1, 6)}  # as in pyproject.toml


def device_and_dtype() -> tuple[torch.device, torch.dtype]:
    """The GPU when there is one, and the dtype to decode in there.

    float32 on a CPU; bfloat16 from compute capability 8.0 (Ampere) on; float16 before that: a T4
    emulates bfloat16, slowly, and says that it supports it.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu"), torch.float32
    native = torch.cuda.get_device_capability() >= (8, 0)
    return torch.device("cuda"), torch.bfloat16 if native else torch.float16


def report() -> None:
    """Print versions and device; the last line starts with "OK" or "FAIL" and says what to do."""
    print(f"spectr_lite {spectr_lite.__version__}, Python {platform.python_version()}")
    problems = []
    if sys.version_info[:2] < OLDEST_PYTHON:
        problems.append("use Python 3.11 or newer")

    found = []
    for name, bound in LOWER_BOUNDS.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        found.append(f"{name} {version}")
        if version == "missing" or _leading_numbers(version) < bound:
            wanted = ".".join(map(str, bound))
            problems.append(f"run: pip install '{name}>={wanted}', then restart the kernel")
    print(", ".join(found))

    device, dtype = device_and_dtype()
    kind = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        print(f"GPU: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB; decoding in {kind}")
    else:
        print(f"no GPU; decoding on the CPU in {kind}")

    if problems:
        print("FAIL: " + "; ".join(problems))
    else:
        print("OK: everything this notebook needs is here")


def _leading_numbers(version: str) -> tuple[int, int]:
    """(2, 13) from "2.13.0+cpu"."""
    major, minor, *_ = re.findall(r"\d+", version)
    return int(major), int(minor)
