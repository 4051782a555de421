"""The Retry-After header of RFC 9110."""

import time
from email.utils import parsedate_to_datetime


def retry_after_s(text: str) -> float | None:
    """The seconds to wait that a Retry-After header asks for.

    Args:
        text: the value of the header: a number of seconds, or a date.

    Returns:
        The seconds; None when the text is neither.
    """
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
