"""Bounds on speed, as programs: each prints ratios from one interleaved run and exits 1 if a bound breaks."""
