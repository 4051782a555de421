"""Which addresses may be connected to on a caller's word."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis.strategies import integers, ip_addresses

from clipfleet.common.fetch.addresses import is_public, may_connect

INNER = (
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.31.0.1",
    "192.0.0.192",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
)
INNER_6 = (
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1%eth0",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "ff0e::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::",
    "3fff::1",
    "64:ff9b:1::808:808",
    "5f00::1",
)
PUBLIC = ("8.8.8.8", "1.1.1.1", "100.63.255.255", "172.32.0.1", "2606:4700::1111", "2a00:1450::1")


@pytest.mark.parametrize("text", INNER + INNER_6)
def test_inner_and_special_addresses_are_refused(text: str) -> None:
    assert not may_connect(text, ())


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_not(text: str) -> None:
    assert may_connect(text, ())


@pytest.mark.parametrize("prefix", ["::ffff:", "64:ff9b::", "::"])
@pytest.mark.parametrize("text", INNER)
def test_an_inner_address_is_refused_inside_an_ipv6_one_too(prefix: str, text: str) -> None:
    assert not may_connect(prefix + text, ())


@pytest.mark.parametrize("prefix", ["::ffff:", "64:ff9b::"])
def test_a_public_one_inside_an_ipv6_one_is_not(prefix: str) -> None:
    assert may_connect(f"{prefix}8.8.8.8", ())


@given(ip_addresses())
def test_nothing_is_public_that_python_does_not_call_global(
    address: IPv4Address | IPv6Address,
) -> None:
    assert not is_public(address) or (address.is_global and not address.is_multicast)


@given(integers(0, 2**128 - 1))
def test_no_address_breaks_the_check(number: int) -> None:
    assert may_connect(str(IPv6Address(number)), ()) in (True, False)


def test_networks_of_the_settings_are_allowed_and_those_beside_them_are_not() -> None:
    allowed = (ip_network("127.0.0.1/32"), ip_network("fd00::/64"))
    for text in ("127.0.0.1", "::ffff:127.0.0.1", "fd00::9", "8.8.8.8"):
        assert may_connect(text, allowed), text
    for text in ("127.0.0.2", "fd00:0:0:1::9", "10.0.0.1"):
        assert not may_connect(text, allowed), text
    assert not is_public(ip_address("127.0.0.1"))
