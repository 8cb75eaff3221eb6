"""Run every notebook where a reader would: with the package's wheel alone, in an empty folder.

    python scripts/site/run_notebooks.py [--only colab|newest] [NOTEBOOK...]

The book's build runs the notebooks in the pinned environment. This script makes two others, neither
of which sees the checkout:

colab    an environment that has torch already, IPython and ipykernel as old as Colab's, and the oldest
         versions that pyproject.toml allows. A notebook that fails here fails the script.
newest   the newest versions that the bounds allow. Failures and warnings are reported, no more.

torch is the pinned environment's own, linked and not installed again. The last cell of every run says
how much memory the kernel took at most; more than the smallest free Colab machine has is a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import nbformat
from check_notebooks import ROOT
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

WORK = ROOT / "_build" / "environments"
WORKERS = 2
MOST_MEMORY = 12.0  # GiB
SECONDS = 600  # for one notebook
KERNEL = {
    "colab": ["ipykernel==6.17.1", "ipython==7.34.0", "ipywidgets==7.7.1"],  # Colab's own
    "newest": ["ipykernel", "ipywidgets"],
}
SHOWN_VERSIONS = """
import cvxpy, IPython, numpy, scipy, torch
print(*(f"{m.__name__} {m.__version__}" for m in (numpy, scipy, cvxpy, torch, IPython)), sep=", ")
"""
LAST_CELL = """
import json, resource, spectr_lite
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, spectr_lite.__file__]))
"""


def build_wheel() -> Path:
    """The package's wheel, built from a copy, so that nothing stale of an earlier build gets in."""
    out = WORK / "wheel"
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder)
        unwanted = shutil.ignore_patterns("__pycache__")
        for name in ("spectr_lite", "spectr_experiments"):
            shutil.copytree(ROOT / name, Path(folder) / name, ignore=unwanted)
        pip("wheel", "--no-deps", "--wheel-dir", str(out), folder)
    return next(out.glob("*.whl"))


def make_environment(name: str, wheel: Path) -> Path:
    """A fresh virtual environment with torch, a kernel and the wheel; returns its python."""
    folder = WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python3*/site-packages"))
    linked = folder / "has-torch"
    linked.mkdir()
    for distribution in with_requirements("torch").values():
        for entry in {Path(file).parts[0] for file in distribution.files or ()} - {"..", "/"}:
            source = Path(distribution.locate_file(entry))
            if entry != "__pycache__" and source.exists() and not (linked / entry).exists():
                (linked / entry).symlink_to(source)
    (site / "torch.pth").write_text(f"{linked}\n")

    bounds = folder / "bounds.txt"
    bounds.write_text("\n".join(oldest_versions()) if name == "colab" else "")
    python = folder / "bin" / "python"
    pip("install", "--constraint", str(bounds), *KERNEL[name], str(wheel), python=python)

    kernel = folder / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": name, "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    return python


def with_requirements(name: str) -> dict[str, metadata.Distribution]:
    """A distribution of the pinned environment and all that it needs, by normalised name."""
    found: dict[str, metadata.Distribution] = {}
    wanted = [name]
    while wanted:
        key = canonicalize_name(wanted.pop())
        if key in found:
            continue
        with suppress(metadata.PackageNotFoundError):  # asked for on another platform
            found[key] = metadata.distribution(key)
            needs = map(Requirement, found[key].requires or ())
            wanted += [need.name for need in needs if "extra" not in str(need.marker)]
    return found


def oldest_versions() -> list[str]:
    """pyproject.toml's "numpy>=2.0" as "numpy==2.0.*"; torch stays what it is, as on Colab."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pairs = (requirement.split(">=") for requirement in project["dependencies"])
    return [f"{name}=={bound}.*" for name, bound in pairs if name != "torch"]


def pip(command: str, *arguments: str, python: Path | None = None) -> None:
    where = ["--python", str(python)] if python else []
    line = [sys.executable, "-m", "pip", *where, command, "--quiet", *arguments]
    run = subprocess.run(line, capture_output=True, text=True, env=clean_environment())
    if run.returncode:
        sys.exit(f"pip {command} failed:\n{run.stderr}")


def clean_environment() -> dict[str, str]:
    """Without what would let a kernel find the checkout or the reader's own settings."""
    unwanted = {"PYTHONPATH", "VIRTUAL_ENV", "JUPYTER_PATH"}
    kept = {key: value for key, value in os.environ.items() if key not in unwanted}
    return kept | {"IPYTHONDIR": str(WORK / "ipython"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run_notebook(name: str, path: Path) -> tuple[str, list[str], float, float]:
    """(problem or "", what went to stderr, seconds, GiB) of one notebook in one environment."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(LAST_CELL))
    kernels = KernelSpecManager(kernel_dirs=[str(WORK / name / "kernels")])
    kernels.ensure_native_kernel = False
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, km=manager, timeout=SECONDS, resources={"metadata": {"path": folder}}
        )
        try:
            client.execute(env=clean_environment())
        except CellExecutionError as error:
            return str(error), [], time.monotonic() - started, float("nan")
    seconds = time.monotonic() - started

    peak, package = json.loads(printed(notebook.cells[-1]))
    set_up = printed(notebook.cells[1]).strip().splitlines()
    problem = ""
    if not set_up or not set_up[-1].startswith("OK"):
        problem = f"the set-up cell's last line is {set_up[-1:]}, not OK"
    elif not package.startswith(str(WORK)):
        problem = f"spectr_lite came from {package}, not from the wheel"
    elif peak > MOST_MEMORY:
        problem = f"the kernel took {peak:.1f} GiB, more than {MOST_MEMORY:.0f}"
    quiet = [
        cell for cell in notebook.cells if "remove-stderr" not in cell.metadata.get("tags", [])
    ]
    words = "".join(printed(cell, "stderr") for cell in quiet if cell.cell_type == "code")
    return problem, words.strip().splitlines(), seconds, peak


def printed(cell: nbformat.NotebookNode, stream: str = "stdout") -> str:
    return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == stream)


def run_all(name: str, notebooks: list[Path]) -> int:
    """Run the notebooks in one environment, two at a time; print a line for each."""
    failures = 0
    with ProcessPoolExecutor(WORKERS) as pool:
        results = pool.map(run_notebook, [name] * len(notebooks), notebooks)
        for path, (problem, words, seconds, peak) in zip(notebooks, results, strict=True):
            state = "FAIL" if problem else "warn" if words else "ok"
            print(f"  {state:4}  {path.stem:45} {seconds:5.0f} s  {peak:5.2f} GiB", flush=True)
            for line in (problem.splitlines() or words)[-30:]:
                print(f"        {line}")
            failures += bool(problem)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=KERNEL, help="one of the two environments")
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of them, unless given")
    arguments = parser.parse_args()
    notebooks = [path.resolve() for path in arguments.notebooks]
    notebooks = notebooks or sorted((ROOT / "notebooks").glob("*.ipynb"))
    profile = WORK / "ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    # kernels say on every start that their local sockets are plain
    (profile / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 40\n")

    wheel = build_wheel()
    failures = {}
    for name in [arguments.only] if arguments.only else list(KERNEL):
        started = time.monotonic()
        python = make_environment(name, wheel)
        command, environment = [python, "-c", SHOWN_VERSIONS], clean_environment()
        versions = subprocess.check_output(command, text=True, env=environment, cwd=WORK)
        ready = time.monotonic() - started
        print(f"{name}: {versions.strip()} (made in {ready:.0f} s)", flush=True)
        failures[name] = run_all(name, notebooks)
        passed = len(notebooks) - failures[name]
        seconds = time.monotonic() - started
        print(f"{name}: {passed} of {len(notebooks)} notebooks ran, {seconds:.0f} s", flush=True)
    if failures.get("newest"):
        print("newest: reported, and no failure of this script; a bound may need lowering")
    return 1 if failures.get("colab") else 0


if __name__ == "__main__":
    sys.exit(main())
