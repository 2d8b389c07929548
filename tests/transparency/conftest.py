"""Fixtures of the transparency suite."""

import pytest

from tests.support.node import NodeMissingError, install, is_everything_wanted


@pytest.fixture(scope="session")
def npm_packages() -> None:
    """The official TypeScript clients and public servers are there; without Node.js the test is skipped, or fails."""
    try:
        install()
    except NodeMissingError as exc:
        if is_everything_wanted():
            raise
        pytest.skip(str(exc))
