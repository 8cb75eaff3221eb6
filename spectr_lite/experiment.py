"""What must stand beside a recorded number: the code, the machine and the versions that made it."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def environment(
    root: Path, sources: Sequence[str], packages: Sequence[str], device: str | torch.device = "cpu"
) -> dict[str, Any]:
    """The state of this machine and of the checkout at `root`, ready for env.json.

    `sources`: the files and folders, relative to `root`, whose changes since the commit make a run
    "dirty". `packages`: the distributions whose versions are recorded. Nothing names the host.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    device = torch.device(device)
    cores = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    found = {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", *sources)),
        "device": f"CPU, {_processor()}, {cores}",
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "device_memory": properties.total_memory,
            "capability": [properties.major, properties.minor],
            "cuda": torch.version.cuda,
        }
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
