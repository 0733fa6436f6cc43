"""The application disk of an image with sealed weights: nothing of it is left to the guest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloister.attester.guest_settings import read_settings
from cloister.attester.handover import MeasuredFile
from cloister.attester.memory import WorkerMemory
from cloister.cli import image_build
from cloister.errors import ConfigurationError
from cloister.image.application import application_tree
from cloister.image.lock import read_lock
from cloister.model_digest import Role
from cloister.verifier.policy import strict
from support.manifests import IMAGE as IMAGE_ENTRY
from support.owners import SealedDemo, sealed_demo

IDENTITY = "ed25519:" + "0a" * 32
IMAGE = f"""
configuration = 1
name = "sealed"
version = "1"

[[model]]
name = "secret"
file = "demo.sealed"

[[model]]
name = "open"
file = "demo"

[broker]
peer = "keys"
identity = "{IDENTITY}"
kit = "kit"

[network]
listen = [8440]
allow_out = [{{ name = "keys", address = "10.0.2.100", port = 8450 }}]
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> SealedDemo:
    return sealed_demo(tmp_path_factory.mktemp("owner") / "demo.sealed")


@pytest.fixture
def folder(demo: SealedDemo, tmp_path: Path) -> Path:
    (tmp_path / "demo.sealed").symlink_to(demo.path)
    kit = tmp_path / "kit"
    kit.mkdir()
    (kit / "policy.toml").write_text(strict().dump_toml())
    (kit / "reference-values.json").write_text(IMAGE_ENTRY.reference_values.dump_json())
    (kit / "notes.txt").write_text("whatever lies beside")
    return tmp_path


def disk(folder: Path, text: str = IMAGE) -> dict[str, bytes]:
    (folder / "image.toml").write_text(text)
    made = image_build.ingredients_of(folder / "image.toml", read_lock(None))
    tree = application_tree(
        made.configuration,
        made.effective,
        models=[model for model, _ in made.models],
        broker_kit=made.broker_kit,
    )
    return {path: item.content for path, item in tree.items.items()}


def test_what_the_worker_reads(demo: SealedDemo, folder: Path) -> None:
    files = disk(folder)
    settings = read_settings(files["worker.json"])
    (sealed,) = settings.models["secret"].values()
    assert sealed == MeasuredFile(
        name="secret",
        path=Path("/model/secret.sealed"),
        sha256=demo.header.model_sha256,
        sealed=True,
    )
    assert not settings.models["open"][Role.MODEL].sealed
    assert settings.memory == WorkerMemory(size=demo.header.plaintext_bytes, files=1)
    assert settings.takes_keys
    assert settings.operator["broker"] == "http://10.0.2.100:8450"
    assert settings.operator["broker_kit"] == "/application/broker"
    assert {name for name in files if name.startswith("broker/")} == {
        "broker/policy.toml",
        "broker/reference-values.json",
    }


def test_what_is_measured_names_broker_weights_and_the_one_way_out(
    demo: SealedDemo, folder: Path
) -> None:
    files = disk(folder)
    effective: dict[str, Any] = json.loads(files["configuration.json"])
    worker = effective["worker"]
    assert worker["broker"]["identity"] == IDENTITY
    assert worker["broker"]["evidence"].startswith("sha256:")
    assert worker["broker"]["development"] is False
    assert worker["egress"] == ["10.0.2.100:8450"]
    assert worker["engines"][0]["model"]["sealed"] == demo.header.sha256
    assert effective["models"][0]["sealed"] == demo.header.sha256
    assert "sealed" not in effective["models"][1]
    rules = files["nftables.conf"].decode()
    lines = [line.strip() for line in rules.splitlines() if "daddr" in line]
    assert lines == [
        "ip daddr 10.0.2.100 tcp dport 8450 ct state new,established accept # keys",
        "ip daddr 10.0.2.100 tcp dport 8450 accept # keys",
    ]
    assert demo.key not in b"".join(files.values())
    assert demo.key.hex() not in b"".join(files.values()).decode()


def test_without_a_broker_nothing_is_said_of_one(folder: Path) -> None:
    text = IMAGE.replace('"demo.sealed"', '"demo"')
    plain = disk(folder, text[: text.index("[broker]")] + "[network]\nlisten = [8440]\n")
    settings = read_settings(plain["worker.json"])
    assert settings.memory is None
    assert not settings.takes_keys
    assert "egress" not in settings.configuration
    assert "broker" not in settings.operator


def test_without_a_card_ports_of_the_machine_stand_in_what_is_measured(folder: Path) -> None:
    text = IMAGE[: IMAGE.index("[network]")].replace('peer = "keys"\n', "")
    files = disk(folder, text + "[network]\ncard = false\n")
    settings = read_settings(files["worker.json"])
    broker = "virtio:/dev/virtio-ports/cloister.broker"
    assert settings.operator["listen"] == "virtio:/dev/virtio-ports/cloister.requests"
    assert settings.operator["broker"] == broker
    assert settings.configuration["egress"] == [broker]
    effective = json.loads(files["configuration.json"])
    assert effective["broker"] == broker
    assert effective["network"]["card"] is False
    assert effective["operator"] == settings.operator
    assert "interface.conf" not in files
    rules = files["nftables.conf"].decode()
    assert "eth0" not in rules
    assert rules.count("policy drop;") == 3
    assert "dport" not in rules


def test_sealed_weights_need_a_broker(folder: Path) -> None:
    disk(folder)
    with pytest.raises(ConfigurationError, match="lie sealed: say in") as caught:
        disk(folder, IMAGE[: IMAGE.index("[broker]")] + "[network]\nlisten = [8440]\n")
    assert caught.value.code == "image.broker"


def test_another_model_than_the_pinned_one(demo: SealedDemo, folder: Path) -> None:
    named = IMAGE.replace('"demo.sealed"', f'"demo.sealed"\nsha256 = "{demo.header.model_sha256}"')
    disk(folder, named)
    with pytest.raises(ConfigurationError) as caught:
        disk(folder, named.replace(demo.header.model_sha256, "00" * 32))
    assert caught.value.code == "configuration.model_digest"


@pytest.mark.parametrize("missing", ["policy.toml", "reference-values.json"])
def test_a_kit_that_is_not_whole(missing: str, folder: Path) -> None:
    disk(folder)
    (folder / "kit" / missing).unlink()
    with pytest.raises(ConfigurationError) as caught:
        disk(folder)
    assert caught.value.code == "configuration.broker"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"memory": {"size": 0, "files": 1}}, "a size"),
        ({"memory": {"size": 5}}, "the memory"),
        ({"memory": None}, "the memory"),
    ],
)
def test_settings_that_say_no_memory(change: dict[str, Any], said: str, folder: Path) -> None:
    good = json.loads(disk(folder)["worker.json"])
    read_settings(json.dumps(good).encode())
    with pytest.raises(ConfigurationError, match=said) as caught:
        read_settings(json.dumps({**good, **change}).encode())
    assert caught.value.code == "configuration.guest"


@pytest.mark.parametrize("word", [False, "yes", 1, None])
def test_a_file_is_sealed_or_says_nothing_of_it(word: object, folder: Path) -> None:
    good = json.loads(disk(folder)["worker.json"])
    read_settings(json.dumps(good).encode())
    good["models"]["secret"]["model"]["sealed"] = word
    with pytest.raises(ConfigurationError):
        read_settings(json.dumps(good).encode())


def test_an_enclave_listens_on_vsock_and_lets_nothing_pass(folder: Path) -> None:
    head = IMAGE[: IMAGE.index("[[model]]")]
    text = head + 'platform = "nitro"\n[[model]]\nname = "open"\nfile = "demo"\n'
    files = disk(folder, text)
    settings = read_settings(files["worker.json"])
    assert settings.platform == "nitro"
    assert settings.operator["listen"] == "vsock://any:8440"
    assert json.loads(files["configuration.json"])["platform"] == "nitro"
    rules = files["nftables.conf"].decode()
    assert "policy drop" in rules
    assert "netdev" not in rules  # they name a card, and would not load without one
    assert "interface.conf" not in files


@pytest.mark.parametrize("platform", ["tpm-boot", "sev-snp", "tdx"])
def test_the_worker_makes_evidence_of_the_platform_that_the_image_is_for(
    platform: str, folder: Path
) -> None:
    head = IMAGE[: IMAGE.index("[[model]]")]
    rest = IMAGE[IMAGE.index("[[model]]") :]
    files = disk(folder, f'{head}platform = "{platform}"\n{rest}')
    assert read_settings(files["worker.json"]).platform == platform
    assert json.loads(files["configuration.json"])["platform"] == platform
    if platform == "tpm-boot":
        assert files == disk(folder)
