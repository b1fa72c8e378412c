from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from mmssl.downstream.localisation import Localisation, similarity_maps
from mmssl.errors import ConfigError, InputError
from mmssl.interfaces.base import build_interface
from mmssl.metrics.localisation import box_masks, pointing_game
from mmssl.report.localisation import localisation_figure
from mmssl.types import Layers, StreamSpec

GRID = (2, 3)


def batch(seed: int, clips: int = 24, steps: int = 0) -> tuple[dict[str, Layers], torch.Tensor, torch.Tensor]:
    """Sounds of four numbers; at one place of the picture a fixed map of them, noise elsewhere."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(4, 5, generator=torch.Generator().manual_seed(7))
    sound = torch.randn(clips, 4, generator=draw)
    tokens = torch.randn(clips, max(steps, 1), 6, 5, generator=draw)
    place = torch.randint(0, 6, (clips,), generator=draw)
    tokens[torch.arange(clips), :, place] = (sound @ mix)[:, None]
    sight = tokens.flatten(1, 2)
    if not steps:
        sight = torch.cat([torch.full((clips, 1, 5), 9.0), sight], dim=1)
    name, audio = "video" if steps else "image", sound[:, None].repeat(1, 3, 1)
    streams = {
        "audio": Layers((audio,), (torch.full((clips,), 3),)),
        name: Layers((sight,), (torch.full((clips,), sight.shape[1]),)),
    }
    return streams, torch.arange(clips), place


def build(sight: str = "image") -> Localisation:
    torch.manual_seed(0)
    specs = {"audio": StreamSpec((4,), (320,)), sight: StreamSpec((5,), (0 if sight == "image" else 1,))}
    interfaces = {name: build_interface("last_layer", spec) for name, spec in specs.items()}
    return Localisation(interfaces, GRID, embedding_size=8, skip_tokens=1 if sight == "image" else 0)


@pytest.mark.parametrize("sight", ["image", "video"])
def test_the_map_points_at_what_sounds(sight: str) -> None:
    task, steps = build(sight), 2 if sight == "video" else 0
    optimizer = torch.optim.Adam(task.parameters(), 0.02)
    for step in range(100):
        streams, targets, _ = batch(step, steps=steps)
        optimizer.zero_grad()
        task(streams, targets).loss.backward()
        optimizer.step()
    streams, targets, place = batch(1000, 40, steps)
    boxes = torch.stack([place % 3 * 10, place // 3 * 10, place % 3 * 10 + 10, place // 3 * 10 + 10], dim=1)
    maps = task.maps(streams, (20, 30)).numpy()
    assert pointing_game(maps, box_masks(boxes, 20, 30)) > 0.8
    found = task.metrics(task.predict(streams), targets)
    assert found["r1"] > 0.5
    assert f"audio_to_{sight}_median_rank" in found


def test_maps_are_cosines_of_the_places() -> None:
    draw = torch.Generator().manual_seed(0)
    audio, tokens = torch.randn(2, 4, generator=draw), torch.randn(2, 6, 4, generator=draw)
    maps = similarity_maps(audio, tokens, GRID, GRID)
    for clip in range(2):
        for place in range(6):
            a, t = audio[clip].numpy(), tokens[clip, place].numpy()
            want = a @ t / np.linalg.norm(a) / np.linalg.norm(t)
            assert float(maps[clip, place // 3, place % 3]) == pytest.approx(float(want), abs=1e-6)
    assert similarity_maps(audio, tokens, GRID, (8, 12)).shape == (2, 8, 12)
    with pytest.raises(InputError, match="2 x 3 places"):
        similarity_maps(audio, tokens[:, :5], GRID, GRID)


def test_the_figure_shows_pictures_and_maps() -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    pictures, maps = rng.random((3, 3, 16, 20)), rng.random((3, 16, 20))
    arguments = (pictures, maps, ["a", "b", "c"], [[1, 2, 9, 8]] * 3, 2)
    png = localisation_figure(*arguments)
    assert png == localisation_figure(*arguments)
    picture = Image.open(io.BytesIO(png))
    assert picture.size == (440, 480)
    assert len(set(picture.convert("L").getdata())) > 50
    with pytest.raises(InputError, match="n titles"):
        localisation_figure(pictures, maps, ["a"])


def test_wrong_streams_and_grids_are_refused() -> None:
    streams, targets, _ = batch(0, 4)
    with pytest.raises(InputError, match="lacks image"):
        build()({"audio": streams["audio"]}, targets)
    with pytest.raises(ConfigError, match="one of image and video"):
        Localisation({"audio": build_interface("last_layer", StreamSpec((4,), (320,)))}, GRID)
    task = build()
    task.skip_tokens = 0
    with pytest.raises(InputError, match="7 tokens after"):
        task(streams, targets)
