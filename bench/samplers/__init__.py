"""Samplers read footprints and return readings."""
