"""What senders had to give up, told to both stores: it only grows, each tenant has its own, and there is an end."""

import asyncio

import pytest
from km_server.store import senders

from tests.server.clients import make_tenant
from tests.server.story import opened


def test_a_count_only_grows(store_url: str) -> None:
    async def scenario() -> None:
        async with opened(store_url) as (store, tenant):
            other = store.bind(await make_tenant(store, "other"))
            for lost in (5, 9, 7):
                await tenant.note_sender("laptop", lost)
            await tenant.note_sender("ci", 2**63 - 1)
            await other.note_sender("laptop", 1)
            assert [(one.name, one.lost_events) for one in await tenant.list_senders()] == [
                ("ci", 2**63 - 1),
                ("laptop", 9),
            ]
            assert [(one.name, one.lost_events) for one in await other.list_senders()] == [("laptop", 1)]

    asyncio.run(scenario())


def test_there_is_an_end_to_senders(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are known still count on."""
    monkeypatch.setattr(senders, "SENDERS_MAX", 2)

    async def scenario() -> None:
        async with opened(store_url) as (_, tenant):
            for number in range(4):
                await tenant.note_sender(f"s{number}", 1)
            await tenant.note_sender("s0", 5)
            assert [(one.name, one.lost_events) for one in await tenant.list_senders()] == [("s0", 5), ("s1", 1)]

    asyncio.run(scenario())
