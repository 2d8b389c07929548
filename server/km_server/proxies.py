"""
Who asks, when a proxy asks for them. Pure.

A header is anybody's to write: X-Forwarded-For and X-Forwarded-Proto count only from a peer that the settings
name, and of the addresses in it only the last one that no such proxy wrote about itself.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from km_server.config import parse_networks

ADDRESS_MAX_CHARS = 64
HOPS_MAX = 32
"""Proxies in a row that are looked at."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Client:
    """Where a request came from; `trusted` says that a proxy of ours handed it on."""

    address: str
    scheme: str
    trusted: bool


@dataclass(frozen=True, slots=True)
class Proxies:
    """The peers that are believed."""

    networks: Sequence[Network]

    @classmethod
    def parse(cls, text: str) -> "Proxies":
        """Addresses and networks with commas between. Raises ConfigError."""
        return cls(parse_networks(text))

    def trusts(self, address: str) -> bool:
        """Whether an address is one of ours; what is no address is not."""
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return any(ip in network for network in self.networks)

    def identify(self, peer: str, scheme: str, headers: Mapping[str, str]) -> Client:
        """The client behind a request that *peer* sent over *scheme*."""
        if not self.trusts(peer):
            return Client(peer, scheme, trusted=False)
        address = peer
        for hop in reversed(headers.get("X-Forwarded-For", "").split(",")[-HOPS_MAX:]):
            address = clean_address(hop) or address
            if not self.trusts(address):
                break
        proto = headers.get("X-Forwarded-Proto", "").rpartition(",")[2].strip().lower()
        return Client(address, proto if proto in ("http", "https") else scheme, trusted=True)


def clean_address(text: str) -> str:
    """An address as it is written properly; empty for anything else."""
    text = text.strip()
    if len(text) > ADDRESS_MAX_CHARS:
        return ""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""
