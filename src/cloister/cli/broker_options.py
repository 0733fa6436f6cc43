"""Options of a worker that gets keys from a broker; `serve` and `measure` share the measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.panels import ADDRESSES, KEYS
from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from cloister.worker.settings import BrokerSettings

Broker = Annotated[
    str | None,
    typer.Option(
        "--broker",
        metavar="URL",
        help="Where the broker listens that releases the keys of sealed weights.",
        rich_help_panel=ADDRESSES,
    ),
]
BrokerId = Annotated[
    str | None,
    typer.Option(
        "--broker-identity",
        metavar="ed25519:HEX",
        help="The only broker whose keys this worker takes, as `cloister broker identity` prints.",
        rich_help_panel=KEYS,
    ),
]
BrokerKit = Annotated[
    Path | None,
    typer.Option(
        "--broker-kit",
        help="A folder that says what the broker's own evidence has to satisfy: policy.toml, "
        "reference-values.json, enrolment-ca.pem.",
        rich_help_panel=KEYS,
    ),
]
DevelopmentBroker = Annotated[
    bool,
    typer.Option(
        "--development-broker",
        help="Accept a broker on a development platform, or without --broker-kit one that shows "
        "no evidence at all.",
        rich_help_panel=KEYS,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerOptions:
    """As given on the command line, what is measured of it."""

    identity: str | None = None
    kit: Path | None = None
    development: bool = False

    def settings(self) -> BrokerSettings | None:
        """What a worker is measured with; None without a broker. ConfigurationError."""
        from cloister.worker.releases import broker_settings

        if self.identity is None:
            if self.kit is not None or self.development:
                raise ConfigurationError(
                    "--broker-kit and --development-broker say nothing without --broker-identity",
                    code="configuration.broker",
                )
            return None
        kit = None if self.kit is None else self.kit.expanduser()
        return broker_settings(self.identity, kit, development=self.development)
