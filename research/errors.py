"""What a run may die of, with the exit code that each cause ends the process with.

The library raises these; only `launch` turns them into exit codes. Schedulers and
restart loops can rely on the numbers: 75 means "start me again", the others do not.
"""


class UserError(Exception):
    """Bad input in one sentence: what was wrong, what was expected, what to do."""

    exit_code = 2


class NonFiniteError(Exception):
    """A loss or gradient was NaN or infinite; `launch.replay` has a bundle of it."""

    exit_code = 3


class SaveError(Exception):
    """A checkpoint could not be written; the cause is chained to the exception."""

    exit_code = 74  # EX_IOERR


class Preempted(Exception):
    """SIGTERM arrived; the state is saved, and the same command continues the run."""

    exit_code = 75  # EX_TEMPFAIL


STUCK_EXIT_CODE = 124  # the watchdog's: no step finished in time; stacks are dumped
