"""Parts of a message that reach the embedded engine: text and, with a projector, images.

Nothing else does. The engine's library would also take audio, video, addresses that it fetches
and files that it opens; it has no network and no file in its sandbox, and it is not even asked.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from cloister.engine import requests
from cloister.engine.image_size import TooManyPixelsError, image_size
from cloister.errors import EngineError

MAX_IMAGES: Final = 64
MAX_PIXELS: Final = 1 << 24
"""Of all images of a request together: 50 MB when decoded, some times that meanwhile. The engine
decodes those of every request that has arrived, however many wait."""

_TOO_MUCH: Final = (
    f"a request can have {MAX_IMAGES} images of {MAX_PIXELS} pixels together: send fewer, or "
    "smaller ones"
)
_DATA: Final = re.compile(r"data:image/[a-z+.-]{1,32};base64,", re.IGNORECASE)


def check_parts(messages: object, *, images: bool) -> None:
    """EngineError (`REQUEST_REFUSED`) for a part that the engine does not get.

    `images` says whether the model has a projector; looking at images takes time, up to half a
    second. What is not a list of messages is left to the engine.
    """
    count, left = 0, MAX_PIXELS
    for part in _parts(messages):
        match part.get("type"):
            case "text" if isinstance(part.get("text"), str):
                continue
            case "image_url" if images:
                count += 1
                if count > MAX_IMAGES:
                    raise _refuse(_TOO_MUCH)
                left -= _pixels(part.get("image_url"), most=left)
            case "image_url":
                raise _refuse("this model has no projector: it cannot read an 'image_url'")
            case _:
                raise _refuse("a part of a message can only be a 'text' or an 'image_url' here")


def _refuse(message: str) -> EngineError:
    return requests.refuse(message, field="messages")


def _parts(messages: object) -> Iterator[Mapping[str, Any]]:
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict):
                yield part


def _pixels(image: object, *, most: int) -> int:
    if not isinstance(image, dict) or image.keys() - {"url", "detail"}:
        raise _refuse("an 'image_url' is an object with a 'url'")
    if image.get("detail") not in (None, "auto"):
        raise _refuse("the 'detail' of an image can only be 'auto' here")
    url = image.get("url")
    head = _DATA.match(url) if isinstance(url, str) else None
    if head is None or not isinstance(url, str):
        raise _refuse("the 'url' of an image must begin with data:image/…;base64,")
    try:
        width, height = image_size(base64.b64decode(url[head.end() :], validate=True), most=most)
    except TooManyPixelsError:
        raise _refuse(_TOO_MUCH) from None
    except ValueError:
        raise _refuse("an image must be the base64 of a whole PNG, JPEG or GIF") from None
    return width * height
