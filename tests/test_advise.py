"""The adviser: its choices against exhaustive decoding, its records, its dumps, its errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from spectr_experiments import advice, advise, dumps, replay
from spectr_experiments.records import Run
from spectr_lite.__main__ import main
from spectr_lite.decoding import enumeration, generate
from spectr_lite.models.markov import worked_pair
from spectr_lite.stats import Interval

PROMPTS = [[token] for token in (0, 1, 2)] * 8
SMALL = {"num_drafts": [1, 2], "draft_lengths": [1, 3], "verifiers": ["kseq", "optimal-block"]}


@pytest.fixture(scope="module")
def found():
    return advise.advise(*worked_pair(), PROMPTS, minutes=0, new_tokens=24, **SMALL)


def test_no_time_records_too_few_texts_and_says_so():
    with pytest.raises(ValueError, match="more --minutes"):
        advise.advise(*worked_pair(), PROMPTS, minutes=0, **SMALL)
