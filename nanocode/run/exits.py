"""How a stage, and the command line, may end. An exit code never proves completion: only `DONE.json` does."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes, shared by jobs, controller and chart; they say how to treat an ending without a marker.

    DONE: the work ended; without a marker this counts as a failure.
    FAILED: a failure; retried within the budget, as is every code that is not listed here.
    USAGE: the command line is wrong; never retried.
    PREEMPTED: told to leave, whether the state was saved or not; retried freely.
    CONFIGURATION: a setting or an input is wrong; never retried.
    """

    DONE = 0
    FAILED = 1
    USAGE = 2
    PREEMPTED = 75
    CONFIGURATION = 78


class ConfigurationError(ValueError):
    """A setting or an input the user gave is wrong: one line with the value and the next move, exit 78."""


class UsageError(ValueError):
    """The command line is wrong: one line with the value and the next move, exit 2."""
