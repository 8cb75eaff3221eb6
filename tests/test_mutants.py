"""The list of mutants fits the code: each old text occurs once, and each mutated file compiles."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

import mutants
import pytest

LIST = [*mutants.MUTANTS, *mutants.EXPERIMENTS]


@pytest.mark.parametrize("mutant", LIST, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_code(mutant):
    text = mutant.text(mutants.ROOT)
    assert text != (mutants.ROOT / mutant.file).read_text(encoding="utf-8")
    compile(text, mutant.file, "exec")
    files = [word for word in shlex.split(mutant.tests) if word.startswith("tests/")]
    assert files and all((mutants.ROOT / name).is_file() for name in files)


def test_names_tell_the_mutants_apart():
    assert [name for name, count in Counter(m.name for m in LIST).items() if count > 1] == []
    rooms = Counter(mutant.room for mutant in LIST)
    assert not {*rooms} & {mutant.name for mutant in LIST}


def test_an_old_text_that_is_not_there_names_its_mutant(tmp_path: Path):
    mutant = mutants.Mutant("lost", "a.py", "x = 1", "x = 2", "")
    for source in ("x = 3\n", "x = 1\nx = 1\n"):
        (tmp_path / "a.py").write_text(source)
        with pytest.raises(ValueError, match=f"lost: .* occurs {source.count('x = 1')} times"):
            mutant.text(tmp_path)
