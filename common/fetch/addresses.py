"""Which addresses the service may fetch from.

These are public unicast addresses, after IANA's registries of special-purpose addresses (RFC 6890),
and the networks that the settings allow. The list is here because `is_global` differs between
versions of Python (192.0.0.192, the metadata service of a cloud, is global in some).
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
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # between a provider and its customers; the metadata of some clouds
        "127.0.0.0/8",
        "168.63.129.16/32",  # in a public range, but an internal service of a cloud
        "169.254.0.0/16",  # link-local; the metadata of most clouds
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
PUBLIC_6 = IPv6Network("2000::/3")  # all that is allocated so far, without:
NOT_PUBLIC_6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # Teredo and other protocols
        "2001:db8::/32",
        "2002::/16",  # 6to4: leads to the IPv4 address inside; obsolete
        "3fff::/20",
    )
)
NAT64 = IPv6Network("64:ff9b::/96")


def may_connect(text: str, allowed: Sequence[Network]) -> bool:
    """Whether the service may connect to an address.

    Args:
        text: the address as `getaddrinfo` returns it. An address with a zone is refused.
        allowed: networks that are allowed in addition to public addresses.
    """
    if "%" in text:
        return False
    address = _inner(ip_address(text))
    return is_public(address) or any(address in network for network in allowed)


def is_public(address: Address) -> bool:
    """Whether an address is a public unicast address."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in NOT_PUBLIC_4)
    return address in PUBLIC_6 and not any(address in network for network in NOT_PUBLIC_6)


def _inner(address: Address) -> Address:
    """The IPv4 address to which packets for an IPv6 address go, or the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address
