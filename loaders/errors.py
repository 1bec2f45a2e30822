"""The one exception loaders raises for input the user can mend."""


class DataError(ValueError):
    """A data set, a file in it, or a loader that is missing or cannot be read."""
