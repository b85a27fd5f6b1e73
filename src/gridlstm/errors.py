"""The one exception that is the user's to mend; everything else is a defect of ours and keeps its traceback."""


class UserError(ValueError):
    """Input or configuration that cannot work.

    The message says what was expected, what was got and how to fix it. The command line prints the message alone,
    without a traceback, and exits with status 1.
    """
