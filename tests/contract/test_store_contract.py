"""Every store keeps the promises of the contract suite."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slmops.control.store import Store
from slmops.control.store_sql import open_sqlite_store
from slmops.testing.contracts.store import StoreContract


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        store = open_sqlite_store(tmp_path / "control.db")
        yield store
        store.close()

    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Callable[[], Store]:
        return lambda: open_sqlite_store(tmp_path / "control.db")
