"""The one error that means: the user's input is wrong, and here is what would be right."""


class UserError(ValueError):
    """Wrong input from outside (a config, a file, an argument): one line, what is wrong and what would be right.

    The entry points print it on stderr and exit with code 2; nothing has been written by then.
    """
