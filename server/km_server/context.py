"""What the application carries for its handlers, by typed key."""

from aiohttp import web

from km_server.config import ServerConfig
from km_server.store.protocol import Store

CONFIG = web.AppKey("config", ServerConfig)
STORE: web.AppKey[Store] = web.AppKey("store", Store)
