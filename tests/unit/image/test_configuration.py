"""``image.toml``: what is read, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.errors import ConfigurationError
from cloister.evidence.component import CONFIGURATION_EGRESS
from cloister.image.application import ways_out
from cloister.image.configuration import (
    MAX_CONFIGURATION_BYTES,
    ImageConfiguration,
    parse_configuration,
)
from cloister.image.network import compile_rules

WHOLE = """
configuration = 1
name = "demo"
version = "1.0"

[[model]]
name = "demo"
file = "demo"

[engine]
context = 512
parallel = 2

[network]
listen = [8440]
address = "192.0.2.9/24"
gateway = "192.0.2.1"
allow_out = [{name = "broker", address = "192.0.2.7", port = 8443}]

[broker]
peer = "broker"
identity = "ed25519:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
kit = "kit"

[separation]
mode = "process-per-client"

[limits]
rate_per_minute = 60
"""


def parsed(text: str) -> ImageConfiguration:
    return parse_configuration(text.encode(), folder=Path("/somewhere"))


def test_a_whole_configuration_is_read() -> None:
    found = parsed(WHOLE)
    assert (found.name, found.version, found.debug) == ("demo", "1.0", False)
    assert [(model.name, model.file) for model in found.models] == [("demo", "demo")]
    assert found.engine.context == 512
    assert found.network.listen == (8440,)
    assert str(found.network.allow_out[0].address) == "192.0.2.7"
    assert found.separation.mode == "process-per-client"
    assert found.path("model.gguf") == Path("/somewhere/model.gguf")
    assert found.broker is not None
    assert (found.broker.peer, found.broker.kit, found.broker.development) == (
        "broker",
        "kit",
        False,
    )
    assert found.broker_address == "http://192.0.2.7:8443"
    assert parsed(WHOLE.replace('kit = "kit"', "development = true")).broker is not None


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("configuration = 1", "configuration = 2", "has to be 1"),
        ('name = "demo"\nversion', 'nmae = "demo"\nversion', "lacks `name`"),
        (
            "[engine]",
            "[engine]\nthreads = 2",
            r"\[engine\] has members that are not known: threads",
        ),
        ("parallel = 2", "parallel = true", r"\[engine\] needs `parallel` to be a whole number"),
        ("parallel = 2", 'parallel = "2"', "whole number"),
        ("listen = [8440]", "listen = [0]", "from 1 to 65535"),
        ("listen = [8440]", "listen = [8440, 8440]", "each once"),
        ("listen = [8440]", "listen = []", "names no port"),
        ("listen = [8440]", "listen = [8440, 443]", "below 1024"),
        ("192.0.2.9/24", "192.0.2.9", "length of its network's prefix"),
        ('"192.0.2.9/24"', '["192.0.2.9/24", "192.0.3.9/24"]', "`address` is one"),
        ('gateway = "192.0.2.1"', 'gateway = "192.0.3.1"', "not another machine"),
        ('gateway = "192.0.2.1"', 'gateway = "192.0.2.9"', "not another machine"),
        ('gateway = "192.0.2.1"', 'gateway = "192.0.2.0"', "not another machine"),
        ('gateway = "192.0.2.1"', 'gateway = "192.0.2.255"', "not another machine"),
        ("192.0.2.9/24", "127.0.0.1/8", "not one that a card can have"),
        ("192.0.2.9/24", "224.0.0.9/4", "not one that a card can have"),
        ("192.0.2.9/24", "0.0.0.0/0", "not one that a card can have"),
        ("192.0.2.7", "broker.example", "no IP address; names are not looked up"),
        ("port = 8443", "port = 53", "name service"),
        ("192.0.2.7", "169.254.169.254", "metadata service"),
        ("192.0.2.7", "224.0.0.1", "nobody's"),
        ("192.0.2.7", "2001:db8::7", "of a family in which the guest has none"),
        ("192.0.2.9/24", "2001:db8::9/64", "sets up none"),
        ('peer = "broker"', 'peer = "other"', "names no peer"),
        ("ed25519:01", "ed25519:g1", "`identity` that is not written.*64 digits"),
        ('kit = "kit"', "", "`development = true`"),
        ('kit = "kit"', 'kits = "kit"', "`development = true`|kits"),
        ('kit = "kit"', 'kit = "kit"\naddress = "192.0.2.8"', "not known: address"),
        ("[engine]", 'broker = "broker"\n[engine]', "not TOML|known"),
        ('[[model]]\nname = "demo"\nfile = "demo"', "", "no .*model"),
        ("[[model]]", '[[model]]\nname = "demo"\nfile = "x"\n[[model]]', "two models"),
        ("[limits]", "[limits]\nrate_burst = 0", "rate_burst"),
        ('version = "1.0"', 'version = "1.0"\nflavour = "gpu"', "flavour"),
        ('version = "1.0"', 'version = "1.0"\ndebug = "no"', "true or false"),
        ('version = "1.0"', 'version = "1.0"\nversion = "2"', "not TOML"),
        ('version = "1.0"', 'version = "a b"', "not written as it should be.*letters, digits"),
    ],
)
def test_what_is_mistaken_is_refused_by_name(before: str, after: str, said: str) -> None:
    parsed(WHOLE)
    assert before in WHOLE
    with pytest.raises(ConfigurationError, match=said):
        parsed(WHOLE.replace(before, after))


@pytest.mark.parametrize(("address", "gateway"), [("192.0.2.9/31", "8"), ("192.0.2.9/30", "10")])
def test_the_smallest_networks_have_a_router(address: str, gateway: str) -> None:
    text = WHOLE.replace("192.0.2.9/24", address)
    (found,) = parsed(text.replace('"192.0.2.1"', f'"192.0.2.{gateway}"')).network.gateways
    assert str(found) == f"192.0.2.{gateway}"


def test_a_configuration_is_of_a_size_that_somebody_reads() -> None:
    longest = WHOLE.ljust(MAX_CONFIGURATION_BYTES, "\n")
    assert parsed(longest) == parsed(WHOLE)
    assert MAX_CONFIGURATION_BYTES == 256 * 1024
    with pytest.raises(ConfigurationError, match="at most 262144 bytes"):
        parsed(longest + "\n")


ENCLAVE = """
configuration = 1
name = "demo"
version = "1.0"
platform = "nitro"

[[model]]
name = "demo"
file = "demo"
"""


def test_an_enclave_has_no_network() -> None:
    found = parsed(ENCLAVE)
    assert found.is_enclave
    assert not parsed(WHOLE).is_enclave
    assert (found.network.listen, found.network.addresses) == ((), ())
    with pytest.raises(ConfigurationError, match="no network card"):
        parsed(ENCLAVE + "[network]\nlisten = [8440]\n")
    with pytest.raises(ConfigurationError, match="one of tpm-boot, sev-snp, tdx, nitro"):
        parsed(ENCLAVE.replace('"nitro"', '"sgx"'))


NETWORK = WHOLE[WHOLE.index("[network]") : WHOLE.index("[broker]")]
CARDLESS = WHOLE.replace(NETWORK, "[network]\ncard = false\n").replace('peer = "broker"\n', "")


def test_an_image_without_a_network_card() -> None:
    found = parsed(CARDLESS)
    assert found.network.to_json() == {
        "card": False,
        **{name: [] for name in ("listen", "allow_out", "address", "gateway")},
    }
    assert found.broker_address == "virtio:/dev/virtio-ports/cloister.broker"
    assert "card" not in parsed(WHOLE).network.to_json()
    broker = CARDLESS[CARDLESS.index("[broker]") : CARDLESS.index("[separation]")]
    assert parsed(CARDLESS.replace(broker, "")).broker_address is None


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("card = false", "card = false\nlisten = [8440]", "nothing else is said"),
        ("card = false", 'card = false\naddress = "192.0.2.9/24"', "nothing else is said"),
        ("card = false", 'card = false\ngateway = "192.0.2.9"', "nothing else is said"),
        (
            "card = false",
            'card = false\nallow_out = [{name = "b", address = "192.0.2.7", port = 1}]',
            "nothing else is said",
        ),
        ("card = false", "card = true\nlisten = [8440]", "names no peer"),
        ("card = false", 'card = "no"', "true or false"),
        ("[broker]", '[broker]\npeer = "broker"', "leave it out"),
    ],
    ids=range(7),
)
def test_what_goes_with_no_network_card(before: str, after: str, said: str) -> None:
    parsed(CARDLESS)
    with pytest.raises(ConfigurationError, match=said):
        parsed(CARDLESS.replace(before, after))


AZURES_NETWORK = """
[network]
listen = [8440]
address = "10.0.0.4/24"
gateway = "10.0.0.1"
allow_out = [{ name = "metadata", address = "169.254.169.254", port = 80 }]
"""


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (", port = 80", ", port = 81", "port = 80 }"),
        ("169.254.169.254", "169.254.169.253", 'address = "169.254.169.254"'),
        ('allow_out = [{ name = "metadata"', '# allow_out = [{ name = "x"', "metadata service"),
        ('gateway = "10.0.0.1"', "", "gateway"),
    ],
)
def test_an_image_for_azure_names_whom_it_asks(before: str, after: str, said: str) -> None:
    text = ENCLAVE.replace('"nitro"', '"azure-snp"') + AZURES_NETWORK
    read = parsed(text)
    assert [peer.authority for peer in read.network.allow_out] == ["169.254.169.254:80"]
    assert ways_out(read) == {CONFIGURATION_EGRESS: ["169.254.169.254:80"]}
    rules = compile_rules(read.network)
    assert rules.count("ip daddr 169.254.169.254 tcp dport 80") == 2
    assert rules.count("daddr") == 2
    with pytest.raises(ConfigurationError, match=said):
        parsed(text.replace(before, after))
    # Elsewhere nobody has to be asked.
    parsed(text.replace('"azure-snp"', '"gcp-snp"').replace(before, after))


@pytest.mark.parametrize(
    ("platform", "pinned"),
    [
        *(("tpm-boot", False), ("sev-snp", True), ("tdx", True), ("nitro", False)),
        *(("nitro-tpm", False), ("gcp-snp", False), ("gcp-tdx", True), ("gcp-vtpm", False)),
        *(("azure-snp", False), ("azure-tdx", False)),
    ],
)
def test_disks_are_pinned_where_nothing_measures_them_later(platform: str, pinned: bool) -> None:
    text = ENCLAVE.replace('"nitro"', f'"{platform}"')
    if platform.startswith("azure"):
        text += AZURES_NETWORK
    elif platform != "nitro":
        text += "[network]\nlisten = [8440]\n"
    assert parsed(text).pins_disks is pinned
    with pytest.raises(ConfigurationError, match="platform"):
        parsed(ENCLAVE.replace('"nitro"', '"sparc"'))
