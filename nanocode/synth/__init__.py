"""Synthetic data: scenarios are played with really executed tools, verified, held against the SOUL, and kept or dropped."""
