"""The one exception of this package."""


class RecordError(ValueError):
    """A record, a file of one, or a set of samples that cannot be used; the text says what to do about it."""
