"""Which addresses are on this machine, so that no proxy is asked for them."""

from ipaddress import ip_address
from urllib.parse import urlsplit


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine: `localhost`, 127.0.0.0/8 or ::1.

    Args:
        url: the URL. One that is not valid names nothing.
    """
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
