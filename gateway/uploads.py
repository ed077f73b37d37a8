"""Pictures that clients send: typed by their first bytes, bounded by what they say of themselves, never decoded."""

from __future__ import annotations

from dataclasses import dataclass

import pybase64

from shared.errors import BadImage, BadInput, TooLarge
from shared.formats import ImageHeader, image_header
from shared.wire import Buffer

_LEAST_SIDE, _MOST_SIDE = 8, 16_383
# What stands before the comma of a data URL.
_MOST_LABEL = 256


@dataclass(frozen=True, slots=True)
class Upload:
    """A picture as it came: the field it came in, its bytes, and what they say it is."""

    name: str
    data: Buffer
    header: ImageHeader


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of one picture."""

    most_bytes: int
    most_pixels: int

    def admit(self, name: str, data: Buffer) -> Upload:
        """The picture in these bytes. Raises BadImage, or TooLarge; it is decoded later, in a worker."""
        if len(data) > self.most_bytes:
            raise TooLarge(f"'{name}' is larger than {self.most_bytes} bytes.", param=name)
        header = image_header(data)
        if header is None:
            raise BadImage(f"Invalid image file for '{name}': expected a PNG, JPEG or WebP image.", param=name)
        if header.animated:
            raise BadImage(f"Invalid image file for '{name}': it is an animation; send a single frame.", param=name)
        if not all(_LEAST_SIDE <= side <= _MOST_SIDE for side in (header.width, header.height)):
            raise BadImage(
                f"Invalid image file for '{name}': each side has {_LEAST_SIDE} to {_MOST_SIDE} pixels.",
                param=name,
            )
        if header.width * header.height > self.most_pixels:
            raise BadImage(f"Invalid image file for '{name}': it has more than {self.most_pixels} pixels.", param=name)
        return Upload(name, data, header)

    def decode(self, name: str, text: str) -> bytes:
        """The bytes of a data URL, or of bare base64. Raises BadImage, or TooLarge before anything is decoded."""
        begin = 0
        if text[:5].lower() == "data:":
            begin = text.find(",", 0, _MOST_LABEL) + 1
            if not text[:begin].lower().endswith(";base64,"):
                raise BadImage(f"Invalid data URL for '{name}': expected data:image/...;base64,...", param=name)
        # Four characters are three bytes.
        if len(text) - begin > self.most_bytes // 3 * 4 + 4:
            raise TooLarge(f"'{name}' is larger than {self.most_bytes} bytes.", param=name)
        try:
            # Sliced where that is no copy: it may be large.
            return pybase64.b64decode(memoryview(text.encode("ascii"))[begin:], validate=True)
        except ValueError as error:
            raise BadImage(f"Invalid data URL for '{name}': it is not base64.", param=name) from error


def reference(name: str, value: object, bounds: Bounds) -> str | bytes:
    """What a JSON body says of a picture: the bytes that it holds, or the https address where they lie.

    A picture is {"image_url": URL}, {"image_url": {"url": URL}}, {"data_url": URL}, {"file_id": ID}, or a URL alone; a
    URL is a data URL or https. Raises BadInput.
    """
    match value:
        case {"file_id": str()}:
            raise BadInput(f"Invalid '{name}': file ids are not supported; send the picture itself.", param=name)
        case (
            {"image_url": str(url)}
            | {"image_url": {"url": str(url)}}
            | {"data_url": str(url)}
            | {"url": str(url)}
            | str(url)
        ):
            if url[:6].lower() in ("https:", "http:/"):
                return url
            return bounds.decode(name, url)
    raise BadInput(f"Invalid '{name}': expected an object with 'image_url' or 'data_url'.", param=name)
