"""What a request may say of images, sounds and videos to engines that somebody else wrote.

OpenAI's interface has them come along (a ``data:`` URL, or base64 in a field of its own) or gives
an address in the web. vLLM and SGLang take more, and are not asked for it: a name by which they
find what was sent earlier, whoever sent it, and SGLang the path of a file where it runs. Read in
vLLM 0.33.0, ``vllm/renderers/chat_utils/chat_message.py``, and SGLang 0.5.23,
``sglang/srt/entrypoints/openai/protocol.py`` and ``sglang/srt/utils/common.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

_NAMES: Final = ("content_hash", "uuid")
_REFERENCES: Final = ("audio_url", "image_url", "video_url")
"""In parts of messages, and of what is ranked: an address, or an object with a ``url``."""
_EMBEDDED: Final = ("audio", "image", "video")
"""In what SGLang embeds: an address."""
_HELD: Final = frozenset(
    {*_REFERENCES, "audio_embeds", "image_embeds", "image_pil", "input_audio", "type"}
)
"""A part is one by any of these."""
_ADDRESSES: Final = ("data:", "http://", "https://")


def refused_medium(body: Mapping[str, Any]) -> str | None:
    """Why a medium of `body` is refused, None if none is. Repeats nothing of the body."""
    for part in _parts(body):
        references = [part[name] for name in _REFERENCES if name in part]
        for holder in (part, *references):
            named = [name for name in _NAMES if isinstance(holder, dict) and name in holder]
            if named:
                return f"the field '{named[0]}' of a message's part is not accepted here"
        for reference in references:
            address = reference.get("url") if isinstance(reference, dict) else reference
            if not _is_address(address):
                return _NO_ADDRESS
    for embedded in _dicts(body.get("input")):
        if not all(_is_address(embedded.get(name)) for name in _EMBEDDED):
            return _NO_ADDRESS
    return None


_NO_ADDRESS: Final = (
    "an image, sound or video is given as a data: URL or by an http(s) address, and nothing else"
)


def _is_address(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.startswith(_ADDRESSES))


def _parts(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every part of every message, and of what is embedded or ranked, whatever else is in there."""
    for message in _dicts(body.get("messages")):
        yield from _dicts(message.get("content"))
    for name in ("input", "query", "documents"):
        held = body.get(name)
        for item in held if isinstance(held, list) else (held,):
            for one in _dicts(item):
                yield from (
                    part for part in (one, *_dicts(one.get("content"))) if _HELD & part.keys()
                )


def _dicts(value: object) -> Iterator[dict[str, Any]]:
    """`value` if it is an object, those in it if it is a list."""
    yield from (
        one for one in (value if isinstance(value, list) else (value,)) if isinstance(one, dict)
    )
