from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmssl.errors import MediaError
from mmssl.media.images import image_size, load_image


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    """(H, W, 3) uint8, smooth, unlike itself when turned or mirrored."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + 2 * y) % 256], -1).astype(np.uint8)


@pytest.mark.parametrize(("name", "tolerance"), [("a.png", 0), ("a.webp", 0), ("a.bmp", 0), ("a.jpg", 12)])
def test_formats(tmp_path: Path, name: str, tolerance: int) -> None:
    array = np.kron(picture()[:, :, :1], np.ones((1, 1, 3), np.uint8))
    options = {"lossless": True} if name.endswith("webp") else {"quality": 95} if name.endswith("jpg") else {}
    Image.fromarray(array).save(tmp_path / name, **options)
    image = load_image(tmp_path / name, as_uint8=True)
    assert (image.dtype, image.shape) == (torch.uint8, (3, 40, 60))
    assert (image.permute(1, 2, 0).int() - torch.from_numpy(array).int()).abs().max() <= tolerance
    as_float = load_image(tmp_path / name)
    assert as_float.dtype == torch.float32
    torch.testing.assert_close(as_float, image / 255)
    # the content decides
    (tmp_path / name).rename(tmp_path / "other.dat")
    assert torch.equal(load_image(tmp_path / "other.dat", as_uint8=True), image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path: Path, orientation: int) -> None:
    array = picture()
    mirrored = array[:, ::-1] if orientation in (2, 4, 5, 7) else array
    upright = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: -1, 7: -1, 8: 1}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    image = load_image(tmp_path / "a.png", as_uint8=True).permute(1, 2, 0).numpy()
    assert np.array_equal(image, np.rot90(mirrored, upright))
    assert image_size(tmp_path / "a.png") == image.shape[:2]


def test_grey_palette_sixteen_bits_and_alpha(tmp_path: Path) -> None:
    array = picture()
    grey = Image.fromarray(array[:, :, 0])
    grey.save(tmp_path / "grey.png")
    Image.fromarray(array[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("grey.png", "deep.png"):
        image = load_image(tmp_path / name, as_uint8=True)
        assert image.shape == (3, 40, 60)
        assert torch.equal(image, torch.from_numpy(array[:, :, 0])[None].expand(3, -1, -1))
    for mode in ("LA", "RGBA"):
        veiled = Image.fromarray(array).convert(mode)
        alpha = np.zeros((40, 60), np.uint8)
        alpha[:, :30] = 255
        veiled.putalpha(Image.fromarray(alpha))
        veiled.save(tmp_path / "veiled.png")
        image = load_image(tmp_path / "veiled.png", as_uint8=True, background=(10, 20, 30))
        assert torch.equal(image[:, 0, 30:], torch.tensor([[10], [20], [30]], dtype=torch.uint8).expand(3, 30))
        opaque = np.asarray(Image.fromarray(array).convert(mode.rstrip("A").replace("RGB", "RGB")).convert("RGB"))
        assert np.array_equal(image[:, :, :30].permute(1, 2, 0).numpy(), opaque[:, :30])
    Image.fromarray(array).quantize(16).save(tmp_path / "palette.png", transparency=0)
    assert load_image(tmp_path / "palette.png").shape == (3, 40, 60)


def test_sizes(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", 20).shape == (3, 20, 30)
    small = load_image(tmp_path / "a.png", (10, 15))
    mean = load_image(tmp_path / "a.png").reshape(3, 10, 4, 15, 4).mean((2, 4))
    assert small.shape == (3, 10, 15)
    assert (small - mean)[:2, 1:-1, 1:-1].abs().max() < 0.03
    with pytest.raises(MediaError, match="size"):
        load_image(tmp_path / "a.png", 0)


def test_broken_images(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.webp"):
        Image.fromarray(picture(200, 200)).save(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(MediaError, match=name):
            load_image(tmp_path / name)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    for name, message in (("text.png", "not an image"), ("empty.png", "empty"), ("none.png", "does not exist")):
        for read in (load_image, image_size):
            with pytest.raises(MediaError, match=message):
                read(tmp_path / name)
