"""Which parts of a message the embedded engine is given."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.engine.llama_parts import MAX_IMAGES, MAX_PIXELS, check_parts
from cloister.engine.protocol import REQUEST_REFUSED
from cloister.errors import EngineError
from support.pictures import data_url, gif_head, jpeg_head, png

PICTURE = data_url(png(2, 2))


def messages(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "what?"}, *parts]}]


def image(url: object = PICTURE, **more: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def refused(*parts: Any, images: bool = True) -> str:
    check_parts(messages(image()), images=True)
    with pytest.raises(EngineError) as caught:
        check_parts(messages(*parts), images=images)
    assert caught.value.code == REQUEST_REFUSED
    assert "canary" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "part",
    [
        image(),
        image(detail="auto"),
        image(detail=None),
        image(data_url(jpeg_head(9, 9), "image/jpeg")),
        image(data_url(gif_head(9, 9), "image/gif")),
    ],
)
def test_images_pass_where_there_is_a_projector(part: dict[str, Any]) -> None:
    check_parts(messages(part), images=True)
    assert "'image_url'" in refused(part, images=False)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
        {"type": "media_marker", "text": "canary"},
        {"type": "file", "file": {"file_id": "canary"}},
        {"type": "text", "text": 5},
        {"type": "text"},
        {"type": None},
        {},
        {"type": "image_url"},
        {"type": "image_url", "image_url": PICTURE},
        image(canary=1),
        image(detail="high"),
        image(None),
        image("https://canary.example/x.png"),
        image("file:///canary"),
        image("data:text/plain;base64,AAAA"),
        image("data:image/png,AAAA"),
        image(PICTURE + "canary!"),
        image(PICTURE.replace("base64,", "base64,\n")),
        image(data_url(png(2, 2)[:20])),
        image(data_url(b"canary")),
    ],
)
def test_other_parts_and_other_images_are_refused(part: dict[str, Any]) -> None:
    refused(part)


@pytest.mark.parametrize("content", [None, "text", 1, ["text"], [None], {}])
def test_what_is_no_list_of_parts_is_left_to_the_engine(content: object) -> None:
    for documents in (content, [content], [{"role": "user", "content": content}]):
        check_parts(documents, images=False)


def test_pixels_are_bounded_together() -> None:
    side = 1 << 11  # four of these are as many as a request can have
    one = image(data_url(jpeg_head(side, side)))
    assert 4 * side * side == MAX_PIXELS
    check_parts(messages(*[one] * 4), images=True)
    assert str(MAX_PIXELS) in refused(*[one] * 4, image())
    refused(image(data_url(jpeg_head(65_535, 65_535))))


def test_images_are_counted() -> None:
    check_parts(messages(*[image()] * MAX_IMAGES), images=True)
    # The one too many is not looked at, nor are those after it.
    assert str(MAX_IMAGES) in refused(*[image()] * MAX_IMAGES, image("canary"))
