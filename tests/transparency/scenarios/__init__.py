"""Importing this package registers every scenario; `SCENARIOS` has them by name."""

from tests.transparency.scenarios import closing, kernel, payload, process, signals, terminal
from tests.transparency.stage import SCENARIOS

MODULES = (closing, kernel, payload, process, signals, terminal)

__all__ = ["MODULES", "SCENARIOS"]
