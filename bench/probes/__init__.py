"""Probes: attacks from inside an instance, judged by what became of a canary outside. See docs/isolation.md."""

from __future__ import annotations

from bench.probes.catalogue import PROBES

__all__ = ["PROBES"]
