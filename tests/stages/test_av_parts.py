"""Parts of the audio-visual recipes, each against what it should be by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from mmssl.errors import ConfigError, InputError
from mmssl.interfaces.fusion import FUSIONS, build_fusion
from mmssl.stages.av_bootstrap import interval, mean_of, paired_interval, percent, scored, speaker_draws
from mmssl.stages.av_cuts import NEAR, drawn_offset, judged_cuts
from mmssl.stages.av_extract import statistics_of
from mmssl.stages.av_media import lacking, missing_text
from mmssl.stages.av_page import Section, markdown, picture, write_page
from mmssl.stages.av_plain import MelPixels
from mmssl.stages.av_retrieval import ranks
from mmssl.stages.av_sync_report import _chance, _measures, _table
from mmssl.types import Clip, StreamSpec

FUSION_FILES = sorted((Path(__file__).parents[2] / "mmssl" / "conf" / "fusion").glob("*.yaml"))


def test_draws_hold_whole_speakers() -> None:
    speakers = ["a", "a", "b", "c", "c", "c", None, None]
    draws = speaker_draws(speakers, 50, seed=3)
    whole = {"a": {0, 1}, "b": {2}, "c": {3, 4, 5}, 6: {6}, 7: {7}}
    for rows in draws:
        times = np.bincount(rows, minlength=8)
        assert all(len({times[row] for row in members}) == 1 for members in whole.values())
        # as many draws as there are speakers
        assert sum(times[min(members)] for members in whole.values()) == 5
    assert all((one == other).all() for one, other in zip(draws, speaker_draws(speakers, 50, seed=3), strict=True))
    with pytest.raises(InputError, match="no clip"):
        speaker_draws([])


def test_intervals_are_those_of_means_of_speakers() -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(size=40)
    speakers = np.repeat(np.arange(40), 5).tolist()
    values = np.repeat(means, 5)
    low, high = interval(mean_of(values), speaker_draws(speakers, 2000)) or (0.0, 0.0)
    # clips of a speaker say the same: the interval is that of 40 numbers, not of 200
    half = 1.96 * means.std() / np.sqrt(40)
    assert (low, high) == pytest.approx((means.mean() - half, means.mean() + half), abs=0.05)
    assert paired_interval(mean_of(values + 1), mean_of(values), speaker_draws(speakers, 50)) == pytest.approx((1, 1))
    assert interval(lambda rows: float("nan"), speaker_draws(speakers, 10)) is None
    assert scored(lambda rows: float("nan"), 200, speaker_draws(speakers, 10))["low"] is None
    assert percent({"value": 0.5, "low": 0.25, "high": None}) == "50.0"
    assert percent({"value": 0.5, "low": 0.25, "high": 0.75}) == "50.0 (25.0 to 75.0)"


def test_ranks_by_hand() -> None:
    # sound x pictures; the second row has a tie with its own column
    table = np.asarray([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.8, 0.3, 0.1]])
    rows = ranks(table, ["a", "b", "c"], ["s", "s", "t"])
    found = {(r["direction"], r["gallery"], r["id"]): r for r in rows}
    assert len(rows) == 12
    assert [found["audio_to_video", "all", name]["rank"] for name in "abc"] == [1, 1.5, 3]
    assert [found["video_to_audio", "all", name]["rank"] for name in "abc"] == [1, 1, 2.5]
    assert found["audio_to_video", "all", "b"]["recall"] == [0.5, 1, 1]
    assert found["audio_to_video", "speaker", "b"]["size"] == 2
    assert found["audio_to_video", "speaker", "c"] | {"top": None} == {
        **found["audio_to_video", "speaker", "c"],
        "top": None,
        "size": 1,
        "rank": 1.0,
    }
    assert found["audio_to_video", "all", "c"]["top"] == ["a", "b", "c"]


def test_offsets_and_partners_of_test_cuts() -> None:
    drawn = [drawn_offset(f"clip{k}", 2, NEAR + 1, 6) for k in range(200)]
    assert {abs(value) for value in drawn} == {3, 4, 5, 6}
    assert 60 < sum(value > 0 for value in drawn) < 140
    assert drawn[7] == drawn_offset("clip7", 2, NEAR + 1, 6)
    facts = {"a": ("s", "x"), "b": ("s", "y"), "c": ("s", "x"), "d": ("t", "x")}
    cuts = judged_cuts(list(facts), facts, 6)
    dubbed = {pictures: sound for kind, sound, pictures, _ in cuts if kind == "dubbed"}
    # the same speaker, and the same label where there is one; nobody for the speaker of one clip
    assert dubbed == {"a": "c", "b": "c", "c": "a"}
    assert sum(kind == "matched" for kind, *_ in cuts) == 4
    for kind, sound, pictures, offset in cuts:
        assert abs(offset) <= 6
        assert (sound == pictures) == (kind in ("matched", "offset", "shifted"))


def test_measures_of_perfect_and_of_reversed_scores() -> None:
    def curve(peak: int, sign: float = 1.0) -> list[float]:
        return [sign * (-abs(shift - peak)) for shift in range(-5, 6)]

    for sign, best in ((1.0, 1.0), (-1.0, 0.0)):
        rows = []
        for k, clip in enumerate("abcd"):
            late = (-4, 3, 5, -3)[k]
            rows += [
                {"kind": "matched", "id": clip, "offset": 0, "scores": curve(0, sign)},
                {"kind": "offset", "id": clip, "offset": late, "scores": curve(late, sign)},
                {"kind": "shifted", "id": clip, "offset": late, "scores": curve(late, sign)},
                {"kind": "dubbed", "id": clip, "offset": 0, "scores": curve(4, sign)},
                {"kind": "control", "id": clip, "offset": late, "scores": curve(-late, sign)},
            ]
        table = _table(rows)
        measures = _measures(table, list("abcd"))
        for name, statistic in measures.items():
            if sign > 0 or name in ("within_1", "exact", "choice", "auc_match"):
                assert statistic(np.arange(4)) == (0.0 if name == "control" else best), name
    chance = _chance(table)
    assert chance["exact"] == pytest.approx(1 / 11)
    # of 11 shifts, three are within one frame of -4, 3 and -3, two of 5
    assert chance["within_1"] == pytest.approx((3 + 3 + 2 + 3) / 44)


@pytest.mark.parametrize("path", FUSION_FILES, ids=lambda p: p.stem)
def test_fusion_files(path: Path) -> None:
    node: Any = OmegaConf.to_container(OmegaConf.load(path))
    assert FUSIONS.builtins[path.stem] == node["_target_"]
    names = ("audio", "video", "fusion") if path.stem == "hicmae" else ("audio", "video")
    own = {key: value for key, value in node.items() if key != "_target_"}
    fusion = build_fusion(path.stem, {name: StreamSpec((8,), (1,)) for name in names}, **own)
    wanted = "mean_std" if path.stem in ("concat", "gated") else "frames"
    assert (wanted == "mean_std") == fusion.affine
    assert statistics_of({"features": {"statistics": "auto"}, "fusion": node}) == wanted
    assert {p.stem for p in FUSION_FILES} == set(FUSIONS.builtins)


def test_plain_features() -> None:
    upstream = MelPixels(num_mel_bins=8, pixels=2, image_size=4, video_fps=25.0).eval()
    video = torch.zeros(2, 3, 3, 4, 4)
    video[0, :, :, :2, :2] = 1.0
    video[1, :, 0, 2:, 2:] = 1.0
    found = upstream(video=video, video_lengths=torch.tensor([3, 2]))
    assert list(found) == ["video"]
    assert found["video"].hidden_states[0][0, 2].tolist() == pytest.approx([1, 0, 0, 0])
    # red alone is worth its luma
    assert found["video"].hidden_states[0][1, 1].tolist() == pytest.approx([0, 0, 0, 0.299])
    assert found["video"].hidden_states[0][1, 2].tolist() == [0, 0, 0, 0]
    sound = upstream(torch.randn(1, 4000).clamp(-1, 1))
    assert int(sound["audio"].lengths[0]) == int(upstream.output_lengths(torch.tensor([4000]), "audio"))
    with pytest.raises(ConfigError, match="divide"):
        MelPixels(pixels=5, image_size=48)


def test_what_is_missing_is_said() -> None:
    clips = [Clip("a", audio="a"), Clip("b", audio="b", video="b"), Clip("c", video="c")]
    assert missing_text(lacking(clips), 3) == "1 of 3 clips have no audio (c); 1 of 3 clips have no video (a)"
    assert missing_text(lacking(clips[1:2]), 1) == ""


def test_pages_escape_what_they_show(tmp_path: Path) -> None:
    sections = [Section("a <b>", ["text & more"], ["x", "y"], [["1 | 2", "<i>"]])]
    write_page(tmp_path, "t <x>", ["lead"], sections, warnings=["w <"], command="./run.sh", versions={"a": "1"})
    page = (tmp_path / "report.html").read_text()
    assert "<i>" not in page
    assert "a &lt;b&gt;" in page
    assert "w &lt;" in page
    assert "1 \\| 2" in (tmp_path / "RESULTS.md").read_text()
    assert markdown("t", ["l"], sections, [], "c").startswith("# t\n\nl\n")
    assert 'alt="it&#39;s"' in picture(b"png", "it's")
