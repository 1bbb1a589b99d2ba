"""The one exception that a command shows to its user as a single line."""


class UserError(Exception):
    """Something that the user can put right: the message names the file or option and the remedy."""
