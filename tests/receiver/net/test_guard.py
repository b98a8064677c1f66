"""The guard's table and its reading of URLs, against lists written down here a second time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from receiver.net.guard import Address, AddressForbidden, Guard, NoAnswer, UrlRefused
from receiver.net.resolver import SystemResolver

SHUT_V4 = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
    *("224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32"),
]
SINKS_V4 = ["192.31.196.0/24", "192.52.193.0/24", "192.175.48.0/24"]
SHUT_V6 = [
    *("::/128", "::1/128", "::/96", "::ffff:0:0:0/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "200::/7"),
    *("2001::/32", "2001:2::/48", "2001:10::/28", "2001:20::/28", "2001::/23", "2001:db8::/32", "2002::/16"),
    *("2620:4f:8000::/48", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
]
METADATA = [
    *("169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    *("fd00:ec2::254", "fd20:ce::254"),
]
EVERYTHING = (ip_network("0.0.0.0/0"), ip_network("::/0"))
GUARD = Guard()


def inside(networks: Sequence[str]) -> st.SearchStrategy[Address]:
    def draw(text: str) -> st.SearchStrategy[Address]:
        network = ip_network(text)
        return st.integers(0, network.num_addresses - 1).map(lambda offset: network[offset])

    return st.sampled_from(networks).flatmap(draw)


def between(whole: str, networks: Sequence[str]) -> list[str]:
    """Return the rest of *whole* without *networks*."""
    left: list[Any] = [ip_network(whole)]
    for shut in map(ip_network, networks):
        overlapping = [network for network in left if network.overlaps(shut)]
        left = [network for network in left if network not in overlapping]
        left += [rest for network in overlapping if network.supernet_of(shut) for rest in network.address_exclude(shut)]
    return [str(network) for network in sorted(left)]


def disguises(address: IPv4Address) -> dict[str, IPv6Address]:
    """Every way to write an IPv4 address inside an IPv6 one that something on the way may undo."""
    bits = int(address)
    return {
        "mapped": IPv6Address(f"::ffff:{address}"),
        "compatible": IPv6Address(f"::{address}"),
        "translated": IPv6Address(f"::ffff:0:{address}"),
        "nat64": IPv6Address(f"64:ff9b::{address}"),
        "local nat64, /96": IPv6Address(f"64:ff9b:1::{address}"),
        "local nat64, /48": IPv6Address(
            int(IPv6Address("64:ff9b:1::")) | bits >> 16 << 64 | (bits & 0xFFFF) << 40,
        ),
        "6to4": IPv6Address(0x2002 << 112 | bits << 80),
        "teredo client": IPv6Address(0x2001_0000 << 96 | 0x41D0_0001 << 64 | ~bits & 0xFFFF_FFFF),
        "teredo server": IPv6Address(0x2001_0000 << 96 | bits << 64 | 1),
    }


def refused(guard: Guard, address: Address) -> bool:
    try:
        guard.verdict(address)
    except AddressForbidden:
        return True
    return False


@given(inside(SHUT_V4 + SINKS_V4 + SHUT_V6))
def test_every_address_of_a_forbidden_network_is_refused(address: Address) -> None:
    assert refused(GUARD, address)


@pytest.mark.parametrize("text", SHUT_V4 + SINKS_V4 + SHUT_V6)
def test_the_first_and_the_last_address_of_a_forbidden_network_are_refused(text: str) -> None:
    network = ip_network(text)
    assert refused(GUARD, network[0])
    assert refused(GUARD, network[-1])


@given(inside(SHUT_V4 + SINKS_V4))
def test_no_disguise_opens_a_forbidden_address(address: Address) -> None:
    assert isinstance(address, IPv4Address)
    assert [name for name, disguised in disguises(address).items() if not refused(GUARD, disguised)] == []


@given(inside(between("0.0.0.0/0", SHUT_V4 + SINKS_V4)))
def test_public_addresses_pass_and_so_do_the_forms_that_only_translate_them(address: Address) -> None:
    assert isinstance(address, IPv4Address)
    assume(str(address) not in METADATA)
    GUARD.verdict(address)
    GUARD.verdict(disguises(address)["mapped"])
    GUARD.verdict(disguises(address)["nat64"])


@pytest.mark.parametrize("text", between("0.0.0.0/0", SHUT_V4 + SINKS_V4) + between("2000::/3", SHUT_V6))
def test_the_first_and_the_last_address_between_forbidden_networks_pass(text: str) -> None:
    GUARD.verdict(ip_network(text)[0])
    GUARD.verdict(ip_network(text)[-1])


@given(inside(between("2000::/3", SHUT_V6)))
def test_public_ipv6_addresses_pass(address: Address) -> None:
    GUARD.verdict(address)


@pytest.mark.parametrize("text", METADATA)
def test_metadata_addresses_stay_closed_whatever_is_allowed(text: str) -> None:
    address = ip_address(text)
    single = ip_network(text)
    forms = disguises(address) if isinstance(address, IPv4Address) else {}
    for allow in ((), EVERYTHING, (single,)):
        guard = Guard(allow)
        assert refused(guard, address)
        assert [name for name, disguised in forms.items() if not refused(guard, disguised)] == []
        with pytest.raises(AddressForbidden, match="stay closed"):
            guard.verdict(address)


@given(inside(["127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/4", "fc00::/8", "ff00::/8"]))
def test_an_allowed_network_opens_what_is_not_metadata(address: Address) -> None:
    assert refused(GUARD, address)
    Guard(EVERYTHING).verdict(address)


def test_allowing_an_ipv4_network_opens_its_mapped_form_and_no_translated_one() -> None:
    guard = Guard([ip_network("10.0.0.0/8")])
    opened = {name for name, form in disguises(IPv4Address("10.1.2.3")).items() if not refused(guard, form)}
    assert opened == {"mapped"}
    assert refused(guard, ip_address("11.0.0.1")) is False
    assert refused(guard, ip_address("192.168.0.1")) is True


def test_a_zone_does_not_hide_a_link_local_address() -> None:
    assert refused(GUARD, IPv6Address("fe80::1%eth0"))
    assert refused(Guard(EVERYTHING), IPv6Address("fe80::a9fe:a9fe%eth0"))


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "HTTPS://EXAMPLE.com/",
        "https://example.com:8443/hook?a=b#c",
        "https://xn--mnchen-3ya.de/",
        "https://münchen.de/bild.png",
        "https://my_bucket.s3.amazonaws.com/a%20b?X-Amz-Signature=00",
        "https://8.8.8.8/",
        "https://[2606:4700:4700::1111]:444/x",
        "https://3com.example/",
        "https://a.b.c.0x.example/",
        "https://example.com/@user:pass",
        "https://example.com?next=http://127.0.0.1",
    ],
)
def test_ordinary_urls_pass(url: str) -> None:
    assert GUARD.check_url(url).scheme == "https"


def test_http_is_for_allowed_networks_only() -> None:
    with pytest.raises(UrlRefused, match="https"):
        GUARD.check_url("http://example.com/")
    guard = Guard([ip_network("127.0.0.0/8")])
    assert guard.check_url("http://127.0.0.1:8000/").port == 8000
    assert guard.check_url("http://app:8000/").host == "app"  # where it leads shows later
    with pytest.raises(UrlRefused, match="https"):
        guard.check_url("http://8.8.8.8/")


async def test_a_name_reached_by_http_must_lead_into_an_allowed_network() -> None:
    async def resolver(host: str, port: int) -> list[str]:
        return {"in": ["127.0.0.2"], "out": ["8.8.8.8"], "both": ["127.0.0.2", "8.8.8.8"]}[host]

    guard = Guard([ip_network("127.0.0.0/8")], resolver=resolver)
    assert await guard.resolve("in", 80, encrypted=False) == [ip_address("127.0.0.2")]
    assert await guard.resolve("out", 443, encrypted=True) == [ip_address("8.8.8.8")]
    for host in ("out", "both"):
        with pytest.raises(UrlRefused):
            await guard.resolve(host, 80, encrypted=False)


@given(st.text(max_size=60) | st.text("htps:/\\@%[].#?0123456789xabf\t。①", max_size=40).map("https://".__add__))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    try:
        url = GUARD.check_url(text)
    except (UrlRefused, AddressForbidden) as exc:
        assert len(text) < 9 or text not in str(exc)
    else:
        assert url.raw_host and url.scheme == "https" and not url.userinfo


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_one_bad_address_refuses_the_name(position: int) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        found = ["8.8.8.8", "2606:4700:4700::1111"]
        found.insert(position, "::ffff:10.0.0.1")
        return found

    with pytest.raises(AddressForbidden, match=r"mixed\.example") as refusal:
        await Guard(resolver=resolver).resolve("mixed.example", 443)
    assert "10.0.0.1" not in str(refusal.value)
    assert refusal.value.permanent


async def test_a_name_that_takes_too_long_is_no_answer_and_may_be_tried_again() -> None:
    async def resolver(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(NoAnswer) as failure:
        await Guard(resolver=resolver, resolve_seconds=0.01).resolve("slow.example", 443)
    assert failure.value.reason == "name"
    assert not failure.value.permanent


@pytest.mark.parametrize("found", [[], ["not an address"]])
async def test_a_resolver_that_gives_nothing_usable_is_no_answer(found: list[str]) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        return found

    with pytest.raises(NoAnswer):
        await Guard(resolver=resolver).resolve("odd.example", 443)


async def test_the_system_resolver_is_asked_and_its_answer_is_judged() -> None:
    assert {"127.0.0.1", "::1"} & set(await SystemResolver()("localhost", 80))
    with pytest.raises(AddressForbidden):
        await Guard().resolve("localhost", 443)
    with pytest.raises(NoAnswer):
        await Guard().resolve(f"{'x' * 64}.example", 443)


@pytest.mark.parametrize("host", ["0x7f.1", "2130706433", "0177.0.0.1", "127.1", "017700000001", "0"])
async def test_an_address_in_disguise_that_reaches_the_resolver_is_judged_as_what_it_means(host: str) -> None:
    with pytest.raises(AddressForbidden):
        await Guard().resolve(host, 443)


def test_a_refusal_says_what_to_change_and_quotes_nothing() -> None:
    for url, word in {
        "https://me:s3cret@example.com/": "user name",
        "https://example.com:22/s3cret": "port 22",
        "https://2130706433/s3cret": "number",
        "https://example.com./s3cret": "dot",
        "ftp://example.com/s3cret": "https://",
        "https://example.com/s3cret s3cret": "white space",
        f"https://example.com/s3cret{'x' * 9000}": "longer than 8192",
        "https://10.0.0.1/s3cret": "RECEIVER_ALLOW_NETWORKS",
    }.items():
        with pytest.raises((UrlRefused, AddressForbidden), match=word) as refusal:
            GUARD.check_url(url)
        assert "s3cret" not in str(refusal.value)
