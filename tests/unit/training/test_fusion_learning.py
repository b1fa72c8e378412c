"""A label that neither stream holds alone: the fused model must find it, and single streams must not."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset

from mmssl.data.streams import collate_streams, select_streams
from mmssl.downstream.heads import build_head
from mmssl.downstream.tasks import UtteranceClassification
from mmssl.interfaces.fusion import build_fusion
from mmssl.training.fit import fit, predict
from mmssl.types import Layers, StreamSpec

SPECS = {"audio": StreamSpec((8, 8), (320, 320)), "video": StreamSpec((6,), (1,))}
WIDTHS = {
    "concat": {},
    "gated": {"hidden_size": 32},
    "cross_attention": {"hidden_size": 16},
    "routed": {"hidden_size": 16},
}


class Both(Dataset):
    """Four classes, two bits: the sound holds one of them, the picture the other."""

    def __init__(self, count: int, seed: int, streams: tuple[str, ...]) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.streams, self.targets = streams, torch.randint(0, 4, (count,), generator=draw)
        high, low = self.targets // 2, self.targets % 2
        self.audio = torch.randn(count, 5, 8, generator=draw) + 1.5 * (2 * high - 1)[:, None, None]
        self.video = torch.randn(count, 3, 6, generator=draw) + 1.5 * (2 * low - 1)[:, None, None]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[dict[str, Layers], int]:
        a, v = self.audio[index], self.video[index]
        clip = {
            "audio": Layers((a, a.flip(0)), (torch.tensor(5),) * 2),
            "video": Layers((v,), (torch.tensor(3),)),
        }
        return {name: clip[name] for name in self.streams}, int(self.targets[index])


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDTHS)
def test_fused_beats_audio_and_video_with_one_model(name: str) -> None:
    torch.manual_seed(0)
    fusion = build_fusion(name, SPECS, stream_dropout=0.3, **WIDTHS[name])
    task = UtteranceClassification(fusion, build_head("linear", fusion.output_size, 4, hidden_size=16))
    both = ("audio", "video")
    fit(task, Both(256, 0, both), Both(64, 1, both), learning_rate=5e-3, max_steps=120, batch_size=32, eval_every=40)
    scores = {}
    for streams in (both, ("audio",), ("video",)):
        answers, targets = predict(task, Both(160, 2, streams), batch_size=40)
        scores["+".join(streams)] = float((answers.argmax(1) == targets).float().mean())
    # one bit of two is known to a single stream, so that half of the clips is the best it can do
    assert scores["audio+video"] > 0.9
    for single in both:
        assert 0.35 < scores[single] < 0.65
    clip = collate_streams([Both(1, 3, both)[0][0]])
    alone = {"audio": clip["audio"]}
    torch.testing.assert_close(task.predict(select_streams(clip, ["audio"])), task.predict(alone))
