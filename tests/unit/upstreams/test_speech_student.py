from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.types import Padded
from mmssl.upstreams.base import load_upstream
from mmssl.upstreams.speech_student import SpeechStudent
from mmssl.upstreams.speech_transformer import SpeechTransformer


def batch() -> Padded:
    data = 0.1 * torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    return Padded(data, torch.tensor([5000, 3000]))


def pair(preset: str = "hubert_tiny") -> tuple[SpeechStudent, SpeechTransformer]:
    teacher = load_upstream("mmssl.upstreams.speech_transformer.SpeechTransformer", preset=preset, seed=1)
    student = load_upstream("speech_student", preset=preset, num_layers=1, adapter_size=4, seed=2)
    assert isinstance(teacher, SpeechTransformer)
    assert isinstance(student, SpeechStudent)
    student.copy_first_blocks(teacher)
    return student, teacher


def stir(student: SpeechStudent) -> None:
    """Adapters that do something: they begin as 0."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in student.adapter_parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("preset", ["hubert_tiny", "hubert_large_tiny", "wavlm_tiny"])
def test_a_student_begins_as_the_first_blocks_of_its_teacher(preset: str) -> None:
    student, teacher = pair(preset)
    ours, theirs = (model(batch().data, batch().lengths)["audio"] for model in (student, teacher))
    assert len(ours) == 2
    for own, other in zip(ours.hidden_states, theirs.hidden_states, strict=False):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("preset", ["hubert_tiny", "hubert_large_tiny"])
def test_the_ways_differ_by_the_adapters_alone(preset: str) -> None:
    student, teacher = pair(preset)
    stir(student)
    distilled, layers = student.branches(batch())
    # the distilled way is still the teacher's first block
    states = teacher(batch().data, batch().lengths)["audio"]
    wanted = torch.cat([teacher.encoder.finish(clip) for clip in states[1].unpad()])
    torch.testing.assert_close(distilled, wanted, rtol=1e-5, atol=1e-6)
    # the fine-tuned way is what the upstream gives, and an adapter adds up(relu(down(norm(x)))) to the feed-forward
    given = student(batch().data, batch().lengths)["audio"]
    for own, other in zip(layers.hidden_states, given.hidden_states, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(given.hidden_states[1], states.hidden_states[1], atol=1e-3)
    block = student.body.encoder.blocks[0]
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(4))
    adapter = block.adapter
    normed = F.layer_norm(x, (32,)) * adapter.norm.weight + adapter.norm.bias
    hidden = (normed @ adapter.down.weight.t() + adapter.down.bias).clamp(min=0)
    added = 0.1 * (hidden @ adapter.up.weight.t() + adapter.up.bias)
    with student.without_adapters():
        plain = block._feed_forward(x)
    torch.testing.assert_close(block._feed_forward(x) - plain, added, rtol=1e-4, atol=1e-5)


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="at least one block"):
        load_upstream("speech_student", preset="hubert_tiny", num_layers=0)
    student, _ = pair()
    other = load_upstream("wav2vec2", preset="wav2vec2_tiny", hidden_size=16)
    assert isinstance(other, SpeechTransformer)
    with pytest.raises(ConfigError, match="do not fit this student"):
        student.copy_first_blocks(other)
