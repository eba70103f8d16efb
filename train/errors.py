"""The one exception for what a person can put right."""


class UserError(Exception):
    """Input, a setting or a path that cannot be used.

    Its text is one sentence that names the value, the limit and the remedy. The command line prints that
    sentence and exits with code 2; nothing has been written or overwritten by then.
    """
