"""The errors of chainrule: each is also the built-in error that a caller would expect."""


class ChainruleError(Exception):
    """Base class of every error that chainrule raises on purpose."""


class DataError(ChainruleError, ValueError):
    """A value in the data is wrong; the message names the file, line, row or argument."""


class ShapeError(ChainruleError, ValueError):
    """Shapes do not fit; the message gives the expected and the actual shape."""


class DtypeError(ChainruleError, TypeError):
    """An array has a type that the operation does not take."""


class FileError(ChainruleError, OSError):
    """A file cannot be read or written, is cut short, or is of another kind."""


class UsageError(ChainruleError, ValueError):
    """A call that cannot work as it stands; the message says what to do instead."""


class TraceError(ChainruleError, TypeError):
    """A value was asked for while a model is traced, where only shapes exist."""
