"""What the operator decides and nobody measures: where a worker listens, whom it serves."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import ConfigurationError
from cloister.strictjson import JsonObject
from cloister.worker.settings import RateLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """The operator's part of a hand-over."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free one; the ready message says which."""
    api_keys: Path | None = None
    operator_socket: Path | None = None
    """None puts it into the worker's private directory."""
    threads: int | None = None
    """Of the engine; None leaves one core to the worker."""
    upstream: str | None = None
    """Address of an engine that somebody else runs, where the configuration names such."""
    rate_per_minute: int = 600
    rate_burst: int = 120
    """Per API key."""
    repo_url: str | None = None
    repo_commit: str | None = None
    """Source provenance for the report; nothing binds it."""

    def __post_init__(self) -> None:
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            raise ConfigurationError(
                "a worker listens on an IP address, not on a name", code="configuration.listen"
            ) from None

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the worker directly."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def rate(self) -> RateLimit:
        """The rate limit of each API key."""
        return RateLimit(per_minute=self.rate_per_minute, burst=self.rate_burst)

    @property
    def provenance(self) -> JsonObject | None:
        """``source_provenance`` of the report (`aci/1` section 4.1)."""
        if self.repo_url is None:
            return None
        return {
            "repo_url": self.repo_url,
            "repo_commit": self.repo_commit,
            "image_digest": None,
            "image_provenance": None,
        }

    def to_json(self) -> JsonObject:
        """What the launcher passes on.

        Paths become absolute here, where ``~`` and the current directory are the operator's: a
        worker that looked for its table of API keys elsewhere would find none, and be open.
        """
        values: JsonObject = {}
        for name in self.__slots__:
            value = getattr(self, name)
            values[name] = str(value.expanduser().absolute()) if isinstance(value, Path) else value
        return values

    @classmethod
    def from_json(cls, members: JsonObject) -> Operation:
        """Read it back; ConfigurationError if a member is unknown or of another type."""
        values: dict[str, object] = {}
        for name, value in members.items():
            expected = _TYPES.get(name)
            if expected is None or not (value is None or type(value) is expected):
                raise ConfigurationError(
                    "the operator's settings do not decode", code="configuration.operator"
                )
            is_path = name in ("api_keys", "operator_socket") and value is not None
            values[name] = Path(str(value)) if is_path else value
            if is_path and not Path(str(value)).is_absolute():
                raise ConfigurationError(
                    "the worker needs absolute paths", code="configuration.operator"
                )
        return cls(**values)  # type: ignore[arg-type]  # checked against _TYPES above


_TYPES: dict[str, type] = {
    "host": str,
    "port": int,
    "api_keys": str,
    "operator_socket": str,
    "threads": int,
    "upstream": str,
    "rate_per_minute": int,
    "rate_burst": int,
    "repo_url": str,
    "repo_commit": str,
}
