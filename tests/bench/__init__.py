"""Measurements of this machine, run by `make bench`: ratios and bounds of one run, never a pass or a failure."""
