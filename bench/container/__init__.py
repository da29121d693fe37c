"""The built-in container runtime."""
