"""The run folder: append-only records, and how they are read again."""
