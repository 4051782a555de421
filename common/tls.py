"""TLS to Redis and Milvus: the file with the authority's certificate, and who speaks TLS at all."""

import socket
import ssl


class UnusableAuthority(Exception):
    """The file with the certificate of an authority cannot be used; the text says why."""


def require_authority(path: str) -> None:
    """UnusableAuthority unless the file holds certificates. Their libraries say it worse."""
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError as error:
        raise UnusableAuthority(f"{path} holds no certificate in PEM form") from error
    except OSError as error:
        raise UnusableAuthority(f"{path} cannot be read: {error.strerror}") from error


def speaks_tls(host: str, port: int, timeout_s: float = 2.0) -> bool:
    """Whether a handshake comes about. Nothing is sent and nobody is trusted."""
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
    """Whether a ping without TLS is answered, be it by asking for a password."""
    try:
        with socket.create_connection((host, port), timeout_s) as plain:
            plain.settimeout(timeout_s)
            plain.sendall(b"PING\r\n")
            return plain.recv(1) in (b"+", b"-")
    except OSError:
        return False
