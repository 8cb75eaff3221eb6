"""The transport lab in headless Chromium: its numbers against the package, its controls, its sampling.

Skipped where chromium, node or npm is missing.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy import stats
from wrong_variants import RhoOne

from spectr_lite import distributions, transport, verifiers
from spectr_lite.book import lab as twin
from spectr_lite.book.plotting import COLORS
from spectr_lite.transport import nested
from spectr_lite.verifiers import kseq, optimal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "site"))

import lab_assets  # noqa: E402
from check_site import NODE_MODULES  # noqa: E402

ENUMERATED = 256  # tuples up to which distributions are compared by enumeration
DRAWS = 20_000
FALSE_ALARM = 1e-5  # of each chi-square test; the seeds are fixed, so a pass stays a pass
LOSSLESS = ("kseq", "recursive", "optimal")
RULES = {
    "kseq": verifiers.get("kseq"),
    "recursive": verifiers.get("recursive"),
    "optimal": optimal.Optimal(classes=None),
    "undiscounted": RhoOne(),
}


def draftings_to_try() -> list[dict[str, Any]]:
    """200 random pairs and the degenerate ones: zeros, one-hot, equal, disjoint, tied ratios, V = 1."""
    rng = np.random.default_rng(8)
    pairs = [([1.0], [1.0], 1), ([1.0], [1.0], 3)]
    eye = np.eye(3)
    pairs += [(eye[i], eye[j], k) for i in range(2) for j in range(2) for k in (1, 2, 16)]
    pairs += [(eye[0], np.full(3, 1 / 3), 5), (np.full(3, 1 / 3), eye[1], 5)]
    pairs += [(np.full(4, 0.25), np.full(4, 0.25), 9), ([0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], 4)]
    pairs += [(*distributions.uniform_on_subset(V, m), 4) for V, m in ((4, 2), (8, 3), (5, 5))]
    pairs += [(*distributions.kseq_worst_case(), k) for k in range(1, 17)]
    for number in range(200):
        V, k = int(rng.integers(2, 9)), int(rng.integers(1, 17))
        draft, target = (
            rng.integers(0, 7, V) if number % 3 else rng.dirichlet(np.ones(V)) for _ in "pq"
        )
        draft, target = draft + (draft.sum() == 0), target + (target.sum() == 0)
        if number % 5 == 0:  # ratios that are tied
            target = draft * rng.choice([1.0, 3.0], V)
        pairs.append((draft / draft.sum(), target / target.sum(), k))
    return [
        {"draft": list(map(float, p)), "target": list(map(float, q)), "k": k} for p, q, k in pairs
    ]


def pairs_to_sample() -> list[dict[str, Any]]:
    named = {"three": distributions.three_tokens(), "five": distributions.five_tokens()}
    tempered = distributions.tempered(np.arange(1, 7) ** -1.0, 1.0, 0.5)
    return [
        {"rule": rule, "draft": list(p), "target": list(q), "k": k, "seed": 11 + k}
        for rule in RULES
        for p, q in (*named.values(), tempered)
        for k in (1, 2, 4)
    ]


@pytest.fixture(scope="module")
def lab() -> dict[str, Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not (chromium and shutil.which("node") and shutil.which("npm")):
        pytest.skip("chromium, node or npm is missing")
    folder = ROOT / "_build" / "browser"
    if not (folder / "node_modules" / "axe-core").exists():
        folder.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--no-save", "--no-audit", "--no-fund", "--silent"]
        subprocess.run([*install, "--prefix", str(folder), *NODE_MODULES], check=True)
    asked = {
        "pairs": draftings_to_try(),
        "sampled": pairs_to_sample(),
        "draws": DRAWS,
        "enumerated": ENUMERATED,
    }
    script = str(Path(__file__).with_name("lab.mjs"))
    run = subprocess.run(
        ["node", script, chromium, str(folder), str(ROOT)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def close(found: Any, expected: Any) -> bool:
    return np.allclose(found, expected, rtol=0, atol=1e-9)


def test_numbers(lab):
    for given, found in zip(draftings_to_try(), lab["numbers"], strict=True):
        draft, target, k = given["draft"], given["target"], given["k"]
        p, q = torch.tensor(draft, dtype=torch.float64), torch.tensor(target, dtype=torch.float64)
        rho = kseq.optimal_rho(p, q, k)
        beta = kseq.acceptance_of_one(p, q, rho).item()
        expected = {
            "optimum": transport.optimal_acceptance(draft, target, k),
            "coupling": verifiers.get("coupling").acceptance(draft, target, 1),
            "guarantee": kseq.guarantee(p, q, k).item(),
            "recursive": RULES["recursive"].acceptance(draft, target, k),
        }
        for name, value in expected.items():
            assert close(found[name], value), (name, given)
        # Where no draft is ever wanted (beta = 0) any rho will do; and where nearly every tuple has
        # a draft that passes, float64 cannot tell rho* from its neighbours: both are roots then.
        there = found["kseq"]["rho"]
        passes = kseq.acceptance_of_one(p, q, torch.tensor(there, dtype=p.dtype)).item()
        root = abs(1 - (1 - passes) ** k - there * passes) < 1e-14
        assert beta == 0 or root or close(there, rho.item()), given
        assert close(found["kseq"]["beta"], passes), given
        assert close(found["kseq"]["acceptance"], RULES["kseq"].acceptance(draft, target, k)), given
        assert close(found["kseq"]["residual"], kseq.residual(p, q, rho, k)), given
        # Tokens the target never says may be ordered in any way; they are never kept.
        winner = nested.plan(p, q, k).winner(p)
        assert close(np.minimum(found["winner"], target), torch.minimum(winner, q)), given
        assert close(np.minimum(found["winner"], target).sum(), found["optimum"]), given
        worst = transport.worst_set(draft, target, k)
        excess = [
            p[list(A)].sum().item() ** k - q[list(A)].sum().item() for A in (worst, found["set"])
        ]
        assert close(*excess), given


def test_distributions_of_selection(lab):
    compared = 0
    for given, found in zip(draftings_to_try(), lab["numbers"], strict=True):
        if "laws" not in found:
            continue
        draft, target, k = given["draft"], given["target"], given["k"]
        p, q = torch.tensor(draft, dtype=torch.float64), torch.tensor(target, dtype=torch.float64)
        tuples = torch.cartesian_prod(*[torch.arange(len(draft))] * k).reshape(-1, k)
        possible = p[tuples].prod(-1) > 0
        for name, rule in RULES.items():
            if name == "undiscounted" and not (q > p + 1e-12).any():
                continue  # equal distributions: nothing is ever left for its residual
            assert close(found["laws"][name], rule.output_distribution(draft, target, k)), (
                name,
                given,
            )
            probs = rule._given_drafts(p, q, tuples)[possible]
            here = np.array(found["conditional"][name])[possible.numpy()]
            assert close(here, probs), (name, given)
            assert name == "undiscounted" or close(found["laws"][name], target), (name, given)
        assert close(found["laws"]["undiscounted"], found["undiscounted"]), given
        compared += 1
    assert compared > 60


def test_presets(lab):
    for key, made in lab["presets"].items():
        for draft, target in made:
            distributions.check_pair(draft, target), key
    assert close(lab["presets"]["three"][0], distributions.three_tokens())
    assert close(lab["presets"]["five"][0], distributions.five_tokens())
    assert close(lab["presets"]["bernoulli"][0], distributions.kseq_worst_case())
    assert close(lab["presets"]["subset"][2], distributions.uniform_on_subset(4, 2))
    assert close(
        lab["presets"]["temperature"][4], distributions.tempered(np.arange(1, 7) ** -1.0, 1.0, 0.5)
    )


def test_samples_follow_the_target_unless_the_rule_is_wrong(lab):
    for given, found in zip(pairs_to_sample(), lab["samples"], strict=True):
        rule, draft, target, k = (given[key] for key in ("rule", "draft", "target", "k"))
        probs = RULES[rule].output_distribution(draft, target, k)
        assert stats.chisquare(found["counts"], DRAWS * probs).pvalue > FALSE_ALARM, given
        if rule in LOSSLESS:
            exact = RULES[rule].acceptance(draft, target, k)
            test = stats.binomtest(found["kept"], DRAWS, min(1.0, exact))
            assert test.pvalue > FALSE_ALARM, given
        elif k > 1:
            assert stats.chisquare(found["counts"], DRAWS * np.array(target)).pvalue < 1e-12, given


def test_keyboard_moves_a_bar_and_the_others_share_the_rest(lab):
    assert close(lab["start"]["draft"], [0.5, 0.3333, 0.1667])
    assert lab["start"]["cells"]["optimal"] == f"{127 / 180:.4f}"
    assert np.allclose(lab["keyboard"]["draft"], [0.61, 0.26, 0.13], atol=1e-4)
    assert lab["keyboard"]["focused"] == "Draft p of token a"
    assert lab["keyboard"]["hash"].startswith("#p=0.61,0.26,0.13&q=0.1,0.3,0.6&k=2")
    assert lab["end"] == [1, 0, 0]
    assert lab["home"] == [0, 0.5, 0.5]


def test_pointer_drags_a_bar(lab):
    assert lab["reset"]["hash"] == "#preset=three&k=2&rule=kseq"
    assert close(lab["reset"]["draft"], lab["start"]["draft"])
    assert lab["dragHigh"] == [0, 1, 0]
    # Back from 1, the others have the proportions they had when the drag began.
    a, b, c = lab["drag"]["target"]
    assert b == pytest.approx(0.5, abs=0.02) and c == pytest.approx(6 * a, abs=1e-3)
    best = transport.optimal_acceptance(distributions.three_tokens()[0], [a, b, 1 - a - b], 2)
    assert abs(float(lab["drag"]["cells"]["optimal"]) - best) < 2e-4


def test_finger_sets_a_bar(lab):
    assert lab["tapped"][0] > 0.2 and abs(sum(lab["tapped"]) - 1) < 1e-3
    # A finger on a handle drags the bar, and the page does not scroll under it.
    touched = lab["touched"]
    assert touched["target"][1] > 0.25 and abs(sum(touched["target"]) - 1) < 1e-3
    assert touched["hash"].startswith("#p=") and touched["scrolled"] == 0


def test_address_holds_the_state(lab):
    assert lab["link"]["hash"] == "#preset=temperature&k=5&rule=optimal&seed=1&n=1001"
    assert lab["restored"] == lab["link"]
    assert lab["odd"] == {"draft": [0.25, 0.5, 0.25], "k": "16"}
    assert close(lab["broken"], lab["start"]["draft"])  # not a distribution: the book's example


def test_vocabulary_and_run(lab):
    assert len(lab["more"]) == 8 and abs(sum(lab["more"]) - 1) < 1e-3
    assert len(lab["fewer"]) == 2 and abs(sum(lab["fewer"]) - 1) < 1e-3
    assert re.match(r"\d+ tokens selected with K-SEQ: total variation 0\.\d+", lab["ran"])


def test_experiments_show_what_the_page_says(lab):
    bottleneck, ratios, gap, disjoint, wrong = (e["cells"] for e in lab["experiments"])
    assert (
        bottleneck["optimal"]
        > bottleneck["kseq"]
        > bottleneck["recursive"]
        > bottleneck["coupling"]
    )
    assert ratios["optimal"] == ratios["kseq"] == ratios["recursive"]
    gaps = {
        k: transport.optimal_acceptance(p, q, k) - RULES["kseq"].acceptance(p, q, k)
        for p, q in [distributions.tempered(np.arange(1, 7) ** -1.0, 1.0, 0.5)]
        for k in range(1, 17)
    }
    assert max(gaps, key=gaps.get) == 2 and gaps[1] < 1e-12 and gaps[16] < 1e-3
    assert abs(float(gap["optimal"]) - float(gap["kseq"]) - gaps[2]) < 2e-4
    assert set(disjoint.values()) == {"0.0000"}
    draft, target = [0.495, 0.495, 0.01, 0], [0, 0, 0.5, 0.5]
    for k in range(1, 17):
        for rule in (transport.optimal_acceptance, *(RULES[name].acceptance for name in LOSSLESS)):
            assert close(rule(draft, target, k), 1 - 0.99**k)
    draft, target = distributions.five_tokens()
    assert (
        1 - 0.4**4
        > transport.optimal_acceptance(draft, target, 4)
        == pytest.approx(float(wrong["optimal"]), abs=1e-4)
    )


def test_page_is_clean(lab):
    assert lab["errors"] == []
    assert lab["axe"] == []
    assert lab["overflow"] == [0, 0, 0]
    assert lab["overlaps"] == []  # no word of a chart on another


def test_page_works_as_a_file(lab):
    filed = lab["file"]
    assert filed["errors"] == []
    assert filed["ready"] == "true"
    draft, target = distributions.five_tokens()
    assert close(filed["draft"], draft)
    assert filed["cells"]["optimal"] == f"{transport.optimal_acceptance(draft, target, 3):.4f}"


def test_palette_is_the_books():
    css, js = lab_assets.palette()
    assert (lab_assets.LAB / "palette.css").read_text() == css, "run scripts/site/lab_assets.py"
    assert (lab_assets.LAB / "palette.js").read_text() == js, "run scripts/site/lab_assets.py"
    light = css.split('data-theme="dark"')[0]
    for key in lab_assets.SHOWN:
        assert f"--{key}: {COLORS[key]};" in light


def test_vendored_library_is_the_recorded_one():
    manifest = json.loads((lab_assets.VENDOR / "versions.json").read_text())
    file = lab_assets.VENDOR / manifest["file"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == manifest["sha256"]
    assert file.stat().st_size < 150_000
    licences = (lab_assets.VENDOR / "LICENSE").read_text()
    for name, version in lab_assets.PACKAGES.items():
        assert name == "esbuild" or (name in licences and manifest["packages"][name] == version)


# --- The same in a notebook: spectr_lite/lab.py ---


@pytest.fixture
def no_screen(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    plt.switch_backend("agg")
    yield
    plt.close("all")


def test_figure_shows_the_numbers(no_screen):
    draft, target = distributions.three_tokens()
    made = twin.figure(draft, target, 2)
    legends = [axis.get_legend() for axis in made.axes if axis.get_legend()]
    written = " ".join(text.get_text() for legend in legends for text in legend.get_texts())
    for value in (127 / 180, RULES["kseq"].acceptance(draft, target, 2), 17 / 30):
        assert f"{value:.4f}" in written
    twin.figure([1.0], [1.0], 16)
    twin.figure([0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], 3)


def test_explore_redraws(no_screen, monkeypatch):
    pytest.importorskip("ipywidgets")
    drawn = []
    monkeypatch.setattr(plt, "show", lambda: drawn.append(plt.gcf()))
    box = twin.explore()
    drafts, columns, _ = box.children
    assert len(drawn) == 1 and len(columns.children[0].children) == 3
    drafts.value = 4
    columns.children[0].children[2].value = 0.9
    assert len(drawn) == 3


def test_explore_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match="pip install ipywidgets"):
        twin.explore()


@pytest.mark.parametrize(
    ("draft", "target", "k", "named"),
    [
        ([0.5, 0.5], [1, 0], 17, "k:"),
        ([[1.0]], [[1.0]], 2, "draft:"),
        ([0.5, 0.6], [1, 0], 1, "draft:"),
    ],
)
def test_figure_refuses(draft, target, k, named):
    with pytest.raises(ValueError, match=named):
        twin.figure(draft, target, k)
