"""What the application and a request carry for their handlers, by typed key."""

from aiohttp import web

from km_server.config import ServerConfig
from km_server.connections import Door
from km_server.limits import BodyBudget, RateLimiter
from km_server.metrics import Metrics
from km_server.proxies import Proxies
from km_server.store.protocol import Store
from km_server.store.values import ApiKey

CONFIG = web.AppKey("config", ServerConfig)
STORE: web.AppKey[Store] = web.AppKey("store", Store)
METRICS = web.AppKey("metrics", Metrics)
PROXIES = web.AppKey("proxies", Proxies)
DOOR = web.AppKey("door", Door)
BODIES = web.AppKey("bodies", BodyBudget)
REQUEST_RATE = web.AppKey("request_rate", RateLimiter)
EVENT_RATE = web.AppKey("event_rate", RateLimiter)

REQUEST_ID = web.RequestKey("request_id", str)
KEY = web.RequestKey("key", ApiKey)
RATE_HEADERS: web.RequestKey[dict[str, str]] = web.RequestKey("rate_headers", dict)
"""The headers that tell the key of a request where it stands."""
