"""
Rules for the addresses that this service may reach when somebody else chose the URL.

The table below is written out, because `ipaddress.is_global` calls several of these networks global, and its results
vary between versions of Python. The rule has three steps: metadata addresses are always closed; a network that the
operator listed is open; any other network in the table is closed. A name is refused if *any* address that it resolves
to is refused, so that an answer mixing good and bad addresses can't get past by luck.

    OutboundError              `permanent` and `retry_after_seconds` are the decision
    ├── OutboundRefused        the guard refused, and nothing was sent
    │   ├── UrlRefused         the URL itself is not one we call
    │   └── AddressForbidden   it leads where we must not go
    ├── NoAnswer               no name, no connection, no handshake, no whole answer, or not in time
    └── DownloadFailed         see arriving.py: an answer that is not the file
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

import httpx

from receiver.net.resolver import SystemResolver

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

LONGEST_URL = 8192  # signed storage links run to a few thousand characters

FORBIDDEN: tuple[tuple[Network, str], ...] = tuple(
    (ip_network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "this host"),  # RFC 1122; Linux dials 0.0.0.0 as loopback
        ("10.0.0.0/8", "private"),  # RFC 1918
        ("100.64.0.0/10", "carrier-grade NAT"),  # RFC 6598; Tailscale lives here too
        ("127.0.0.0/8", "loopback"),  # RFC 1122
        ("169.254.0.0/16", "link-local"),  # RFC 3927; cloud metadata
        ("172.16.0.0/12", "private"),  # RFC 1918
        ("192.0.0.0/24", "protocol assignments"),  # RFC 6890; DS-Lite, NAT64 discovery, Oracle metadata
        ("192.0.2.0/24", "documentation"),  # RFC 5737
        ("192.31.196.0/24", "AS112 sink"),  # RFC 7535
        ("192.52.193.0/24", "multicast tunnelling"),  # RFC 7450
        ("192.88.99.0/24", "6to4 relay"),  # RFC 7526, withdrawn
        ("192.168.0.0/16", "private"),  # RFC 1918
        ("192.175.48.0/24", "AS112 sink"),  # RFC 7534
        ("198.18.0.0/15", "benchmarking"),  # RFC 2544; Docker and VPN clients borrow it
        ("198.51.100.0/24", "documentation"),  # RFC 5737
        ("203.0.113.0/24", "documentation"),  # RFC 5737
        ("224.0.0.0/4", "multicast"),  # RFC 5771
        ("240.0.0.0/4", "reserved"),  # RFC 1112
        ("255.255.255.255/32", "broadcast"),  # RFC 919; inside the former, named for its own sake
        ("::/128", "unspecified"),  # dialled as loopback
        ("::1/128", "loopback"),
        ("::/96", "IPv4-compatible"),  # RFC 4291, deprecated
        ("::ffff:0:0/96", "IPv4-mapped"),  # never met here: judged as the IPv4 address it is
        ("::ffff:0:0:0/96", "IPv4-translated"),  # RFC 2765
        ("64:ff9b:1::/48", "local NAT64"),  # RFC 8215
        ("100::/64", "discard"),  # RFC 6666
        ("100:0:0:1::/64", "dummy prefix"),  # RFC 9780
        ("2001::/32", "Teredo"),  # RFC 4380, carries an IPv4 address
        ("2001:2::/48", "benchmarking"),  # RFC 5180
        ("2001:10::/28", "ORCHID"),  # RFC 4843
        ("2001:20::/28", "ORCHIDv2"),  # RFC 7343
        ("2001::/23", "protocol assignments"),  # RFC 2928: the rest of them
        ("2001:db8::/32", "documentation"),  # RFC 3849
        ("2002::/16", "6to4"),  # RFC 3056, carries an IPv4 address
        ("2620:4f:8000::/48", "AS112 sink"),  # RFC 7534
        ("3fff::/20", "documentation"),  # RFC 9637
        ("5f00::/16", "segment routing"),  # RFC 9602
        ("fc00::/7", "unique local"),  # RFC 4193
        ("fe80::/10", "link-local"),  # RFC 4291
        ("fec0::/10", "site-local"),  # RFC 3879, deprecated
        ("ff00::/8", "multicast"),  # RFC 4291
        # Public IPv6 is 2000::/3 alone. What lies outside is unassigned, or an overlay's (Yggdrasil has 200::/7).
        ("::/3", "not public"),
        ("4000::/2", "not public"),
        ("8000::/1", "not public"),
    )
)

NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: as good or bad as the IPv4 address it carries

METADATA: frozenset[Address] = frozenset(
    ip_address(address)
    for address in (
        "169.254.169.254",  # AWS, GCP, Azure, DigitalOcean, OpenStack, Hetzner, Oracle, ...
        "169.254.170.2",  # AWS ECS credentials
        "169.254.170.23",  # AWS EKS pod identity
        "169.254.42.42",  # Scaleway
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure wire server, although it is a public address
        "192.0.0.192",  # Oracle
        "fd00:ec2::254",  # AWS
        "fd00:ec2::23",  # AWS EKS pod identity
        "fd20:ce::254",  # GCP
        "fd00:c1::a9fe:a9fe",  # Oracle
        "fd00:42::42",  # Scaleway
        "fe80::a9fe:a9fe",  # OpenStack
    )
)

# Ports of services that take a request line for a command; browsers refuse them as well.
OTHER_SERVICES = frozenset(
    {0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 79, 87, 95, 101, 102, 103, 104, 109, 110}
    | {111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531}
    | {532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190}
    | {5060, 5061, 6000, 6379, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080, 11211}
)


class OutboundError(Exception):
    """A request to an address that others chose failed. `str(error)` holds no URL, at most its host."""

    permanent = False
    retry_after_seconds: float | None = None


class OutboundRefused(OutboundError):
    """The guard refused; nothing was sent. The same URL will not pass later unless settings or DNS change."""

    permanent = True


class UrlRefused(OutboundRefused):
    """The URL is not one we call: its scheme, form, port or length."""


class AddressForbidden(OutboundRefused):
    """
    The URL leads to an address that must not be reached from here.

    The message names the host as given, never what it resolved to: that would map our network for the owner of the
    name. `reason` is the network's kind, for our own log and metrics; `found` and `remedy` are for the caller who has
    just chosen the URL.
    """

    def __init__(self, host: str, *, reason: str) -> None:
        self.found = f"{host} is, or leads to, an address that must not be reached from here"
        if reason == "metadata":
            stays = "metadata addresses stay closed, regardless of RECEIVER_ALLOW_NETWORKS"
            self.remedy = f"use a public https URL: {stays}"
        else:
            stays = "add its network to RECEIVER_ALLOW_NETWORKS if it is yours"
            self.remedy = (
                "use a public https URL, or, if the address is yours, add its network to RECEIVER_ALLOW_NETWORKS"
            )
        super().__init__(f"{self.found}; {stays}")
        self.host = host
        self.reason = reason


class NoAnswer(OutboundError):
    """No complete answer was received; a later try may succeed. `reason` is the stage that failed."""

    def __init__(self, message: str, *, reason: Literal["name", "connect", "tls", "timeout", "broken"]) -> None:
        super().__init__(message)
        self.reason = reason


def carried(address: IPv6Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses that a packet to *address* may reach, by all the ways to embed one in IPv6."""
    bits = int(address)
    low = IPv4Address(bits & 0xFFFF_FFFF)
    if address in IPv6Network("2002::/16"):  # 6to4: right after the prefix
        return (IPv4Address(bits >> 80 & 0xFFFF_FFFF),)
    if address in IPv6Network("2001::/32"):  # Teredo: the server, then the client's address inverted
        return (IPv4Address(bits >> 64 & 0xFFFF_FFFF), IPv4Address(~bits & 0xFFFF_FFFF))
    if address in IPv6Network("64:ff9b:1::/48"):  # RFC 6052: after /48 around the zero octet, or last after /96
        return (IPv4Address((bits >> 64 & 0xFFFF) << 16 | bits >> 40 & 0xFFFF), low)
    if any(address in network for network in (*_LAST_32_BITS, NAT64)):
        return (low,)
    return ()


_LAST_32_BITS = tuple(map(IPv6Network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96")))


class Guard:
    """
    Judges URLs, and the addresses that they lead to.

    *allow* are networks that may be reached although the table closes them; http is allowed there and only there.
    *resolver* returns the addresses of a host as text, within *resolve_seconds*.
    """

    def __init__(
        self, allow: Sequence[Network] = (), *, resolver: Resolver | None = None, resolve_seconds: float = 5.0
    ) -> None:
        self._allow = tuple(allow)
        self._resolver = resolver or SystemResolver()
        self._resolve_seconds = resolve_seconds

    def verdict(self, address: Address) -> None:
        """Raise AddressForbidden if *address* must not be reached."""
        address = _plain(address)
        reason = self._reason(address)
        if reason is not None:
            raise AddressForbidden(str(address), reason=reason)

    def allows(self, address: Address) -> bool:
        """Return whether *address* is in a network that the operator opened; it may still be a metadata address."""
        address = _plain(address)
        return any(address in network for network in self._allow)

    def check_url(self, url: str) -> httpx.URL:
        """
        Return the parsed URL. Raises UrlRefused, or AddressForbidden if the host is written as an address.

        Resolves nothing: whether a *name* leads to a forbidden address shows when it is resolved.
        """
        parsed, literal = parse(url)
        if literal is not None:
            self.verdict(literal)
        if parsed.scheme == "http" and not (self._allow if literal is None else self.allows(literal)):
            raise UrlRefused("the URL must be https; http is for networks listed in RECEIVER_ALLOW_NETWORKS")
        return parsed

    async def resolve(self, host: str, port: int, *, encrypted: bool = True) -> list[Address]:
        """
        Return the addresses that may be dialled for *host*, in the resolver's order; at least one.

        Raises AddressForbidden if any of them is refused, UrlRefused if the request would not be *encrypted* and one
        of them is outside the allowed networks, NoAnswer if there are none.
        """
        addresses = await self._addresses(host, port)
        for address in addresses:
            reason = self._reason(address)
            if reason is not None:
                raise AddressForbidden(host, reason=reason)
            if not encrypted and not self.allows(address):
                raise UrlRefused("the URL must be https; http is for networks listed in RECEIVER_ALLOW_NETWORKS")
        return addresses

    async def _addresses(self, host: str, port: int) -> list[Address]:
        try:
            return [_plain(ip_address(host))]
        except ValueError:
            pass
        try:
            async with asyncio.timeout(self._resolve_seconds):
                found = await self._resolver(host, port)
            # An address may be listed once per socket type, and both as itself and mapped.
            addresses = list(dict.fromkeys(_plain(ip_address(text)) for text in found))
        except TimeoutError as exc:
            raise NoAnswer(f"{host} was not resolved in time", reason="name") from exc
        except (OSError, ValueError) as exc:
            raise NoAnswer(f"{host} can't be resolved", reason="name") from exc
        if not addresses:
            raise NoAnswer(f"{host} has no address", reason="name")
        return addresses

    def _reason(self, address: Address) -> str | None:
        inside = carried(address) if isinstance(address, IPv6Address) else ()
        if address in METADATA or not METADATA.isdisjoint(inside):
            return "metadata"
        if self.allows(address):
            return None
        # Opening an IPv4 network does not open it through an unknown translator.
        judged = inside[0] if address in NAT64 else address
        return next((reason for network, reason in FORBIDDEN if judged in network), None)


def _plain(address: Address) -> Address:
    """Return *address* without a zone, and an IPv4-mapped one as IPv4, as the kernel dials it."""
    if isinstance(address, IPv4Address):
        return address
    return address.ipv4_mapped or IPv6Address(int(address))


_SHAPE = re.compile(
    r"https?://(?P<host>\[[0-9a-f:.]+\]|[^\[\]@:%\\/?#]+)(?::(?P<port>[0-9]{1,5}))?(?:[/?#].*)?", re.I | re.A
)
_AUTHORITY_END = re.compile(r"[/?#]")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


@functools.lru_cache(maxsize=512)
def parse(url: str) -> tuple[httpx.URL, Address | None]:
    """
    Parse a URL whose host is exactly a name or exactly an address; raises UrlRefused for any other.

    Forms that other programs read as an address in disguise (`0x7f.1`, `2130706433`, `127.1`) are refused: nobody
    needs them, and checks are bypassed where two parsers differ. The messages never quote the URL, which may be a
    secret.
    """
    if len(url) > LONGEST_URL:
        raise UrlRefused(f"the URL is longer than {LONGEST_URL} characters")
    if any(char <= " " or char in "\\\x7f" or char.isspace() for char in url):
        raise UrlRefused("the URL holds white space, a control character or a backslash; percent-encode it")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        raise UrlRefused("the URL must begin with https://")
    authority = _AUTHORITY_END.split(rest, maxsplit=1)[0]
    if "@" in authority:
        raise UrlRefused("the URL must not carry a user name or password")
    shape = _SHAPE.fullmatch(url)
    if shape is None or len(authority) > 300:
        raise UrlRefused("the URL's host or port can't be read; write a plain host name or address")
    try:
        parsed = httpx.URL(url)
        host = parsed.raw_host.decode("ascii")
        _ = parsed.host  # fails for a name that is no encoded one although it says so: `xn--`
    except (httpx.InvalidURL, ValueError) as exc:
        raise UrlRefused("the URL can't be read") from exc
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    if int(shape["port"] or port) != port or port > 65535 or port in OTHER_SERVICES:
        raise UrlRefused(f"port {shape['port']} is not one that web servers are called at")
    return parsed, _literal(host)


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        pass
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        raise UrlRefused("the URL's host is a number; write an address as four decimal parts, or as [IPv6]")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise UrlRefused("the URL's host is not a host name (a dot at its end is refused too)")
    return None
