"""The one exception that is meant for the person at the keyboard."""


class UserError(ValueError):
    """Something the user can put right: the message says what is wrong, where, and the way out.

    Entry points print the message alone and exit with status 2; nobody sees a traceback for it.
    """
