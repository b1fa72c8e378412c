"""Views that are augmentations: seeds, sizes, kinds; encoders of views; targets from other views."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmssl.augment.base import Augmentation
from mmssl.augment.level import Gain
from mmssl.augment.pictures import RandomResizedCrop
from mmssl.augment.spectrogram import SpectrogramCrop
from mmssl.errors import ConfigError, InputError
from mmssl.objectives.maskers import MaskEmbedding
from mmssl.objectives.projectors import MLP, DinoHead
from mmssl.objectives.targets.other_view import PeerView, TeacherView, batch_statistics, pooled
from mmssl.objectives.types import Examples, Hidden, Step, View
from mmssl.objectives.view_encoders import (
    ImageViewEncoder,
    SpectrogramView,
    SpectrogramViewEncoder,
    StreamViewEncoder,
    resized_tokens,
)
from mmssl.objectives.views_augmented import Augmented, MixedSpectrograms, dino_chains, simclr_chain, waveform_chain
from mmssl.types import Inputs, Padded
from mmssl.upstreams.byol_a import ByolA
from mmssl.upstreams.pictures import TappedPictures
from mmssl.upstreams.speech_transformer import SpeechTransformer
from mmssl.upstreams.torchvision_models import TorchvisionImage
from mmssl.upstreams.vit_mae import MAE


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vit(**changes: int) -> MAE:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_layers": 2, "num_heads": 2, "feed_forward_size": 32, "patch_size": 4}
    return MAE("tiny", image_size=16, **sizes, **changes)


def resnet() -> TorchvisionImage:
    torch.manual_seed(0)
    return TorchvisionImage("resnet18", layers=["maxpool", "layer1", "layer2"], image_size=16)


def ntt() -> ByolA:
    torch.manual_seed(0)
    return ByolA(hidden_size=24, num_mel_bins=16)


def pictures(count: int = 4, **fields: object) -> Examples:
    images = torch.rand(count, 3, 16, 16, generator=draw(1))
    return Examples(Inputs(images=images), seeds=tuple(range(count)), **fields)  # type: ignore[arg-type]


def sounds(lengths: tuple[int, ...] = (4000, 2000, 900)) -> Examples:
    data = torch.zeros(len(lengths), max(lengths))
    for row, size in zip(data, lengths, strict=True):
        row[:size] = torch.randn(size, generator=draw(size)) * 0.1
    return Examples(Inputs(waveforms=Padded(data, torch.tensor(lengths))), seeds=tuple(range(len(lengths))))


def test_a_view_depends_on_the_clip_its_seed_and_the_number_of_the_view_alone() -> None:
    examples, views = pictures(), Augmented(simclr_chain(12), 3)
    encoder = ImageViewEncoder(vit())
    whole = views(examples, encoder, draw(0))
    assert len(whole) == 3
    again = views(examples, encoder, draw(1))
    assert all(torch.equal(a.inputs.images, b.inputs.images) for a, b in zip(whole, again, strict=True))
    turned = Examples(Inputs(images=examples.inputs.images.flip(0)), seeds=examples.seeds[::-1])
    for a, b in zip(whole, views(turned, encoder, draw(2)), strict=True):
        assert torch.equal(a.inputs.images, b.inputs.images.flip(0))
    alone = Examples(Inputs(images=examples.inputs.images[2:3]), seeds=(2,))
    assert torch.equal(views(alone, encoder, draw())[1].inputs.images[0], whole[1].inputs.images[2])
    assert not torch.equal(whole[0].inputs.images, whole[1].inputs.images)
    later = views(replace(examples, seeds=(7, 8, 9, 10)), encoder, draw())
    assert not torch.equal(later[0].inputs.images, whole[0].inputs.images)


def test_without_seeds_views_follow_the_generator() -> None:
    examples, views = replace(pictures(), seeds=()), Augmented(simclr_chain(12))
    encoder = ImageViewEncoder(vit())
    one, two = (views(examples, encoder, draw(3))[0].inputs.images for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, views(examples, encoder, draw(4))[0].inputs.images)


def test_ids_and_labels_stay_and_starts_go() -> None:
    examples = replace(pictures(ids=tuple("abcd"), labels={"match": torch.ones(4)}), starts=(0, 16, 0, 0))
    view = Augmented(RandomResizedCrop(8))(examples, ImageViewEncoder(vit()), draw())[1]
    assert view.ids == tuple("abcd")
    assert view.labels == examples.labels
    assert view.starts == ()


def test_multi_crop_has_views_of_two_sizes() -> None:
    views = Augmented(dino_chains(16, 8, 3))(pictures(), ImageViewEncoder(vit()), draw())
    assert [tuple(v.inputs.images.shape[-2:]) for v in views] == [(16, 16)] * 2 + [(8, 8)] * 3
    assert len({float(v.inputs.images.sum()) for v in views}) == 5


def test_waveforms_and_videos_keep_their_lengths() -> None:
    encoder = StreamViewEncoder(SpeechTransformer("wav2vec2_tiny"))
    examples = sounds()
    views = Augmented(waveform_chain(16000), inputs="waveforms")(examples, encoder, draw())
    for view in views:
        padded = view.inputs.waveforms
        assert padded.lengths.tolist() == [4000, 2000, 900]
        assert not padded.data[~padded.mask].any()
        assert float(padded.data.abs().max()) <= 1
    dirty = examples.inputs.waveforms.data.masked_fill(~examples.inputs.waveforms.mask, 9.0)
    other = replace(examples, inputs=Inputs(waveforms=Padded(dirty, examples.inputs.waveforms.lengths)))
    same = Augmented(waveform_chain(16000), inputs="waveforms")(other, encoder, draw())
    assert torch.equal(same[0].inputs.waveforms.data, views[0].inputs.waveforms.data)
    video = Examples(Inputs(video=Padded(torch.rand(2, 5, 3, 9, 9), torch.tensor([5, 3]))), seeds=(1, 2))
    made = Augmented(RandomResizedCrop(6), inputs="video")(video, encoder, draw())[0].inputs.video
    assert tuple(made.data.shape) == (2, 5, 3, 6, 6)
    assert made.lengths.tolist() == [5, 3]


def test_bad_views_are_refused() -> None:
    chain = Gain()
    for build in (
        lambda: Augmented(chain, 0),
        lambda: Augmented([]),
        lambda: Augmented([chain, chain], 3),
        lambda: Augmented(chain, inputs="sound"),
        lambda: MixedSpectrograms(frames=4),
        lambda: MixedSpectrograms(mixup=1.5),
    ):
        with pytest.raises(ConfigError):
            build()
    with pytest.raises(InputError, match="has none"):
        Augmented(chain, inputs="waveforms")(pictures(), ImageViewEncoder(vit()), draw())

    class Uneven(Augmentation):
        """Crops of the size that is drawn."""

        def __call__(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            return x[:, : int(torch.randint(2, 16, (), generator=generator))]

    with pytest.raises(InputError, match="differ in size"):
        Augmented(Uneven())(pictures(), ImageViewEncoder(vit()), draw())


def test_the_views_of_byol_a_are_those_of_the_paper() -> None:
    upstream = ntt()
    encoder = SpectrogramViewEncoder(upstream)
    examples = sounds((4000, 4000, 900))
    plain = MixedSpectrograms(16, 0.0, None, 0.0, post_normalize=False)(examples, encoder, draw())
    assert all(isinstance(view, SpectrogramView) for view in plain)
    assert torch.equal(plain[0].spectrograms, plain[1].spectrograms)  # both views are of one stretch
    assert tuple(plain[0].spectrograms.shape) == (3, 16, 16)
    # a stretch of the clip, normalised by the statistics of the upstream
    found = plain[0].spectrograms[0] * upstream.std + upstream.mean
    waveform = examples.inputs.waveforms.data[0]
    rows = [upstream.log_mel(waveform[None, s : s + 15 * 160])[0] for s in range(4000 - 15 * 160 + 1)]
    assert min(float((row - found).abs().max()) for row in rows) < 1e-4
    # a clip of 900 samples lies in silence, whose power is only the offset
    floor = float(np.log(1.1920928955078125e-07))
    short = plain[0].spectrograms[2] * upstream.std + upstream.mean
    silent = ((short - floor).abs() < 1e-3).all(1)
    assert 3 <= int(silent.sum()) <= 6  # 16 frames less those whose window of 1024 samples meets the clip
    mixed = MixedSpectrograms(16, 0.4, None, 0.0, post_normalize=False)(examples, encoder, draw())
    own, rest = plain[0].spectrograms[0].double().exp(), mixed[0].spectrograms[0].double().exp()
    fits = {}
    for other in (1, 2):
        theirs = plain[0].spectrograms[other].double().exp()
        share = float(((rest - own) / (theirs - own)).median())
        fits[float((rest - (1 - share) * own - share * theirs).abs().max())] = share
    assert min(fits) < 1e-4  # one of the other clips, at one share for all values
    assert 0 <= fits[min(fits)] <= 0.4
    both = torch.stack(
        [v.spectrograms for v in MixedSpectrograms(16, crop=SpectrogramCrop())(examples, encoder, draw())]
    )
    assert abs(float(both.mean())) < 1e-5
    assert abs(float(both.std()) - 1) < 1e-5
    assert not torch.equal(both[0], both[1])
    with pytest.raises(InputError, match="at least 2 clips"):
        MixedSpectrograms()(sounds((4000,)), encoder, draw())
    with pytest.raises(ConfigError, match="for byol_a"):
        MixedSpectrograms()(sounds(), ImageViewEncoder(vit()), draw())


def test_a_picture_encoder_gives_what_the_upstream_gives() -> None:
    examples = pictures()
    view = View(examples.inputs)
    model = vit().eval()
    states = model(images=examples.inputs.images)["image"]
    normed = model.encoder.finish(states.hidden_states[-1])
    for pooling, expected in (("class", normed[:, 0]), ("mean", normed[:, 1:].mean(1)), (None, normed[:, 0])):
        encoded = ImageViewEncoder(model, pooling).encode(view)["image"]
        assert torch.allclose(pooled(encoded), expected, atol=1e-6)
        assert encoded.layers.hidden_sizes == states.hidden_sizes
    network = resnet().eval()
    maps = network(images=examples.inputs.images)["image"].hidden_states[-1]
    assert torch.allclose(pooled(ImageViewEncoder(network).encode(view)["image"]), maps.mean(1), atol=1e-6)
    assert ImageViewEncoder(network).frame_lengths(view.inputs)["image"].tolist() == [1] * 4


def test_positions_are_interpolated_for_other_sizes() -> None:
    model = vit()
    small = torch.zeros(2, 3, 8, 12)
    tokens = resized_tokens(model.encoder, small)
    assert tuple(tokens.shape) == (2, 6, 24)
    table = model.encoder.positions(4, tokens).reshape(4, 4, 24).permute(2, 0, 1)[None]
    expected = F.interpolate(table, size=(2, 3), mode="bicubic")[0].flatten(1).t()
    assert torch.allclose(tokens[0] - model.encoder.patch_embed(small)[0], expected, atol=1e-5)
    same = torch.rand(2, 3, 16, 16)
    assert torch.equal(resized_tokens(model.encoder, same), model.encoder.embed(same))
    with pytest.raises(InputError, match="multiples"):
        resized_tokens(model.encoder, torch.zeros(1, 3, 10, 8))


def test_any_upstream_is_pooled_over_its_valid_frames() -> None:
    torch.manual_seed(0)
    encoder = StreamViewEncoder(SpeechTransformer("wav2vec2_tiny").eval())
    examples = sounds()
    rows = pooled(encoder.encode(View(examples.inputs))["audio"])
    for index, clip in enumerate(examples.inputs.waveforms.unpad()):
        alone = Inputs(waveforms=Padded(clip[None], torch.tensor([len(clip)])))
        assert torch.allclose(pooled(encoder.encode(View(alone))["audio"])[0], rows[index], atol=1e-5)
    assert encoder.frame_lengths(examples.inputs)["audio"].tolist() == [1, 1, 1]


class OneSize(TappedPictures):
    """A network that takes pictures of 8 x 8 pixels alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 5)
        self.declare(8, (0.5,) * 3, (0.5,) * 3)

    def taps(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        return [self.linear(pictures.flatten(1))[:, None]]


def test_encoders_refuse_what_they_cannot_take() -> None:
    hidden = {"image": Hidden(torch.ones(4, 1, dtype=torch.bool), MaskEmbedding(4))}
    for build in (
        lambda: ImageViewEncoder(ntt()),
        lambda: ImageViewEncoder(vit(), "max"),
        lambda: ImageViewEncoder(resnet(), "class").encode(View(pictures().inputs)),
        lambda: ImageViewEncoder(vit()).encode(View(pictures().inputs, hidden)),
        lambda: SpectrogramViewEncoder(vit()),
        lambda: SpectrogramViewEncoder(ntt()).encode(View(sounds().inputs)),
        lambda: StreamViewEncoder(vit(), "audio"),
    ):
        with pytest.raises(ConfigError):
            build()
    with pytest.raises(InputError, match="takes images"):
        ImageViewEncoder(vit()).encode(View(sounds().inputs))
    with pytest.raises(InputError, match="does not take pictures of"):
        ImageViewEncoder(OneSize()).encode(View(pictures().inputs))


def step_of(encoder: ImageViewEncoder, views: list[View]) -> Step:
    return Step(0, views, {n: encoder.encode(v) for n, v in enumerate(views)}, encoder, draw())


def test_a_peer_is_the_same_head_with_or_without_gradient() -> None:
    encoder, head = ImageViewEncoder(vit()), nn.Linear(24, 5)
    views = Augmented(simclr_chain(16))(pictures(), encoder, draw())
    step = step_of(encoder, views)
    target = PeerView(head)
    assert not list(target.parameters())
    rows = target(step, 1)
    assert torch.equal(rows, head(pooled(step.encoded[1]["image"])))
    assert rows.requires_grad
    assert not PeerView(head, stop_gradient=True)(step, 1).requires_grad
    assert torch.equal(PeerView(None)(step, 0), pooled(step.encoded[0]["image"]))
    # a copy of an objective must not keep the head of the first
    both = nn.ModuleList([head, target])
    twin = copy.deepcopy(both)
    assert twin[1]._head[0] is twin[0]


def test_a_teacher_follows_encoder_and_head_and_normalises_by_the_batch() -> None:
    encoder, head = ImageViewEncoder(resnet()).train(), MLP((128, 16, 6)).train()
    target = TeacherView(head, 0.75).train()
    target.attach(encoder)
    assert not any(p.requires_grad for p in target.parameters())
    views = Augmented(simclr_chain(16))(pictures(), encoder, draw())
    before = {k: v.clone() for k, v in target.state_dict().items()}
    step = Step(0, views, {}, encoder, draw())
    rows = target(step, 1)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())  # no running statistics move
    # equal weights and statistics of the batch: what the student in training mode gives
    student = copy.deepcopy(encoder).train()
    expected = copy.deepcopy(head).train()(pooled(student.encode(views[1])["image"]))
    assert torch.allclose(rows, expected, atol=1e-5)
    assert not rows.requires_grad
    weight, deep = head.layers[0].weight, encoder.upstream.trunk.get_parameter("layer1.0.conv1.weight")
    old, old_deep = weight.detach().clone(), deep.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
        deep.add_(1.0)
    target.after_step(0, encoder)
    assert torch.allclose(target.teacher_head.model.layers[0].weight, old + 0.25, atol=1e-6)
    copied = target.teacher.model.upstream.trunk.get_parameter("layer1.0.conv1.weight")
    assert torch.allclose(copied, old_deep + 0.25, atol=1e-6)
    with pytest.raises(ConfigError, match="compose it"):
        TeacherView(head)(step, 0)
    with pytest.raises(ConfigError, match="decay"):
        TeacherView(head, 1.5)


def test_statistics_of_the_batch_are_borrowed_for_a_block_only() -> None:
    norm = nn.BatchNorm1d(3).eval()
    x = torch.randn(8, 3) * 4 + 1
    with batch_statistics(norm):
        assert torch.allclose(norm(x), F.batch_norm(x, None, None, training=True), atol=1e-5)
    assert not norm.training
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert torch.allclose(norm(x), x, atol=1e-3)


def test_projectors() -> None:
    torch.manual_seed(0)
    mlp = MLP((4, 8, 3), last_norm=True).train()
    kinds = [type(layer).__name__ for layer in mlp.layers]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    x = torch.randn(6, 1, 4)
    assert tuple(mlp(x).shape) == (6, 1, 3)
    assert torch.allclose(mlp(x), mlp(x[:, 0])[:, None])
    assert tuple(MLP((4, 3), batch_norm=False)(torch.randn(1, 4)).shape) == (1, 3)
    with pytest.raises(InputError, match="at least 2 clips"):
        mlp(torch.randn(1, 4))
    assert tuple(mlp.eval()(torch.randn(1, 4)).shape) == (1, 3)
    for sizes in ((4,), (4, 0)):
        with pytest.raises(ConfigError, match="widths"):
            MLP(sizes)


def test_the_head_of_dino_gives_cosines_and_can_be_frozen() -> None:
    torch.manual_seed(0)
    head = DinoHead(4, 10, 8, 5)
    x = torch.randn(6, 4)
    out = head(x)
    hidden = head.mlp(x)
    expected = F.cosine_similarity(hidden[:, None], head.directions[None], dim=-1)
    assert torch.allclose(out, expected, atol=1e-6)
    out.sum().backward()
    assert head.directions.grad.abs().max() > 0
    head.zero_grad()
    head.frozen.fill_(True)
    frozen = head(x)
    assert torch.equal(frozen, out)
    frozen.sum().backward()
    assert not head.directions.grad.any()
    assert head.mlp[0].weight.grad.abs().max() > 0
    assert "frozen" in head.state_dict()
    with pytest.raises(ConfigError, match="2 outputs"):
        DinoHead(4, 1)
