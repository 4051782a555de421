"""TLS to Redis and Milvus: checks of CA files, and of whether a server uses TLS."""

import socket
import ssl


class UnusableAuthority(Exception):
    """A CA file cannot be used. The text names the file and the reason."""


def require_authority(path: str) -> None:
    """Check a CA file. The errors of redis-py and gRPC for a bad file name neither file nor reason.

    Raises:
        UnusableAuthority: the file cannot be read or has no certificate in PEM format.
    """
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError as error:
        raise UnusableAuthority(f"{path} contains no certificate in PEM format") from error
    except OSError as error:
        raise UnusableAuthority(f"{path} cannot be read: {error.strerror}") from error


def speaks_tls(host: str, port: int, timeout_s: float = 2.0) -> bool:
    """Whether a TLS handshake with the server succeeds. Certificates are not verified.

    No data is sent.
    """
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    anyone.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), timeout_s) as plain,
            anyone.wrap_socket(plain),
        ):
            return True
    except OSError:
        return False


def is_plain_redis(host: str, port: int, timeout_s: float = 2.0) -> bool:
    """Whether a Redis answers a PING without TLS, if only with an error about the password."""
    try:
        with socket.create_connection((host, port), timeout_s) as plain:
            plain.settimeout(timeout_s)
            plain.sendall(b"PING\r\n")
            return plain.recv(1) in (b"+", b"-")
    except OSError:
        return False
