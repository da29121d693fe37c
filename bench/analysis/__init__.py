"""From records to numbers: frames, intervals, fits, the summary."""
