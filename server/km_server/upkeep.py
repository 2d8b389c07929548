"""What a running server does for its store now and then: retention, and partitions ahead of time."""

import asyncio

import structlog

from km_server.errors import StoreError
from km_server.metrics import Metrics
from km_server.store.protocol import Store

AGAIN_S = 60.0
"""After a round that failed: the store may have been away for a moment."""

log = structlog.get_logger("km_server")


async def keep_up(store: Store, metrics: Metrics, every_s: float) -> None:
    """Round after round until it is cancelled; 0 is never. A round that fails is logged and tried again."""
    while every_s > 0:
        wait_s = every_s
        try:
            done = await store.maintain()
        except StoreError as exc:
            log.warning("upkeep_failed", reason=str(exc))
            wait_s = min(AGAIN_S, every_s)
        else:
            metrics.expired.inc(done.events_expired)
            if done.events_expired or done.partitions_made or done.partitions_dropped or done.events_refiled:
                log.info(
                    "upkeep",
                    events_expired=done.events_expired,
                    events_refiled=done.events_refiled,
                    partitions_made=done.partitions_made,
                    partitions_dropped=done.partitions_dropped,
                )
        await asyncio.sleep(wait_s)
