"""`GET /api/v1/whoami`: any live key learns whose it is, and nobody else anything."""

import httpx
import pytest
from km_server.store.values import Scope

from tests.server.clients import WAIT_S, open_api
from tests.server.conftest import Served


@pytest.mark.parametrize("scopes", [(Scope.INGEST,), (Scope.READ,), (Scope.READ, Scope.INGEST)])
def test_a_key_learns_whose_it_is(served: Served, scopes: tuple[Scope, ...]) -> None:
    with open_api(served.url, served.database_url, "who", *scopes) as api:
        answer = api.http.get("/api/v1/whoami")
    assert answer.status_code == 200
    told = answer.json()
    assert (told["tenant"], told["scopes"], told["expires_at_ns"]) == ("who", sorted(scopes), None)
    assert told["version"]
    assert "Km-Limit-Batch-Events" in answer.headers


@pytest.mark.parametrize("header", [None, "Bearer km_unknown", "Basic km_unknown"])
def test_nobody_else_learns_anything(served: Served, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = httpx.get(f"{served.url}/api/v1/whoami", headers=headers, timeout=WAIT_S)
    assert answer.status_code == 401
    assert set(answer.json()) == {"error"}
