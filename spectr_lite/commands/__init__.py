"""The verbs of `python -m spectr_lite`."""
