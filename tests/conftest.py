"""Two settings of hypothesis: `ci`, the same few examples every time, and `long`, a hunt.

HYPOTHESIS_PROFILE=long python -m pytest -m hypothesis -x --hypothesis-show-statistics
"""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, settings

slow_is_fine = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("ci", max_examples=10, derandomize=True, **slow_is_fine)
settings.register_profile("long", max_examples=500, print_blob=True, **slow_is_fine)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

torch.set_num_threads(1)
