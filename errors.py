"""What all errors that a user can mend have in common."""


class UserError(Exception):
    """Its message stands on its own: what is wrong, the value, and what to do. Commands show it without a traceback."""
