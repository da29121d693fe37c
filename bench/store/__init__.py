"""The run folder: append-only records, and how they are read again."""

from bench.store.files import give_to_caller
from bench.store.reader import RunData, find_run, list_runs, read_info, read_run
from bench.store.resume import Past, ResumedWriter, read_past
from bench.store.writer import RunWriter

__all__ = [
    "Past", "ResumedWriter", "RunData", "RunWriter", "find_run", "give_to_caller", "list_runs", "read_info",
    "read_past", "read_run",
]  # fmt: skip
