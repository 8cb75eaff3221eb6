"""The report that opens every notebook, and the look of every figure."""

from __future__ import annotations

import importlib.metadata
import re

import matplotlib.pyplot as plt
import pytest
import torch

from spectr_lite import verifiers
from spectr_lite.book import environment, plotting


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    environment.report()
    return capsys.readouterr().out.splitlines()[-1]


def test_report_ends_in_ok_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert last_line(capsys).startswith("OK: ")


@pytest.mark.parametrize("found", ["2.3.1+cu121", "1.13.0", None])
def test_report_says_what_to_do_about_an_old_or_missing_torch(
    found: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name != "torch":
            return real(name)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    line = last_line(capsys)
    assert line.startswith("FAIL: ")
    needed = next(one for one in importlib.metadata.requires("spectr-lite") or () if "torch" in one)
    assert f"pip install '{needed}'" in line


def test_report_takes_colabs_versions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    colab = {"torch": "2.11.0+cu128", "numpy": "2.1.3", "cvxpy": "1.6.7"}
    monkeypatch.setattr(importlib.metadata, "version", colab.__getitem__)
    assert last_line(capsys).startswith("OK: ")


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_dtype_follows_what_the_gpu_computes_natively(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert environment.device_and_dtype() == (torch.device("cuda"), dtype)


def test_without_a_gpu_everything_is_float32_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment.device_and_dtype() == (torch.device("cpu"), torch.float32)


def test_every_verifier_has_a_colour_and_a_name_of_its_own() -> None:
    assert set(verifiers.names()) <= set(plotting.COLORS)
    assert set(plotting.COLORS) == set(plotting.LABELS)
    for values in (plotting.COLORS.values(), plotting.LABELS.values()):
        assert len(set(values)) == len(list(values))


def test_every_colour_stands_out_from_the_white_ground() -> None:
    """At least 2 to 1, so that a line of 2 points is seen; measured as WCAG measures it."""
    for name, colour in plotting.COLORS.items():
        assert re.fullmatch(r"#[0-9A-F]{6}", colour), name
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        ]
        luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
        assert 1.05 / (luminance + 0.05) >= 2, name


def test_style_applies_to_a_new_figure() -> None:
    with plt.style.context("default"):
        plotting.use_style()
        figure, axes = plt.subplots()
        assert figure.get_facecolor() == (1, 1, 1, 1)
        assert not axes.spines["top"].get_visible()
        plt.close(figure)
