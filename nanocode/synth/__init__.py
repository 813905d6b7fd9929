"""Synthetic data: scenarios played with really executed tools, verified, and held against the SOUL."""
