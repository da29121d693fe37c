"""Thin adapters: one way to run an instance each, all with the same contract (base.py)."""
