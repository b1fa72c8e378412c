"""Parts of masked autoencoders: masks, targets, window attention, decoders, and the tokens that encoders are given."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.errors import ConfigError, InputError
from mmssl.objectives.maskers import MaskEmbedding
from mmssl.objectives.patch_decoders import HierarchicalDecoder, PatchDecoder
from mmssl.objectives.patch_encoder import MelEncoder, PictureEncoder, TubeletEncoder, tubelet_values
from mmssl.objectives.patch_targets import NormalizedTubelets
from mmssl.objectives.patch_views import DroppedPatches, RandomPatches, TubePatches
from mmssl.objectives.types import Encoded, Examples, Hidden, Step, View
from mmssl.objectives.window_attention import WindowAttention
from mmssl.types import Inputs, Layers, Padded
from mmssl.upstreams.audio_mae import AudioMAE
from mmssl.upstreams.video_mae import VideoMAE

SIZES = {"hidden_size": 24, "num_layers": 2, "num_heads": 2, "feed_forward_size": 32}


def audio_encoder() -> MelEncoder:
    torch.manual_seed(0)
    return MelEncoder(AudioMAE("tiny", num_mel_bins=32, **SIZES))


def video_encoder() -> TubeletEncoder:
    torch.manual_seed(0)
    return TubeletEncoder(VideoMAE("tiny", image_size=16, patch_size=4, **SIZES))


def sounds(*samples: int) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    data = torch.full((len(samples), max(samples)), torch.nan)
    for row, size in zip(data, samples, strict=True):
        row[:size] = torch.randn(size, generator=generator) * 0.1
    return Inputs(waveforms=Padded(data, torch.tensor(samples)))


def videos(*frames: int) -> Inputs:
    data = torch.rand(len(frames), max(frames), 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return Inputs(video=Padded(data, torch.tensor(frames)))


def test_counts_are_the_published_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    assert int(RandomPatches(0.75)(196, generator).sum()) == 147  # MAE
    assert int((~RandomPatches(0.8)(512, generator)).sum()) == 102  # AudioMAE
    assert int((~RandomPatches(0.8, round_visible=False)(128, generator)).sum()) == 26  # HiCMAE, audio
    hicmae = TubePatches(100, 0.9)(800, generator)
    assert int((~hicmae).sum()) == 80
    video_mae = TubePatches(196, 0.9)(1568, generator)
    assert int((~video_mae).sum()) == 160
    for mask, places in ((hicmae, 100), (video_mae, 196)):
        assert (mask.view(8, places) == mask[:places]).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=4), st.integers(0, 5))
def test_a_mask_is_a_function_of_its_clip(rows: list[int], epoch: int) -> None:
    """Of its seed and length alone: not of the other clips, their order or the generator of the step."""
    views, encoder = DroppedPatches({"audio": RandomPatches(0.7)}), audio_encoder()
    samples = [2560 * n + 400 for n in rows]
    seeds = tuple(1000 * epoch + n for n in range(len(rows)))
    joint = views(Examples(sounds(*samples), seeds=seeds), encoder, torch.Generator().manual_seed(0))[0]
    mask = joint.hidden["audio"].mask
    for clip, size in enumerate(samples):
        alone = views(Examples(sounds(size), seeds=seeds[clip : clip + 1]), encoder, torch.Generator())[0]
        own = alone.hidden["audio"].mask[0]
        assert torch.equal(mask[clip, : len(own)], own)
        assert not mask[clip, len(own) :].any()
        assert 0 < int(own.sum()) < len(own)


def test_epochs_and_clips_draw_other_masks() -> None:
    views, encoder = DroppedPatches({"audio": RandomPatches(0.5)}), audio_encoder()
    seen = [
        views(Examples(sounds(26000, 26000), seeds=seeds), encoder, torch.Generator())[0].hidden["audio"].mask
        for seeds in ((1, 2), (3, 4))
    ]
    rows = {tuple(row.tolist()) for mask in seen for row in mask}
    assert len(rows) == 4


def test_masks_that_hide_nothing_or_all_are_refused() -> None:
    for ratio in (0.0, 1.0, -0.1, 1.5):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            RandomPatches(ratio)
    with pytest.raises(ConfigError, match="hides 0 of the 4 patches"):
        TubePatches(4, 0.2)
    with pytest.raises(ConfigError, match="at least one"):
        RandomPatches(0.9)(8, torch.Generator())
    with pytest.raises(ConfigError, match="no mask"):
        DroppedPatches({})
    views = DroppedPatches({"vidio": TubePatches(16)})
    with pytest.raises(ConfigError, match="'vidio'"):
        views(Examples(videos(4)), video_encoder(), torch.Generator())


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_dropped_patches_and_padding_never_enter_the_encoder(kind: str) -> None:
    encoder = audio_encoder() if kind == "audio" else video_encoder()
    inputs = sounds(20000, 8500) if kind == "audio" else videos(7, 4)
    draw = RandomPatches(0.8) if kind == "audio" else TubePatches(16, 0.75)
    examples = Examples(inputs, seeds=(3, 4))
    view = DroppedPatches({kind: draw})(examples, encoder, torch.Generator())[0]
    mask = view.hidden[kind].mask
    tokens = encoder.frame_lengths(inputs)[kind]
    seen = []
    encoder.upstream.encoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args))
    encoded = encoder.encode(view)[kind]
    left = tokens - mask.sum(1)
    assert encoded.output.lengths.tolist() == left.tolist()
    extra = int(encoder.upstream.encoder.cls_token is not None)
    state, valid = seen[0]
    assert state.shape == (2, int(left.max()) + extra, 24)
    assert valid.sum(1).tolist() == (left + extra).tolist()
    for clip in range(2):
        places = (~mask[clip, : int(tokens[clip])]).nonzero().flatten()
        assert torch.equal(encoded.positions[clip, : len(places)], places)
    # each clip as it is alone
    for clip in range(2):
        if kind == "audio":
            size = int(inputs.waveforms.lengths[clip])
            single = Inputs(waveforms=Padded(inputs.waveforms.data[clip : clip + 1, :size], torch.tensor([size])))
        else:
            size = int(inputs.video.lengths[clip])
            single = Inputs(video=Padded(inputs.video.data[clip : clip + 1, :size], torch.tensor([size])))
        hidden = {kind: Hidden(mask[clip : clip + 1, : int(tokens[clip])])}
        alone = encoder.encode(View(single, hidden))[kind]
        count = int(left[clip])
        assert torch.allclose(encoded.output.data[clip, :count], alone.output.data[0], atol=1e-5)
        assert torch.equal(encoded.output.data[clip, count:], torch.zeros_like(encoded.output.data[clip, count:]))
        values = alone.taps["patches"].data[0]
        assert torch.allclose(encoded.taps["patches"].data[clip, : len(values)], values, atol=1e-5)


def test_changed_pixels_of_dropped_tubelets_are_not_seen() -> None:
    encoder, inputs = video_encoder(), videos(4, 4)
    view = DroppedPatches({"video": TubePatches(16, 0.75)})(Examples(inputs), encoder, torch.Generator())[0]
    mask = view.hidden["video"].mask.view(2, 2, 4, 4)
    pixels = mask.repeat_interleave(2, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :, None]
    changed = torch.where(pixels, torch.rand(inputs.video.data.shape), inputs.video.data)
    one = encoder.encode(view)["video"]
    other = encoder.encode(View(Inputs(video=Padded(changed, inputs.video.lengths)), view.hidden))["video"]
    assert torch.equal(one.output.data, other.output.data)
    assert not torch.equal(one.taps["patches"].data, other.taps["patches"].data)


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_with_nothing_dropped_the_encoder_gives_what_the_upstream_gives(kind: str) -> None:
    encoder = audio_encoder() if kind == "audio" else video_encoder()
    inputs = sounds(14000, 8500) if kind == "audio" else videos(6, 4)
    whole = encoder.encode(View(inputs))[kind]
    if kind == "audio":
        layers = encoder.upstream(inputs.waveforms.data, inputs.waveforms.lengths)[kind]
    else:
        layers = encoder.upstream(video=inputs.video.data, video_lengths=inputs.video.lengths)[kind]
    assert torch.allclose(whole.layers.hidden_states[-1], layers.hidden_states[-1], atol=1e-6)
    assert torch.equal(whole.layers.lengths[-1], layers.lengths[-1])


def test_tubelet_values_lie_frame_row_column_channel() -> None:
    # every value says where it is: frame, channel, row, column
    index = torch.stack(
        torch.meshgrid(torch.arange(4), torch.arange(3), torch.arange(8), torch.arange(8), indexing="ij")
    )
    code = (index * torch.tensor([1000, 100, 10, 1])[:, None, None, None, None]).sum(0).float()[None]
    values = tubelet_values(Padded(code, torch.tensor([4])), 4)
    assert values.shape == (1, 8, 2 * 4 * 4 * 3)
    for token, (slice_, row, column) in enumerate((s, r, c) for s in range(2) for r in range(2) for c in range(2)):
        expected = [
            1000 * (2 * slice_ + t) + 100 * c + 10 * (4 * row + p) + 4 * column + q
            for t in range(2)
            for p in range(4)
            for q in range(4)
            for c in range(3)
        ]
        assert values[0, token].tolist() == expected


def step_of(values: torch.Tensor) -> Step:
    whole = Padded(values, torch.full((len(values),), values.shape[1]))
    encoded = Encoded(whole, Layers((values,), (whole.lengths,)), taps={"patches": whole})
    return Step(0, [], {0: {"video": encoded}}, None, torch.Generator())  # type: ignore[arg-type]


def test_tubelets_are_normalized_in_each_channel_and_differences_are_of_normalized_frames() -> None:
    values = torch.rand(2, 5, 2 * 9 * 3) * torch.tensor([1.0, 5.0, 0.1]).repeat(18)
    plain = NormalizedTubelets(3)(step_of(values), 0).unflatten(-1, (2, 9, 3))
    flat = plain.flatten(2, 3)
    assert torch.allclose(flat.mean(2), torch.zeros(2, 5, 3), atol=1e-5)
    assert torch.allclose(flat.std(2), torch.ones(2, 5, 3), atol=1e-3)
    rows = values.double().unflatten(-1, (-1, 3)).numpy()
    expected = (rows - rows.mean(2, keepdims=True)) / (rows.std(2, ddof=1, keepdims=True) + 1e-6)
    assert numpy.allclose(flat.numpy(), expected, atol=1e-5)
    difference = NormalizedTubelets(3, frame_difference=True)(step_of(values), 0).unflatten(-1, (2, 9, 3))
    assert torch.equal(difference[:, :, 0], plain[:, :, 0])
    assert torch.equal(difference[:, :, 1], plain[:, :, 1] - plain[:, :, 0])
    # a still picture has nothing to predict in its second frame
    still = torch.rand(1, 2, 9 * 3).repeat(1, 1, 2)
    target = NormalizedTubelets(3, frame_difference=True)(step_of(still), 0)
    assert torch.equal(target[..., 27:], torch.zeros(1, 2, 27))


@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_window_attention_of_padded_clips_is_that_of_each_alone(shift: int) -> None:
    torch.manual_seed(0)
    attention = WindowAttention(16, 2, 8, shift)
    lengths = [5, 1, 11, 8]
    x = torch.randn(4, 11 * 8, 16)
    mask = torch.arange(88)[None] < 8 * torch.tensor(lengths)[:, None]
    together = attention(torch.where(mask[..., None], x, 99.0), mask)
    assert torch.isfinite(together).all()
    for clip, rows in enumerate(lengths):
        alone = attention(x[clip : clip + 1, : rows * 8])
        assert torch.allclose(together[clip, : rows * 8], alone[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["global", "local", "hierarchical", "no levels", "class"])
@pytest.mark.parametrize("equal", [True, False])
def test_a_decoder_gives_chosen_places_what_it_gives_all(kind: str, equal: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.rand(3, 8 * 4) < 0.7
    lengths = torch.tensor([32, 32, 32] if equal else [32, 20, 12])
    hidden &= torch.arange(32) < lengths[:, None]
    if equal:
        hidden = hidden[:1].repeat(3, 1).scatter(1, torch.tensor([[0, 1], [0, 1], [0, 1]]), False)
    visible = (torch.arange(32) < lengths[:, None]) & ~hidden
    left = visible.sum(1)
    positions = (~visible).to(torch.int8).argsort(dim=1, stable=True)[:, : int(left.max())]
    states = Padded(torch.randn(3, int(left.max()), 24), left)
    taps = {"patches": Padded(torch.randn(3, 32, 16), lengths), "layer.1": states, "layer.2": states}
    if kind == "class":
        taps["class"] = Padded(torch.randn(3, 1, 24), torch.ones(3, dtype=torch.int64))
    encoded = Encoded(states, Layers((states.data,), (left,)), hidden, positions, taps)
    if kind in ("hierarchical", "no levels"):
        decoder: PatchDecoder = HierarchicalDecoder(24, 4, 16, (1, 2) if kind == "hierarchical" else (), 16, 3, 2)
    else:
        decoder = PatchDecoder(24, 4, 16, 16, 2, 2, attention="local" if kind == "local" else "global")
    for part in decoder.parameters():
        torch.nn.init.normal_(part, std=0.3)
    whole = decoder(encoded)
    assert whole.shape == (3, 32, 16)
    torch.testing.assert_close(decoder(encoded, hidden), whole[hidden], rtol=0, atol=1e-5)
    grads = []
    for rows in (whole[hidden], decoder(encoded, hidden)):
        decoder.zero_grad()
        rows.square().sum().backward()
        grads.append([part.grad.clone() for part in decoder.parameters() if part.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_decoders_refuse_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="'swin'"):
        PatchDecoder(8, 4, 16, 16, 1, 2, attention="swin")
    with pytest.raises(ConfigError, match="multiple of 4"):
        PatchDecoder(8, 6, 16, 16, 1, 2, attention="local")
    with pytest.raises(ConfigError, match="as many blocks"):
        HierarchicalDecoder(8, 4, 16, (1, 2), 16, 1, 2)
    decoder = PatchDecoder(24, 2, 256, 16, 1, 2)
    encoder = audio_encoder()
    with pytest.raises(ConfigError, match="dropped"):
        decoder(encoder.encode(View(sounds(9000)))["audio"])


def test_bad_inputs_are_refused() -> None:
    audio, video = audio_encoder(), video_encoder()
    with pytest.raises(InputError, match="Clip 1 of the batch has 2000 samples"):
        audio.frame_lengths(sounds(9000, 2000))
    with pytest.raises(InputError, match="takes waveforms"):
        audio.encode(View(videos(4)))
    with pytest.raises(InputError, match="takes video"):
        video.frame_lengths(sounds(9000))
    with pytest.raises(InputError, match="1 video frames"):
        video.frame_lengths(videos(4, 1))
    small = Inputs(video=Padded(torch.rand(1, 4, 3, 8, 8), torch.tensor([4])))
    with pytest.raises(InputError, match="pixels"):
        video.encode(View(small))
    with pytest.raises(ConfigError, match="'video' cannot be hidden"):
        audio.encode(View(sounds(9000), {"video": Hidden(torch.zeros(1, 6, dtype=torch.bool))}))
    with pytest.raises(ConfigError, match="no place here"):
        audio.encode(View(sounds(9000), {"audio": Hidden(torch.zeros(1, 6, dtype=torch.bool), MaskEmbedding(24))}))
    with pytest.raises(InputError, match="must be bool"):
        audio.encode(View(sounds(9000), {"audio": Hidden(torch.zeros(1, 3, dtype=torch.bool))}))
    with pytest.raises(InputError, match="keeps none"):
        audio.encode(View(sounds(9000), {"audio": Hidden(torch.ones(1, 6, dtype=torch.bool))}))
    for encoder, upstream in ((MelEncoder, video.upstream), (TubeletEncoder, audio.upstream), (PictureEncoder, None)):
        with pytest.raises(ConfigError, match="This objective trains"):
            encoder(upstream)
