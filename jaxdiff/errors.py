"""The errors that are one line for the user: the input is wrong, or the run cannot go on."""


class UserError(ValueError):
    """Wrong input from outside (a config, a file, an argument): one line, what is wrong and what would be right.

    The entry points print it on stderr and exit with code 2; nothing has been written by then.
    """


class RunError(RuntimeError):
    """A run that began well cannot go on: one line, what happened and what to do.

    The entry points print it on stderr and exit with code 1; what was saved stays as it is.
    """
