"""Transactions of the broker: one at a time, durable, each with its audit entry.

SQLite keeps a write-ahead log that is flushed to the disk at every commit: a token that was spent
stays spent after a power cut. PostgreSQL does so by default. Every change first locks the one row
of ``broker_store`` (SQLite: the database), so what one broker decides, no other can have changed
meanwhile, and the audit log has one order.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection as SqlalchemyConnection
from sqlalchemy import (
    Engine,
    PoolProxiedConnection,
    Table,
    bindparam,
    create_engine,
    event,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.exc import OperationalError as SqlalchemyOperationalError

from cloister.broker import tables
from cloister.broker.audit import Head, encode_entry
from cloister.broker.statements import Connection, Prepared
from cloister.errors import ConfigurationError, FetchError
from cloister.strictjson import JsonObject

BUSY_S: Final = 30.0
"""How long a change waits for another broker's on the same SQLite file."""
_SQLITE: Final = "sqlite:///"
_READS: Final = "cloister_reads"
"""Of a connection of SQLAlchemy's: it waits for nobody's change."""

_NO_SUCH: Final = sqlite3.SQLITE_ERROR
"""SQLite's for a statement about a table or column that is not there, or is there already;
its class of errors does not tell that from being busy."""

_WRITING: Final = "READ COMMITTED"
_READING: Final = "REPEATABLE READ"
_COLUMNS: Final = tables.store.c
_LOCK: Final = Prepared(
    select(_COLUMNS.sequence, _COLUMNS.digest, _COLUMNS.at, _COLUMNS.rules).with_for_update()
)
_APPEND: Final = Prepared(insert(tables.audit))
_MOVE: Final = Prepared(
    update(tables.store).values(
        sequence=bindparam("to_sequence"),
        digest=bindparam("to_digest"),
        at=bindparam("to_at"),
        rules=bindparam("to_rules"),
    )
)


class Change:
    """One transaction that changes something. It has to record what, or it is undone."""

    def __init__(self, connection: Connection, *, head: Head, at: int, rules: int) -> None:
        self.connection = connection
        self.at = at
        """Unix time of this change; never before the one before it."""
        self.rules = rules
        self._head = head
        self._recorded = 0

    def record(self, event: str, detail: JsonObject, *, changes_rules: bool = False) -> None:
        """Add an entry to the audit log. With `changes_rules`, open sessions end with it."""
        entry = encode_entry(self._head, at=self.at, event=event, detail=detail)
        self._head = self._head.after(entry)
        self.connection.run(
            _APPEND, sequence=self._head.sequence, entry=entry, digest=self._head.digest
        )
        self._recorded += 1
        if changes_rules:
            self.rules = self._head.sequence

    def close(self) -> None:
        """Move the head. RuntimeError if nothing was recorded."""
        if not self._recorded:
            raise RuntimeError("a change of the store needs an entry in the audit log")
        self.connection.run(
            _MOVE,
            to_sequence=self._head.sequence,
            to_digest=self._head.digest,
            to_at=self.at,
            to_rules=self.rules,
        )


class Database:
    """A database that may hold a store. For several threads."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._errors: Any = engine.dialect.loaded_dbapi
        self._on_sqlite = engine.dialect.name == "sqlite"
        # SQLite has one change at a time, and who waits for another's sleeps and asks again:
        # threads of one broker take turns here, and are woken.
        self._turn = threading.Lock() if self._on_sqlite else contextlib.nullcontext()
        self._kept: list[PoolProxiedConnection] = []
        self._closed = False

    @classmethod
    def open(cls, address: str) -> Database:
        """Open ``sqlite:///FILE`` (made with mode 0600 if absent) or ``postgresql://…``.

        ConfigurationError (``broker.database``) if the address names neither, the file is not
        its owner's alone, or the package for it is not installed.
        """
        if address.startswith(_SQLITE):
            return cls(_sqlite(Path(address.removeprefix(_SQLITE))))
        try:
            url = make_url(address)
        except ArgumentError:
            url = None
        if url is None or url.get_backend_name() != "postgresql":
            raise _refused("a store is named sqlite:///FILE or postgresql://USER@HOST/DATABASE")
        url = url.set(drivername="postgresql+psycopg")
        try:
            # A connection that a restarted server closed is noticed before it is used.
            return cls(
                create_engine(
                    url, pool_pre_ping=True, hide_parameters=True, pool_reset_on_return=None
                )
            )
        except ModuleNotFoundError:
            raise _refused("PostgreSQL needs the package psycopg: cloister[postgres]") from None

    def close(self) -> None:
        """Close every connection; one that is in use, when it is not any more."""
        self._closed = True
        while self._kept:
            self._kept.pop().close()
        self.engine.dispose()

    def has(self, table: Table) -> bool:
        """Whether `table` is there. FetchError as `change`."""
        with self._converted(), self.engine.connect() as connection:
            return inspect(connection.execution_options(**{_READS: True})).has_table(table.name)

    def columns(self) -> dict[str, frozenset[str]]:
        """Names of the columns of every table, by its name. FetchError as `change`."""
        with self._converted(), self.engine.connect() as connection:
            found = inspect(connection.execution_options(**{_READS: True}))
            return {
                name: frozenset(column["name"] for column in found.get_columns(name))
                for name in found.get_table_names()
            }

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for reading, one consistent view."""
        with self._transaction(writes=False) as connection:
            yield connection

    @contextlib.contextmanager
    def change(self, *, at: float) -> Iterator[Change]:
        """A change at Unix time `at`: all of it and its audit entries, or nothing.

        Raises:
            ConfigurationError: there is no store here (``broker.no_store``).
            FetchError: the database cannot be reached, or stays busy (``broker.database``).
        """
        with self._turn, self._transaction(writes=True) as connection:
            row = connection.first(_LOCK)
            if row is None:
                raise no_store()
            head = Head(sequence=row.sequence, digest=row.digest)
            change = Change(connection, head=head, at=max(int(at), row.at), rules=row.rules)
            yield change
            change.close()

    @contextlib.contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Connection]:
        """Committed at the end, undone by any exception."""
        dialect = self.engine.dialect
        with self._converted(), self._connected() as pooled:
            driver: Any = pooled.dbapi_connection
            try:
                if self._on_sqlite:
                    driver.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
                else:
                    # Otherwise each statement that reads has a view of its own.
                    dialect.set_isolation_level(driver, _WRITING if writes else _READING)
                yield Connection(driver, dialect)
                dialect.do_commit(driver)
            except BaseException:
                try:
                    dialect.do_rollback(driver)
                except BaseException:
                    pooled.invalidate()  # it may hold a lock, or be within a transaction
                    raise
                raise

    @contextlib.contextmanager
    def _connected(self) -> Iterator[PoolProxiedConnection]:
        """A connection, for one transaction.

        Nobody closes those to a file of our own, so as many are kept as are in use at a time: what
        the pool does around each transaction takes longer than most of what is asked.
        """
        if not self._on_sqlite:
            with contextlib.closing(self.engine.raw_connection()) as pooled:
                yield pooled
            return
        try:
            pooled = self._kept.pop()
        except IndexError:
            pooled = self.engine.raw_connection()
        try:
            yield pooled
        finally:
            if pooled.is_valid and not self._closed:
                self._kept.append(pooled)
            else:
                pooled.close()

    @contextlib.contextmanager
    def _converted(self) -> Iterator[None]:
        """Their errors quote statements and parameters; ours do not."""
        try:
            yield
        except (self._errors.OperationalError, SqlalchemyOperationalError) as error:
            why = "cannot be reached, or is busy"
            if getattr(getattr(error, "orig", error), "sqlite_errorcode", None) == _NO_SUCH:
                why = "holds no store of this version's format, or somebody changed its tables"
            raise FetchError(f"the broker's database {why}", code="broker.database") from None
        except (self._errors.Error, SQLAlchemyError) as error:
            raise FetchError(
                f"the broker's database refused a statement ({type(error).__name__})",
                code="broker.database",
            ) from None


def no_store() -> ConfigurationError:
    """The error of a database without a store."""
    return ConfigurationError(
        "there is no store in this database; make one with `cloister broker init`",
        code="broker.no_store",
    )


def _sqlite(path: Path) -> Engine:
    path = path.expanduser().absolute()
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _refused(f"{path} cannot be opened: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise _refused(f"{path} must be a file that only its owner can read (mode 0600)")
    finally:
        os.close(descriptor)
    engine = create_engine(
        f"sqlite:///{path}",
        connect_args={"timeout": BUSY_S},
        hide_parameters=True,
        paramstyle="named",
        pool_reset_on_return=None,  # each transaction is ended where it began
        max_overflow=-1,  # there are as many as threads
    )

    @event.listens_for(engine, "connect")
    def settings(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, not at a first write
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: SqlalchemyConnection) -> None:
        reads = connection.get_execution_options().get(_READS, False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _refused(why: str) -> ConfigurationError:
    return ConfigurationError(why, code="broker.database")
