"""From numbers to one self-contained HTML file."""

from bench.report.build import build_report, render

__all__ = ["build_report", "render"]
