"""The scenario of a condition: what a trial under it takes its keys from."""

from __future__ import annotations

from bench.config.options import with_values
from bench.config.scenario import Scenario
from bench.model import Condition, condition_text


class Variants:
    """Scenarios by condition, each made once."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._made: dict[str, Scenario] = {}

    def of(self, condition: Condition) -> Scenario:
        """The run's scenario with the keys of `condition`; itself for the empty one."""
        if not condition:
            return self._scenario
        text = condition_text(condition)
        if text not in self._made:
            self._made[text] = with_values(self._scenario, condition)
        return self._made[text]
