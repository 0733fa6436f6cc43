"""Folders of safetensors: what belongs there, and what their digest covers."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cloister.attester.tree import content_paths, hash_files, list_tree, tree_digest
from cloister.engine import model_folder
from cloister.engine.model_folder import MAX_FILES, describe_folder, open_folder
from cloister.engine.prepare import prepare_local
from cloister.errors import ConfigurationError, MalformedError
from support.stand_ins import folder, safetensors


def measured(path: Path) -> str:
    """What the launcher measures of a folder."""
    entries = list_tree(str(path))
    digests = hash_files(content_paths(entries), threads=1)
    return tree_digest(entries, digests).removeprefix("sha256:")


def test_the_digest_is_the_one_that_the_launcher_measures(tmp_path: Path) -> None:
    place = folder(tmp_path / "model", context=2048)
    (place / "extra").mkdir()
    (place / "extra" / "README.md").write_text("read me")
    facts = describe_folder(place)
    assert facts.sha256 == measured(place)
    assert (facts.context_length, facts.quantisation) == (2048, "bfloat16")


def test_it_is_written_down_in_a_form_that_anybody_can_compute(tmp_path: Path) -> None:
    place = folder(tmp_path / "model")
    lines = b"".join(
        hashlib.sha256((place / name).read_bytes()).hexdigest().encode() + b"  %b\n" % name.encode()
        for name in ("config.json", "model.safetensors", "tokenizer_config.json")
    )
    assert describe_folder(place).sha256 == hashlib.sha256(lines).hexdigest()


def test_every_byte_and_every_name_counts(tmp_path: Path) -> None:
    place = folder(tmp_path / "model")
    seen = {describe_folder(place).sha256}
    folder(place, content=bytes(7) + b"x")
    seen.add(describe_folder(place).sha256)
    (place / "tokenizer_config.json").rename(place / "special_tokens_map.json")
    seen.add(describe_folder(place).sha256)
    (place / "NOTICE").write_text("")
    seen.add(describe_folder(place).sha256)
    assert len(seen) == 4


@pytest.mark.parametrize(
    "name",
    [
        "modeling_llama.py",
        "weights.bin",
        "model.pt",
        "model.pkl",
        "x.so",
        ".gitattributes",
        "y.npz",
    ],
)
def test_what_may_hold_code_is_refused(tmp_path: Path, name: str) -> None:
    place = folder(tmp_path / "model")
    describe_folder(place)
    (place / name).write_bytes(b"x")
    with pytest.raises(ConfigurationError, match="may hold code") as caught:
        describe_folder(place)
    assert caught.value.code == "configuration.model_file"
    with pytest.raises(ConfigurationError), open_folder(place):
        pass


def test_links_and_pipes_are_refused(tmp_path: Path) -> None:
    place = folder(tmp_path / "model")
    (place / "LICENSE").write_text("licence")
    describe_folder(place)
    (place / "LICENSE").unlink()
    (tmp_path / "elsewhere").write_text("licence")
    (place / "LICENSE").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="LICENSE"):
        describe_folder(place)
    (place / "LICENSE").unlink()
    os.mkfifo(place / "LICENSE")
    with pytest.raises(ConfigurationError, match="LICENSE"):
        describe_folder(place)


def test_a_link_that_is_put_there_after_the_look_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder(tmp_path / "model")
    looked_at = sorted(path.name for path in place.iterdir())
    monkeypatch.setattr(model_folder, "_names", lambda _: looked_at)
    with open_folder(place) as opened:
        assert sorted(opened.descriptors) == looked_at
    (place / "config.json").rename(tmp_path / "elsewhere.json")
    (place / "config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ConfigurationError, match=r"config\.json"), open_folder(place):
        pass


def test_a_folder_that_is_prepared_can_be_served(tmp_path: Path) -> None:
    source = folder(tmp_path / "source")
    (source / "modeling_llama.py").write_text("print('ran')")
    prepare_local(source, tmp_path / "prepared")
    describe_folder(tmp_path / "prepared")
    with pytest.raises(ConfigurationError):
        describe_folder(source)


def test_files_are_what_they_are_called(tmp_path: Path) -> None:
    place = folder(tmp_path / "model")
    (place / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(MalformedError):
        describe_folder(place)
    safetensors(place / "model.safetensors")
    describe_folder(place)
    (place / "config.json").write_text("[]")
    with pytest.raises(MalformedError, match=r"config\.json"):
        describe_folder(place)


def test_what_is_hashed_is_what_is_shown(tmp_path: Path) -> None:
    place = folder(tmp_path / "model")
    whole = describe_folder(place).sha256
    with open_folder(place) as opened:
        (place / "model.safetensors").unlink()
        folder(place, content=bytes(7) + b"x")  # in the old one's place
        assert opened.digest() == whole
        shown = opened.shown_at("/model")
        assert sorted(shown) == [
            "/model/config.json", "/model/model.safetensors", "/model/tokenizer_config.json",
        ]  # fmt: skip
        assert shown["/model/model.safetensors"].read_bytes()[-1:] == b"\0"


def test_a_directory_that_is_no_model_is_not_read_through(tmp_path: Path) -> None:
    place = folder(tmp_path / "model")
    for at in range(MAX_FILES):
        (place / f"{at}.json").touch()
    with pytest.raises(ConfigurationError, match="more than"):
        describe_folder(place)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        describe_folder(tmp_path / "nowhere")
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model.gguf").touch()
    with pytest.raises(ConfigurationError, match="name a GGUF file itself"):
        describe_folder(tmp_path / "gguf")


def test_context_and_quantisation_are_found_where_they_are(tmp_path: Path) -> None:
    place = folder(tmp_path / "model")
    (place / "config.json").write_text(
        '{"text_config": {"max_position_embeddings": 77}, "quantization_config":'
        ' {"quant_method": "awq"}, "torch_dtype": "float16"}'
    )
    facts = describe_folder(place)
    assert (facts.context_length, facts.quantisation) == (77, "awq")
    (place / "config.json").write_text('{"max_position_embeddings": true}')
    facts = describe_folder(place)
    assert (facts.context_length, facts.quantisation) == (0, "")
