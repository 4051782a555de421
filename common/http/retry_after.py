"""The Retry-After header of RFC 9110."""

import time
from email.utils import parsedate_to_datetime


def retry_after_s(text: str) -> float | None:
    """A number of seconds, or a date. None where it is neither."""
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
