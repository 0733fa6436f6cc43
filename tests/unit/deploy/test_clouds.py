"""Cloud recipes: parameters by the platforms' own models, filters, words that are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.deploy import aws_machine, azure, google
from cloister.deploy.apply import Effects, apply
from cloister.deploy.aws_nitro import Enclave, aws_nitro_plan
from cloister.deploy.ingress import Filter, Peer, make_filter
from cloister.deploy.plan import Plan, Run, Write
from cloister.errors import ConfigurationError
from support.cloud_plans import (
    AWS_PLACE,
    AZURE_PLACE,
    GOOGLE_PLACE,
    PLATFORMS,
    allowed,
    answers,
    by_query,
    plan_of,
)
from support.deployments import Recorder, built_for, deployment

Protection = aws_machine.Protection


@pytest.mark.parametrize("sources", [[], ["203.0.113.7/24"], ["any", "all"], ["0.0.0.0"]])
def test_filters_name_somebody_by_address(sources: list[str]) -> None:
    peer = Peer(address="2001:db8::7", port=443)
    good = make_filter(8440, ["any", "any", "203.0.113.0/24"], (peer,))
    assert good.sources == ("0.0.0.0/0", "203.0.113.0/24")
    assert peer.range == "2001:db8::7/128"
    if sources != ["0.0.0.0"]:
        with pytest.raises(ConfigurationError) as caught:
            make_filter(8440, sources, ())
        assert caught.value.code == "deploy.range"
    else:
        assert make_filter(8440, sources, ()).sources == ("0.0.0.0/32",)


def test_whoever_makes_a_filter_its_ranges_are_checked() -> None:
    good = Filter(port=1, sources=("fe80::/64",), peers=(Peer(address="fe80::1", port=1),))
    assert good.peers[0].range == "fe80::1/128"
    for change in (
        {"sources": ("fe80::%${id}/64",)},
        {"sources": ("10.0.0.0/8,0.0.0.0/0",)},
        {"peers": (Peer(address="fe80::1%,::", port=1),)},
    ):
        with pytest.raises(ConfigurationError) as caught:
            replace(good, **change)
        assert caught.value.code == "deploy.range"


@pytest.mark.parametrize(
    ("place", "field", "value"),
    [
        (AWS_PLACE, "region", "us-east-2 --profile x"),
        (AWS_PLACE, "bucket", "a/../b"),
        (AWS_PLACE, "bucket", "-b"),
        (AWS_PLACE, "vpc", "vpc-1,Name=x"),
        (AWS_PLACE, "subnet", "subnet-0123abcd'"),
        (AWS_PLACE, "machine_type", "m6a.large${x}"),
        (GOOGLE_PLACE, "project", "my-project --impersonate-service-account=x"),
        (GOOGLE_PLACE, "zone", "us-central1-a,x"),
        (GOOGLE_PLACE, "network", "default,no-address"),
        (GOOGLE_PLACE, "subnet", "a,network=b"),
        (AZURE_PLACE, "group", "a b"),
        (AZURE_PLACE, "storage_account", "x.evil.example/"),
        (AZURE_PLACE, "container", "a/b"),
        (AZURE_PLACE, "gallery", "a'b"),
        (AZURE_PLACE, "version", "1.0.0'].id"),
        (AZURE_PLACE, "network", "/subscriptions/x"),
    ],
)
def test_words_of_places_are_refused(
    place: aws_machine.Place | google.Place | azure.Place, field: str, value: str
) -> None:
    assert replace(place) == place
    with pytest.raises(ConfigurationError) as caught:
        replace(place, **{field: value})  # type: ignore[arg-type]  # a field of each
    assert caught.value.code == "deploy.word"


def written(plan: Plan, step: str) -> dict[str, object]:
    """The file that a step wrote when the plan was carried out."""
    (path,) = [one.path for one in plan.steps if isinstance(one, Write) and one.id == step]
    document = json.loads(path.read_text())
    assert isinstance(document, dict)
    return document


@pytest.fixture(params=["aws-snp", "aws-nitrotpm"])
def done(request: pytest.FixtureRequest, tmp_path: Path) -> Plan:
    """A plan for AWS that was carried out."""
    plan = plan_of(request.param, tmp_path)
    tools = Recorder(answers(plan))
    effects = Effects(
        run=lambda argv, /: by_query(argv) or tools(argv),
        sleep=lambda _: None,
        which=lambda name: name,
    )
    apply(plan, effects, tell=lambda *_: None)
    return plan


def test_aws_takes_every_parameter(done: Plan) -> None:
    pytest.importorskip("botocore", reason="needs botocore, which moto brings")
    import botocore.session
    from botocore.validate import ParamValidator

    model = botocore.session.Session().get_service_model("ec2")
    calls = {
        "import-request": "ImportSnapshot",
        "image-request": "RegisterImage",
        "in-request": "AuthorizeSecurityGroupIngress",
        "out-request": "AuthorizeSecurityGroupEgress",
        "instance-request": "RunInstances",
    }
    for step, operation in calls.items():
        shape = model.operation_model(operation).input_shape
        parameters = written(done, step)
        report = ParamValidator().validate(parameters, shape)
        assert not report.has_errors(), report.generate_report()
        assert all(value in choices for value, choices in enumerated(shape, parameters))
        assert ParamValidator().validate({**parameters, "Debug": True}, shape).has_errors()
    for one in done.steps:
        if not isinstance(one, Run) or one.argv[3] != "ec2" or one.argv[4] == "wait":
            continue
        name = "".join(part.title() for part in str(one.argv[4]).split("-"))
        members = model.operation_model(name).input_shape.members
        known = {"--" + botocore.xform_name(member, "-") for member in members}
        # The command line's own words, for every operation and for rules of a group.
        known |= {"--cli-input-json", "--query", "--output", "--protocol", "--cidr"}
        flags = {word for word in one.argv[5:] if isinstance(word, str) and word[:2] == "--"}
        assert flags <= known, name


def enumerated(shape: Any, value: object) -> list[tuple[str, list[str]]]:
    """Every value of a parameter whose values the model lists, with that list."""
    found: list[tuple[str, list[str]]] = []
    if isinstance(value, dict):
        for name, one in value.items():
            found += enumerated(shape.members[name], one)
    elif isinstance(value, list):
        for one in value:
            found += enumerated(shape.member, one)
    elif isinstance(value, str) and getattr(shape, "enum", None):
        found.append((value, shape.enum))
    return found


def test_an_instance_gets_no_key_no_role_and_no_metadata(done: Plan) -> None:
    request = written(done, "instance-request")
    assert not {"KeyName", "IamInstanceProfile", "UserData"} & request.keys()
    assert request["MetadataOptions"] == {"HttpEndpoint": "disabled", "HttpTokens": "required"}
    snp = {"AmdSevSnp": "enabled"} if done.target == "aws-snp" else None
    assert request.get("CpuOptions") == snp
    assert request["PrivateIpAddress"] == "10.0.2.15"
    assert (request["ImageId"], request["SecurityGroupIds"]) == ("ami-0123abcd", ["sg-0123abcd"])
    image = written(done, "image-request")
    # Under SEV-SNP too: nothing else there measures the image.
    assert (image["BootMode"], image["TpmSupport"]) == ("uefi", "v2.0")


def test_what_is_let_through_is_what_was_named(done: Plan) -> None:
    assert written(done, "in-request")["IpPermissions"] == [
        {
            "IpProtocol": "tcp",
            "FromPort": 8440,
            "ToPort": 8440,
            "IpRanges": [{"CidrIp": "203.0.113.0/24"}],
            "Ipv6Ranges": [{"CidrIpv6": "2001:db8::/32"}],
        }
    ]
    peers = written(done, "out-request")["IpPermissions"]
    assert peers == [
        {
            "IpProtocol": "tcp",
            "FromPort": 8441,
            "ToPort": 8441,
            "IpRanges": [{"CidrIp": "198.51.100.7/32"}],
        }
    ]
    ids = [step.id for step in done.steps]
    assert ids.index("nothing-out") < ids.index("instance")
    assert ids.index("in") < ids.index("instance")


@pytest.mark.parametrize("kind", google.Kind)
def test_a_machine_of_googles_is_confidential_or_said_not_to_be(
    kind: google.Kind, tmp_path: Path
) -> None:
    plan = plan_of(f"google-{kind}", tmp_path)
    (machine,) = [one for one in plan.steps if isinstance(one, Run) and one.id == "machine"]
    words = {str(word).partition("=")[0] for word in machine.argv}
    # Every kind has a TPM, and none trusts signatures of others than its own image's.
    assert {"--shielded-vtpm", "--shielded-integrity-monitoring"} <= words
    assert "--no-shielded-secure-boot" in words
    (made,) = [one for one in plan.steps if isinstance(one, Run) and one.id == "image"]
    (features,) = [word for word in made.argv if str(word).startswith("--guest-os-features=")]
    protected = kind is not google.Kind.VTPM
    assert ("--confidential-compute-type" in words) == protected
    assert ("--maintenance-policy" in words) == protected
    assert ("_CAPABLE" in str(features)) == protected
    assert (google.UNPROTECTED in plan.notes) != protected
    assert set(google.NOTES) <= set(plan.notes)


@pytest.mark.parametrize("target", ["google-snp", "google-vtpm", "azure"])
def test_everything_else_is_shut_before_the_machine_starts(target: str, tmp_path: Path) -> None:
    steps = plan_of(target, tmp_path).steps
    ids = [step.id for step in steps]
    prefix = "nsg" if target == "azure" else "firewall"
    for rule in ("in", "no-in", "no-out"):
        assert ids.index(f"{prefix}-{rule}") < ids.index("machine")


def test_a_machine_has_a_public_address_only_where_somebody_wants_one(tmp_path: Path) -> None:
    what = deployment(tmp_path)
    at_azure, at_google = (built_for(what, PLATFORMS[one]) for one in ("azure", "google-snp"))
    for public in (False, True):
        plan = azure.azure_plan(at_azure, replace(AZURE_PLACE, public=public), allowed(what))
        (machine,) = [step for step in plan.steps if isinstance(step, Run) and step.id == "machine"]
        at = machine.argv.index("--private-ip-address")
        assert machine.argv[at + 1] == "10.0.2.15"
        at = machine.argv.index("--public-ip-address")
        assert machine.argv[at + 1] == ("cloister-web-ip" if public else "")
        assert ("public-address" in [step.id for step in plan.steps]) == public
        google_one = google.google_plan(
            at_google, replace(GOOGLE_PLACE, public=public), allowed(what), google.Kind.SNP
        )
        (machine,) = [
            step for step in google_one.steps if isinstance(step, Run) and step.id == "machine"
        ]
        (card,) = [str(word) for word in machine.argv if "--network-interface" in str(word)]
        assert (",no-address" in card) != public
        assert ",private-network-ip=10.0.2.15" in card


def test_an_enclave_has_room_for_its_image(tmp_path: Path) -> None:
    plan_of("aws-nitro", tmp_path)
    what = built_for(deployment(tmp_path), "nitro")
    eif = tmp_path / "image" / "image.eif"
    aws_nitro_plan(what, Enclave(vcpus=2, memory_mib=64))
    large = replace(
        what,
        image=replace(
            what.image, files={"eif": replace(what.image.file("eif"), size=16 * (1 << 20) + 1)}
        ),
    )
    with pytest.raises(ConfigurationError, match="65 MiB") as caught:
        aws_nitro_plan(large, Enclave(vcpus=2, memory_mib=64))
    assert caught.value.code == "deploy.machine"
    eif.write_bytes(b".eif nonsense")
    with pytest.raises(ConfigurationError) as caught:
        aws_nitro_plan(what, Enclave(vcpus=2, memory_mib=64))
    assert caught.value.code == "deploy.image"


@pytest.mark.parametrize(
    "changes",
    [
        *({"vcpus": 0}, {"memory_mib": 63}, {"cid": 3}, {"cid": 1 << 32}),
        *({"listen": "0.0.0.0:1 x"}, {"program": Path("/a b")}, {"program": Path("/a\nUser=root")}),
    ],
)
def test_an_enclaves_values_stay_values(changes: dict[str, object]) -> None:
    good = Enclave(vcpus=2, memory_mib=64)
    with pytest.raises(ConfigurationError):
        replace(good, **changes)  # type: ignore[arg-type]  # its own fields


def test_the_forwarder_may_do_nothing_but_forward(tmp_path: Path) -> None:
    plan = plan_of("aws-nitro", tmp_path)
    (unit,) = [one for one in plan.steps if isinstance(one, Write) and one.id == "forward"]
    lines = str(unit.content).splitlines()
    assert "ExecStart=/usr/local/bin/cloister forward tcp://0.0.0.0:8440 vsock://16:8440" in lines
    assert {"DynamicUser=yes", "NoNewPrivileges=yes", "CapabilityBoundingSet="} <= set(lines)


@pytest.mark.parametrize(
    ("machine_type", "platforms"),
    [
        ("Standard_DC4as_v5", ("azure-snp",)),
        ("Standard_EC8ads_v5", ("azure-snp",)),
        ("Standard_NCC40ads_H100_v5", ("azure-snp",)),
        ("Standard_DC4es_v6", ("azure-tdx",)),
        ("Standard_EC16eds_v5", ("azure-tdx",)),
        ("Standard_D4s_v5", ("azure-snp", "azure-tdx")),
    ],
)
def test_a_machine_of_azures_takes_images_for_its_processor(
    machine_type: str, platforms: tuple[str, ...], tmp_path: Path
) -> None:
    what = deployment(tmp_path)
    place = replace(AZURE_PLACE, machine_type=machine_type)
    for platform in ("azure-snp", "azure-tdx"):
        made = built_for(what, platform)
        if platform in platforms:
            azure.azure_plan(made, place, allowed(what))
            continue
        with pytest.raises(ConfigurationError, match=f'platform = "{platforms[0]}"') as caught:
            azure.azure_plan(made, place, allowed(what))
        assert caught.value.code == "deploy.platform"
