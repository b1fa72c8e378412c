"""Images in: JPEG, PNG, WebP and what else Pillow reads, to one float tensor, or a clear error."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

from mmssl.errors import MediaError
from mmssl.media.paths import existing_file
from mmssl.media.video import Size, check_request

if TYPE_CHECKING:
    from torch import Tensor

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I")


def load_image(
    path: str | os.PathLike[str],
    size: Size | None = None,
    *,
    background: tuple[int, int, int] = (0, 0, 0),
    as_uint8: bool = False,
) -> Tensor:
    """Read an image, upright and in colour.

    The orientation that cameras note in EXIF is applied, grey images get three equal channels, 16 bits become 8, and
    transparent images are laid over `background`. Of an animation the first picture is read.

    Args:
        path: any image that Pillow reads; the content decides, not the name.
        size: (height, width), or the length of the shorter side, in pixels; None keeps the image's own. Scaling is
            bilinear with the filter widened as the image shrinks.
        background: red, green and blue, 0 to 255.
        as_uint8: return 0 to 255 instead of [0, 1].

    Returns:
        The image (3, H, W), float32 in [0, 1], or uint8.

    Raises:
        MediaError: the file is missing, truncated, damaged, or not an image.
    """
    import numpy as np
    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    file = existing_file(path)
    check_request(file, None, size, 0.0, None)
    try:
        with warnings.catch_warnings():
            # a picture of a gigapixel is more likely an attack than data
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                image.load()
                picture = _to_rgb(ImageOps.exif_transpose(image), background)
    except UnidentifiedImageError as error:
        raise MediaError(f"{file} is not an image that can be decoded. Check what it is with `file`.") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, Warning) as error:
        raise MediaError(
            f"{file}: decoding the image failed ({error}): the file is truncated or damaged. Restore it from its "
            "source or leave the clip out."
        ) from error
    if size is not None:
        picture = picture.resize(_target(picture.size, size), Image.Resampling.BILINEAR)
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
    return tensor if as_uint8 else tensor.float().div_(255)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of an image as `load_image` gives it, from its header alone.

    Raises:
        MediaError: the file is missing or not an image.
    """
    from PIL import ExifTags, Image

    file = existing_file(path)
    try:
        with Image.open(file) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(f"{file} is not an image that can be decoded. Check what it is with `file`.") from error
    return (width, height) if turned else (height, width)


def _to_rgb(image: Any, background: tuple[int, int, int]) -> Any:
    import numpy as np
    from PIL import Image

    if image.mode in _SIXTEEN_BIT:
        # Pillow clips these to 8 bits instead of scaling them
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def _target(own: tuple[int, int], size: Size) -> tuple[int, int]:
    if isinstance(size, int):
        short = min(own)
        return max(1, round(own[0] * size / short)), max(1, round(own[1] * size / short))
    return size[1], size[0]
