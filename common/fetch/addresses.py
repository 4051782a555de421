"""Which addresses the service may connect to because a caller named a URL.

Public unicast addresses, after IANA's registries of special-purpose addresses (RFC 6890), and what
the settings allow beside them. Written out here because Python's `is_global` says different things
in different versions (192.0.0.192, a cloud's metadata service, is global in some).
"""

from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

NOT_PUBLIC_4 = tuple(
    IPv4Network(one)
    for one in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # between a provider and its customers; some clouds' metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # public by its number, but a cloud's inner service
        "169.254.0.0/16",  # link-local; most clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
PUBLIC_6 = IPv6Network("2000::/3")  # all that has been given out so far; but of this
NOT_PUBLIC_6 = tuple(
    IPv6Network(one)
    for one in (
        "2001::/23",  # Teredo and other protocols' own
        "2001:db8::/32",
        "2002::/16",  # 6to4: leads to the IPv4 address inside; nobody needs it any more
        "3fff::/20",
    )
)
NAT64 = IPv6Network("64:ff9b::/96")


def may_connect(text: str, allowed: Sequence[Network]) -> bool:
    """`text`: an address as `getaddrinfo` writes it. One with a zone is never a public one."""
    if "%" in text:
        return False
    address = _inner(ip_address(text))
    return is_public(address) or any(address in network for network in allowed)


def is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in NOT_PUBLIC_4)
    return address in PUBLIC_6 and not any(address in network for network in NOT_PUBLIC_6)


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for: the packets go there."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address
