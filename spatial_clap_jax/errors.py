"""The one error that a user's input can cause."""


class InputError(ValueError):
    """Something that a user gave cannot be used.

    The message is one line: the file or argument, its value, the rule it breaks and
    the remedy. The command line prints it without a traceback and exits with status 2.
    """


class RunStopped(RuntimeError):
    """A training cannot go on, though nothing that a user gave is wrong.

    The message is one line: what happened, what was kept, and where to look. The command line
    prints it without a traceback and exits with status 3.
    """
