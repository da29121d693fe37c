"""What to run: TOML -> `Scenario`, the user's intent, complete and validated. Pure."""
