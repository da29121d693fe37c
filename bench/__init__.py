"""bench: containers against virtual machines, measured on your own host."""

__version__ = "0.1.0"
