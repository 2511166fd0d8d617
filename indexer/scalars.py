"""Single values of Python and numpy that JSON has no form of its own for, as JSON has them."""

from __future__ import annotations

from datetime import date, time
from decimal import Decimal
from uuid import UUID

import numpy as np


def json_scalar(value: object) -> object:
    """Return a date or time as an ISO 8601 string, a decimal or UUID as a string, a scalar of numpy as Python's.

    What is no time, NaT, is None; all else is left as it is, longdouble too, which Python has no number for.
    """
    match value:
        case date() if value != value:  # pandas' NaT
            return None
        case date() | time():  # a datetime is a date
            return value.isoformat()
        case Decimal() | UUID():
            return str(value)
        case np.datetime64():
            return None if np.isnat(value) else str(value)
        case np.generic():
            return value.item() if value.dtype.kind in "biufU" else value
    return value
