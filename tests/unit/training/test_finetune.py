from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmssl.downstream.heads import build_head
from mmssl.downstream.tasks import UtteranceClassification, UtteranceRegression
from mmssl.errors import ConfigError, DataError
from mmssl.interfaces.base import build_interface
from mmssl.interfaces.fusion import build_fusion
from mmssl.random import isolated_rng
from mmssl.training.blocks import attach_drop_path, block_depths, layer_factors
from mmssl.training.finetune import FineTuneSettings, evaluate, finetune
from mmssl.training.finetune_model import FineTuneModel
from mmssl.training.mixing import draw_mix, mix_inputs, soft_cross_entropy, soft_targets
from mmssl.training.readers import ClipReader, Item, reader_for
from mmssl.types import Clip, Inputs, Padded
from mmssl.upstreams.base import load_upstream

SPEECH = {
    "hidden_size": 16,
    "num_layers": 3,
    "num_heads": 2,
    "feed_forward_size": 16,
    "conv_channels": 8,
    "position_kernel": 4,
}
FACES = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_fusion_layers": 1,
    "num_heads": 2,
    "feed_forward_size": 16,
    "image_size": 16,
}


class Tones(ClipReader):
    """Clips made from their number: class 1 is loud. Even ones have pictures of that brightness."""

    rate = 16000.0

    def __init__(self, video: bool = False, samples: int = 1600) -> None:
        self.video, self.least, self.most = video, samples, samples

    def measure(self, clip: Clip) -> int:
        return self.least + 400 * (int(clip.id) % 3)

    def load(self, clip: Clip, first: int, count: int) -> Item:
        number = int(clip.id)
        noise = torch.randn(self.measure(clip), generator=torch.Generator().manual_seed(number))
        waveform = (0.02 + 0.5 * (number % 2)) * noise
        video = torch.full((2, 3, 16, 16), 30 + 150 * (number % 2), dtype=torch.uint8) if self.video else None
        return self.cut(Item(waveform=waveform, video=video), first, count)

    def cut(self, item: Item, first: int, count: int) -> Item:
        assert item.waveform is not None
        return Item(waveform=item.waveform[first : first + count], video=item.video)


def clips(first: int, count: int) -> list[Clip]:
    return [Clip(str(k)) for k in range(first, first + count)]


TARGETS = {str(k): k % 2 for k in range(100)}


def speech_model(frozen: tuple[str, ...] = ()) -> FineTuneModel:
    upstream = load_upstream("wav2vec2", **SPEECH, normalize=False)
    with isolated_rng(0):
        interface = build_interface("weighted_sum", upstream.spec.streams["audio"])
        task = UtteranceClassification(interface, build_head("linear", interface.output_size, 2, hidden_size=8))
    return FineTuneModel(upstream, task, frozen=frozen)


def video_model(fusion: str = "concat") -> FineTuneModel:
    upstream = load_upstream("hicmae", **FACES)
    with isolated_rng(0):
        joined = build_fusion(fusion, upstream.spec.streams, stream_dropout=0.2)
        task = UtteranceClassification(joined, build_head("linear", joined.output_size, 2, hidden_size=8))
    return FineTuneModel(upstream, task)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


SETTINGS = FineTuneSettings(
    max_steps=8,
    batch_size=4,
    learning_rate=3e-3,
    warmup_steps=2,
    eval_every=4,
    mixup=0.8,
    label_smoothing=0.1,
    drop_path=0.3,
    num_crops=2,
)


def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = speech_model()
    before = weights(whole)
    state = torch.get_rng_state()
    result = finetune(whole, clips(0, 12), clips(20, 6), TARGETS, Tones(), tmp_path / "a", SETTINGS)
    assert torch.equal(torch.get_rng_state(), state)
    assert [row["step"] for row in result.history] == [4, 8]
    assert result.best in result.history
    assert {"dev_loss", "dev_uar", "train_loss", "learning_rate"} <= set(result.history[0])
    assert all(not torch.equal(before[n], t) for n, t in weights(whole).items() if n.endswith("expand.weight"))
    assert not any(module._forward_hooks for module in whole.upstream.modules())

    killed = speech_model()

    class Dies(Tones):
        reads = 0

        def load(self, clip: Clip, first: int, count: int) -> Item:
            Dies.reads += 1
            if Dies.reads > 4 * 4 + 12 + 6:
                raise KeyboardInterrupt
            return super().load(clip, first, count)

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        finetune(killed, clips(0, 12), clips(20, 6), TARGETS, Dies(), tmp_path / "b", SETTINGS)
    assert (tmp_path / "b" / "checkpoint.ckpt").is_file()
    resumed = speech_model()
    again = finetune(resumed, clips(0, 12), clips(20, 6), TARGETS, Tones(), tmp_path / "b", SETTINGS)
    assert again.resumed_from == 4
    assert again.history == result.history
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    with pytest.raises(ConfigError, match="other clips, targets or settings"):
        finetune(speech_model(), clips(0, 11), clips(20, 6), TARGETS, Tones(), tmp_path / "b", SETTINGS)


def test_evaluation_is_a_function_of_the_clip(tmp_path: Path) -> None:
    model = speech_model()
    answers, targets = evaluate(model, clips(0, 5), TARGETS, Tones(), num_crops=2, batch_size=3)
    assert answers.shape == (5, 2)
    assert targets.tolist() == [0, 1, 0, 1, 0]
    torch.testing.assert_close(answers.sum(1), torch.ones(5))
    alone, _ = evaluate(model, clips(4, 1), TARGETS, Tones(), num_crops=2, batch_size=1)
    torch.testing.assert_close(alone[0], answers[4])
    item = [Tones().load(Clip("4"), first, 1600).waveform for first in (0, 400)]
    want = torch.stack([model.predict(Inputs(Padded(w[None], torch.tensor([1600]))))[0] for w in item]).mean(0)
    torch.testing.assert_close(answers[4], want)


@pytest.mark.parametrize("fusion", ["concat", "hicmae"])
def test_sound_and_video_with_a_stream_missing(fusion: str, tmp_path: Path) -> None:
    model, reader = video_model(fusion), Tones(video=True, samples=5120)
    settings = FineTuneSettings(max_steps=2, batch_size=4, learning_rate=1e-3, mixup=0.5)
    result = finetune(model, clips(0, 8), clips(20, 4), TARGETS, reader, tmp_path, settings)
    assert result.weights.is_file()
    found = [evaluate(model, clips(0, 3), TARGETS, reader, streams=s)[0] for s in (None, ["audio"], ["video"])]
    assert all(x.shape == (3, 2) for x in found)
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[1], found[2])
    inputs = reader.collate([reader.load(c, (reader.measure(c) - 5120) // 2, 5120) for c in clips(0, 3)])
    torch.testing.assert_close(model.predict(Inputs(inputs.waveforms)), found[1], atol=1e-5, rtol=1e-4)


def test_learning_rates_fall_towards_the_input() -> None:
    factors = layer_factors(load_upstream("hicmae", **FACES), 0.5)
    assert factors["fusion.blocks.0.attn.qkv.weight"] == factors["fusion.blocks_audio.0.norm2.weight"] == 0.5
    assert factors["fusion.norm.weight"] == factors["fusion.norm_audio.weight"] == 1
    assert factors["audio.blocks.1.norm1.weight"] == factors["audio.norm.weight"] == 0.5**2
    assert factors["video.blocks.0.mlp.fc1.bias"] == 0.5**3
    assert factors["video.patch_embed.proj.weight"] == 0.5**4
    speech = layer_factors(load_upstream("wav2vec2", **SPEECH), 0.5)
    assert speech["encoder.blocks.2.expand.weight"] == 0.5
    assert speech["feature_projection.weight"] == 0.5**4
    with pytest.raises(ConfigError, match="stack of blocks"):
        layer_factors(nn.Linear(2, 2), 0.5)


def test_the_schedule_rises_and_falls() -> None:
    settings = FineTuneSettings(max_steps=12, warmup_steps=4, final_factor=0.1)
    found = [settings.factor(step) for step in range(13)]
    assert found[:5] == [0.25, 0.5, 0.75, 1, 1]
    assert found[8] == pytest.approx(0.55)
    assert found[12] == pytest.approx(0.1)


def test_drop_path_passes_whole_clips_on_and_keeps_the_expectation() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    torch.manual_seed(0)
    model = Stack()
    assert block_depths(model) == {"blocks.0": 1, "blocks.1": 2, "blocks.2": 3}
    handles = attach_drop_path(model, 0.5)
    assert len(handles) == 2
    x = torch.randn(1, 3, 2).expand(4000, 3, 2)
    outputs = model.blocks[2](x)
    passed = (outputs == x).flatten(1).all(1)
    assert float(passed.float().mean()) == pytest.approx(0.5, abs=0.03)
    plain = F.linear(x[0], model.blocks[2].weight, model.blocks[2].bias)
    torch.testing.assert_close(outputs[~passed][0], x[0] + (plain - x[0]) * 2)
    torch.testing.assert_close(outputs.mean(0), plain, atol=0.1, rtol=0.1)
    torch.testing.assert_close(model.eval().blocks[2](x)[0], plain)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(model.train().blocks[2](x)[0], plain)


def test_drop_path_on_packed_clips_leaves_some_alone() -> None:
    upstream = load_upstream("wav2vec2", **SPEECH)
    waveforms = torch.randn(3, 1600, generator=torch.Generator().manual_seed(0))
    plain = upstream(waveforms)["audio"].hidden_states
    attach_drop_path(upstream, 0.9)
    upstream.train()
    seen = set()
    for seed in range(8):
        with isolated_rng(seed), torch.no_grad():
            upstream.encoder.dropout.eval()
            states = upstream(waveforms)["audio"].hidden_states
        seen |= {bool(torch.equal(states[3][k], states[2][k])) for k in range(3)}
    assert seen == {True, False}
    torch.testing.assert_close(upstream.eval()(waveforms)["audio"].hidden_states[-1], plain[-1])


def test_mixup_mixes_clips_and_targets() -> None:
    data = Padded(torch.tensor([[1.0, 1, 1, 1], [2.0, 2, float("nan"), 5]]), torch.tensor([4, 2]))
    mixed = mix_inputs(Inputs(data), torch.tensor([1, 0]), 0.75).waveforms
    assert mixed is not None
    torch.testing.assert_close(mixed.data, torch.tensor([[1.25, 1.25, 0.75, 0.75], [1.75, 1.75, 0, 0]]))
    scores, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 2, 1, 0])
    smooth = soft_targets(y, 3, 0.1)
    torch.testing.assert_close(soft_cross_entropy(scores, smooth), F.cross_entropy(scores, y, label_smoothing=0.1))
    order, weight = draw_mix(6, 0.8, 3)
    want = weight * F.cross_entropy(scores, y) + (1 - weight) * F.cross_entropy(scores, y[order])
    hard = soft_targets(y, 3, 0)
    torch.testing.assert_close(soft_cross_entropy(scores, weight * hard + (1 - weight) * hard[order]), want)
    drawn = [draw_mix(2, 0.8, seed)[1] for seed in range(2000)]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.02)
    assert np.var(drawn) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.1)


def test_values_are_mixed_too() -> None:
    upstream = load_upstream("wav2vec2", **SPEECH)
    interface = build_interface("weighted_sum", upstream.spec.streams["audio"])
    model = FineTuneModel(upstream, UtteranceRegression(interface, build_head("linear", 16, 1))).eval()
    inputs = Inputs(Padded(torch.randn(2, 1600), torch.tensor([1600, 1600])))
    y, order = torch.tensor([1.0, 3.0]), torch.tensor([1, 0])
    loss = model.mixed_loss(inputs, y, (order, 0.25))
    scores = model.predict(mix_inputs(inputs, order, 0.25))[:, 0]
    torch.testing.assert_close(loss, F.mse_loss(scores, torch.tensor([2.5, 1.5])))


def test_frozen_parts_stay(tmp_path: Path) -> None:
    model = speech_model(frozen=("front_end",))
    before = weights(model)
    finetune(model, clips(0, 8), clips(20, 4), TARGETS, Tones(), tmp_path, FineTuneSettings(max_steps=2, batch_size=4))
    for name, tensor in model.state_dict().items():
        if name.startswith("upstream.front_end"):
            assert torch.equal(tensor, before[name])
    with pytest.raises(ConfigError, match="begins with 'nothing'"):
        speech_model(frozen=("nothing",))


def test_clips_are_read_from_files(tmp_path: Path) -> None:
    import soundfile

    made = []
    for k in range(8):
        path = tmp_path / f"{k}.wav"
        noise = np.random.default_rng(k).normal(size=1600 + 160 * k) * (0.01 + 0.2 * (k % 2))
        soundfile.write(path, noise, 16000)
        made.append(Clip(str(k), audio=str(path)))
    model = speech_model()
    reader = reader_for(model.upstream.spec, max_seconds=0.1)
    result = finetune(model, made[:6], made[6:], TARGETS, reader, tmp_path / "run", FineTuneSettings(2, batch_size=3))
    answers, targets = evaluate(model, made, TARGETS, reader, num_crops=3)
    assert answers.shape == (8, 2)
    assert targets.tolist() == [k % 2 for k in range(8)]
    once, _ = evaluate(model, made[6:], TARGETS, reader)
    assert result.best["dev_uar"] == pytest.approx(float((once.argmax(1) == targets[6:]).double().mean()))


def test_wrong_splits_and_settings_are_refused(tmp_path: Path) -> None:
    model = speech_model()
    settings = FineTuneSettings(max_steps=1)
    with pytest.raises(DataError, match="in both splits"):
        finetune(model, clips(0, 4), clips(3, 4), TARGETS, Tones(), tmp_path, settings)
    with pytest.raises(DataError, match="no target"):
        finetune(model, clips(98, 4), clips(0, 4), TARGETS, Tones(), tmp_path, settings)
    with pytest.raises(ConfigError, match="label_smoothing"):
        FineTuneSettings(max_steps=1, label_smoothing=1.0)
    with pytest.raises(ConfigError, match="warmup_steps"):
        FineTuneSettings(max_steps=1, warmup_steps=2)
    upstream = load_upstream("hicmae", **FACES)
    interface = build_interface("weighted_sum", upstream.spec.streams["audio"])
    task = UtteranceClassification(interface, build_head("linear", 16, 2))
    with pytest.raises(ConfigError, match="takes one stream"):
        FineTuneModel(upstream, task)
