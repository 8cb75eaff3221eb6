"""The repository's habits: notebooks without outputs, one address, one version, no large file."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import spectr_lite

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "site"))

import check_notebooks  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST_FILE = 20_000_000  # the bundled pair's weights are the largest


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.fail("git ls-files failed: run the tests in a clone of the repository")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_keeps_the_rules(path: Path) -> None:
    assert check_notebooks.problems_of(path) == []


def test_a_notebook_that_breaks_every_rule_is_found_out(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(check_notebooks, "ROOT", tmp_path)
    (tmp_path / "_config.yml").write_text((ROOT / "_config.yml").read_text(encoding="utf-8"))
    cell = {"cell_type": "code", "execution_count": 1, "metadata": {}, "outputs": ["4"]}
    cells = [cell | {"source": ["2 + 2"]}, cell | {"source": ["plt.show()"]}]
    metadata = {"kernelspec": {"name": "mine"}, "accelerator": "TPU"}
    path = tmp_path / "Untitled.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": metadata}))
    found = "\n".join(check_notebooks.problems_of(path))
    for word in ("name", "outputs", "kernel", "Colab metadata", "badge", "set-up", "titles", "alt"):
        assert word in found


def test_the_contents_name_files_of_the_tree_and_every_chapter() -> None:
    contents = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"(?:file|root): (\S+)", contents))
    there = {name.rpartition(".")[0] for name in tracked() if name.endswith((".md", ".ipynb"))}
    assert listed <= there
    chapters = {name.removesuffix(".ipynb") for name in tracked() if name.endswith(".ipynb")}
    assert chapters <= listed
    assert "\noptions:" not in contents  # the root's options stop a later move to Jupyter Book 2


def test_every_address_of_the_repository_is_the_configured_one() -> None:
    url, _ = check_notebooks.repository()
    name = url.rpartition("/")[2]
    pattern = re.compile(rf"github(?:\.com)?/([A-Za-z0-9-]+/{re.escape(name)})(?![A-Za-z0-9_-])")
    texts = {
        path: (ROOT / path).read_text(encoding="utf-8")
        for path in tracked()
        if path.endswith((".cff", ".ipynb", ".md", ".toml", ".yml"))
    }
    slug = url.removeprefix("https://github.com/")
    others = {(path, found) for path, text in texts.items() for found in pattern.findall(text)} - {
        (path, slug) for path in texts
    }
    assert not others, "run `make set-repository URL=...`"
    for path in ("CITATION.cff", "README.md", "book/how-to-cite.md"):
        assert url in texts[path], path


def test_the_readme_opens_every_notebook_in_colab() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [
        path.name for path in NOTEBOOKS if check_notebooks.colab_address(path) not in text
    ] == []


def test_set_repository_rewrites_everything_that_derives_from_the_address(tmp_path: Path) -> None:
    slug = check_notebooks.repository()[0].removeprefix("https://github.com/")
    for name in ("_config.yml", "CITATION.cff", "README.md", "book/how-to-cite.md", "scripts"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "badge.ipynb").write_text(
        f"colab.research.google.com/github/{slug}/blob/main/a.ipynb git+https://github.com/{slug}@main"
    )
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    script = [sys.executable, tmp_path / "scripts" / "site" / "set_repository.py"]
    subprocess.run([*script, "https://github.com/Some-One/a.book/"], check=True)
    for path in tmp_path.rglob("*.*"):
        if path.suffix in {".yml", ".cff", ".md", ".ipynb"}:
            text = path.read_text(encoding="utf-8")
            assert f"/{slug}" not in text, path
            assert "/Some-One/a.book" in text, path
    assert "@main" in (tmp_path / "badge.ipynb").read_text()
    settings = yaml.safe_load((tmp_path / "_config.yml").read_text(encoding="utf-8"))
    assert_every_address_in_the_settings_derives_from_the_first(settings)


def assert_every_address_in_the_settings_derives_from_the_first(settings: dict) -> None:
    url, branch = settings["repository"]["url"], settings["repository"]["branch"]
    owner, name = url.removeprefix("https://github.com/").split("/")
    config = settings["sphinx"]["config"]
    assert config["myst_url_schemes"]["repo"]["url"] == f"{url}/blob/{branch}/{{{{path}}}}"
    assert config["ogp_site_url"] == f"https://{owner.lower()}.github.io/{name}/"


def test_the_settings_name_one_repository() -> None:
    settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert_every_address_in_the_settings_derives_from_the_first(settings)


def test_set_repository_refuses_what_is_not_an_address() -> None:
    script = ROOT / "scripts" / "site" / "set_repository.py"
    for wrong in ("", "example.org/a", "https://github.com/only-owner"):
        run = subprocess.run([sys.executable, script, wrong], capture_output=True, text=True)
        assert run.returncode == 2
        assert "OWNER/NAME" in run.stderr


def test_the_version_stands_in_one_place() -> None:
    assert version("spectr-lite") == spectr_lite.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project
    assert f"## [{spectr_lite.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_package_asks_for_lower_bounds_only_and_the_book_for_the_same_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = set()
    for requirement in project["dependencies"]:
        name, operator = re.match(r"([A-Za-z0-9_-]+)(.*)", requirement).groups()
        assert operator == "" or re.fullmatch(r">=[\d.]+", operator), requirement
        names.add(name)
    assert names <= {name.lower() for name in _requirements("requirements.txt")}


def test_constraints_are_exact_and_hold_every_requirement() -> None:
    pins = _requirements("constraints.txt")
    assert all(re.fullmatch(r"==[\w.]+", pin) for pin in pins.values()), pins
    missing = {_normal(name) for name in _requirements("requirements.txt")} - {*map(_normal, pins)}
    assert not missing


def test_no_large_file_and_no_private_path_is_tracked() -> None:
    private = re.compile(r"(?<![\w.])/(?:root|home)/")
    for name in tracked():
        path = ROOT / name
        assert path.stat().st_size < LARGEST_FILE, name
        if path.suffix in {".py", ".md", ".ipynb", ".yml", ".yaml", ".toml", ".txt", ".cff"}:
            assert not private.search(path.read_text(encoding="utf-8")), name


def test_the_site_asks_no_other_host_by_configuration() -> None:
    settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    script = settings["sphinx"]["config"]["mathjax_path"]
    assert (ROOT / "book" / "_vendor" / script.removeprefix("../")).is_file()


def _requirements(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    entries = [line.split("#")[0].strip() for line in lines]
    return dict(re.match(r"([\w.-]+?)([<>=!~].*|$)", entry).groups() for entry in entries if entry)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
