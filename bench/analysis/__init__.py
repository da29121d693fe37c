"""From records to numbers: frames, intervals, fits, the summary."""

from bench.analysis.frames import Series, frames
from bench.analysis.headline import HeadlineRow, headline
from bench.analysis.quality import Doubt, quality
from bench.analysis.resampling import Estimate
from bench.analysis.summary import summarise

__all__ = ["Doubt", "Estimate", "HeadlineRow", "Series", "frames", "headline", "quality", "summarise"]
