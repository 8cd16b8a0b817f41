"""Errors a user can act on. Each carries the exit status of the command line (DESIGN: exit codes).

Anything else that escapes is a defect of PrivLM or of a library and ends as status 1 with its traceback in run.log.
"""


class PrivLMError(Exception):
    """Base of all errors that are printed as one message, without a traceback."""

    exit_code = 1


class UsageError(PrivLMError):
    """Wrong usage, configuration or data, or a model or data set that is not at hand.

    The message names the field or file at fault and the remedy.
    """

    exit_code = 2


class BusyError(PrivLMError):
    """Another process works on the run directory."""


class ServiceError(PrivLMError):
    """A service (LLM endpoint, SuperLink, slurmctld) does not answer."""

    exit_code = 3


class BudgetExhausted(PrivLMError):
    """A budget of the user's own is spent: a clean stop, its run to be continued when the budget is raised."""

    exit_code = 0
