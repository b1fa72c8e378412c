"""Losses of whole methods against transformers, or against the paper's equations written out clip by clip."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from mmssl.nn.log_mel import LogMel, standardize_frames
from mmssl.nn.patch import standardize_pictures
from mmssl.objectives.losses.utterance_info_nce import draw_negatives
from mmssl.objectives.methods.best_rq import best_rq
from mmssl.objectives.methods.data2vec import data2vec
from mmssl.objectives.methods.hubert import hubert
from mmssl.objectives.methods.mae import mae
from mmssl.objectives.methods.tera import tera
from mmssl.objectives.methods.wav2vec2 import wav2vec2
from mmssl.objectives.objective import Objective
from mmssl.objectives.targets.units import write_units
from mmssl.objectives.types import Examples
from mmssl.types import Inputs, Padded
from mmssl.upstreams.speech_transformer import SpeechTransformer
from mmssl.upstreams.tera import Tera
from mmssl.upstreams.vit_mae import MAE

LENGTHS = (4000, 2600)


def examples(lengths: tuple[int, ...] = LENGTHS) -> Examples:
    torch.manual_seed(3)
    data = torch.zeros(len(lengths), max(lengths))
    for row, size in zip(data, lengths, strict=True):
        row[:size] = torch.randn(size) * 0.1
    return Examples(Inputs(waveforms=Padded(data, torch.tensor(lengths))), tuple("abc"[: len(lengths)]))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny(preset: str = "wav2vec2_tiny") -> SpeechTransformer:
    torch.manual_seed(0)
    return SpeechTransformer(preset, dropout=0.0, layer_drop=0.0)


def capture(objective: Objective, term: int = 0) -> list[Any]:
    """Arguments of a term's loss: prediction, target, where."""
    seen: list[Any] = []
    objective.terms[term].loss.register_forward_pre_hook(lambda _, args: seen.extend(args))
    return seen


def transformers_model(preset: str, stable: bool) -> Any:
    from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

    own = tiny(preset).config
    config = Wav2Vec2Config(
        vocab_size=8,
        hidden_size=own.hidden_size,
        num_hidden_layers=own.num_layers,
        num_attention_heads=own.num_heads,
        intermediate_size=own.feed_forward_size,
        conv_dim=own.conv_channels,
        conv_kernel=own.conv_kernels,
        conv_stride=own.conv_strides,
        conv_bias=own.conv_bias,
        feat_extract_norm=own.conv_norm,
        do_stable_layer_norm=stable,
        num_conv_pos_embeddings=own.position_kernel,
        num_conv_pos_embedding_groups=own.position_groups,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        feat_quantizer_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        num_codevectors_per_group=6,
        num_codevector_groups=2,
        codevector_dim=16,
        proj_codevector_dim=16,
        num_negatives=9,
        diversity_loss_weight=0.3,
        contrastive_logits_temperature=0.2,
    )
    torch.manual_seed(0)
    model = Wav2Vec2ForPreTraining(config).train()
    torch.nn.init.normal_(model.quantizer.codevectors)
    torch.nn.init.normal_(model.quantizer.weight_proj.weight)
    model.quantizer.temperature = 1.3
    return model


@pytest.mark.parametrize(("preset", "stable"), [("wav2vec2_tiny", False), ("wav2vec2_lv60_tiny", True)])
def test_wav2vec2_equals_transformers(preset: str, stable: bool, tmp_path: Path) -> None:
    theirs = transformers_model(preset, stable)
    theirs.save_pretrained(tmp_path)
    upstream = SpeechTransformer(preset, str(tmp_path), normalize=False, dropout=0.0, layer_drop=0.0)
    objective = wav2vec2(
        upstream,
        mask_span=4,
        num_negatives=9,
        temperature=0.2,
        num_entries=6,
        size=16,
        gumbel=(1.3, 1.3, 1.0),
        diversity_weight=0.3,
        feature_penalty=0.0,
        front_end_gradient=1.0,
        health_every=0,
    ).train()
    contrast = objective.terms[0]
    target = contrast.target
    with torch.no_grad():
        target.quantizer.logits.load_state_dict(theirs.quantizer.weight_proj.state_dict())
        target.quantizer.codebook.copy_(theirs.quantizer.codevectors.view(2, 6, 8))
        target.projection.load_state_dict(theirs.project_q.state_dict())
        contrast.head.load_state_dict(theirs.project_hid.state_dict())
        objective.views.masker.embedding.copy_(theirs.wav2vec2.masked_spec_embed)
    batch = examples((3600, 3600))  # transformers' group norm sees padding, so that only equal lengths can be compared

    # one generator gives mask, Gumbel noise and negatives in this order: replay it to hand the same to transformers
    generator = seeded(7)
    view = objective.views(batch, objective.encoder, generator)[0]
    mask = view.hidden["audio"].mask
    noise_state = generator.get_state()
    torch.empty(mask.numel(), 2, 6).exponential_(generator=generator)
    drawn = draw_negatives(mask.sum(1), 9, generator)
    negatives = torch.zeros(*mask.shape, 9, dtype=torch.int64)
    for clip, row in enumerate(mask):
        frames = row.nonzero().flatten()
        negatives[clip, frames] = clip * len(row) + frames[drawn[clip, : len(frames)]]
    torch.set_rng_state(noise_state)
    expected = theirs(batch.inputs.waveforms.data, mask_time_indices=mask, sampled_negative_indices=negatives)
    hidden = mask.sum()

    output = objective(batch, 0, seeded(7))
    assert output.count == int(hidden)
    assert float(output.logs["contrast/loss"]) == pytest.approx(
        float(expected.contrastive_loss.detach() / hidden), rel=1e-4
    )
    assert float(output.logs["diversity/loss"]) == pytest.approx(
        float(expected.diversity_loss.detach() / hidden), rel=1e-4
    )
    assert float(output.loss.detach()) == pytest.approx(float((expected.loss / hidden).detach()), rel=1e-4)
    assert float(output.logs["diversity/perplexity"]) == pytest.approx(
        float(expected.codevector_perplexity.detach()), rel=1e-4
    )
    assert 0 < float(output.logs["contrast/equal_negatives"]) < 1  # so that leaving them out was tested

    # the same gradients: in the quantizer, the mask token, the first convolution and a block
    output.loss.backward()
    (expected.loss / hidden).backward()
    ours_theirs = (
        (target.quantizer.codebook.grad.flatten(), theirs.quantizer.codevectors.grad.flatten()),
        (target.quantizer.logits.weight.grad, theirs.quantizer.weight_proj.weight.grad),
        (objective.views.masker.embedding.grad, theirs.wav2vec2.masked_spec_embed.grad),
        (upstream.front_end.convs[0].weight.grad, theirs.wav2vec2.feature_extractor.conv_layers[0].conv.weight.grad),
        (
            upstream.encoder.blocks[1].expand.weight.grad,
            theirs.wav2vec2.encoder.layers[1].feed_forward.intermediate_dense.weight.grad,
        ),
    )
    for ours, other in ours_theirs:
        assert (ours - other).abs().max() <= 2e-3 * other.abs().max()


def test_hubert_equals_the_equations(tmp_path: Path) -> None:
    model = tiny()
    batch = examples()
    frames = model.output_lengths(torch.tensor(LENGTHS)).tolist()
    units = {clip: torch.randint(7, (n,), generator=seeded(4)) for clip, n in zip("ab", frames, strict=True)}
    write_units(tmp_path / "units", units)
    objective = hubert(
        model, units=str(tmp_path / "units"), num_units=7, size=12, mask_span=4, visible_weight=0.5, health_every=0
    ).eval()
    mask = objective.views(batch, objective.encoder, seeded(1))[0].hidden["audio"].mask
    head, token = objective.terms[0].head, objective.views.masker.embedding
    losses: dict[bool, list[float]] = {True: [], False: []}
    squares, values = 0.0, 0
    with torch.no_grad():
        for row, clip in enumerate(batch.inputs.waveforms.unpad()):
            layers = model.encode(Padded(clip[None], torch.tensor([len(clip)])), mask[row : row + 1], token)
            output = layers.hidden_states[-1][0]
            for t, o in enumerate(output):
                a = head.projection(o)
                scores = [math.exp(float(F.cosine_similarity(a, e, dim=0)) / 0.1) for e in head.classes]
                losses[bool(mask[row, t])].append(-math.log(scores[int(units["ab"[row]][t])] / sum(scores)))
            latents = model.latents([clip]).data
            squares, values = squares + float(latents.square().sum()), values + latents.numel()
        result = objective(batch, 0, seeded(1))
    hidden, visible = (sum(losses[key]) / len(losses[key]) for key in (True, False))
    assert result.count == len(losses[True])
    assert float(result.logs["hidden/loss"]) == pytest.approx(hidden, rel=1e-4)
    assert float(result.loss) == pytest.approx(hidden + 0.5 * visible + 10 * squares / values, rel=1e-4)


def test_data2vec_equals_the_equations() -> None:
    model = tiny()
    objective = data2vec(model, top_k=2, mask_span=4, health_every=0).eval()
    with torch.no_grad():  # teacher and student apart
        for parameter in model.encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = examples()
    mask = objective.views(batch, objective.encoder, seeded(1))[0].hidden["audio"].mask
    teacher = objective.terms[0].target.teacher.model.upstream
    total, count = 0.0, 0
    for row, clip in enumerate(batch.inputs.waveforms.unpad()):
        kept: list[torch.Tensor] = []
        handles = [
            block.contract.register_forward_hook(lambda _, __, out, kept=kept: kept.append(out.detach().clone()))
            for block in teacher.encoder.blocks
        ]
        single = Padded(clip[None], torch.tensor([len(clip)]))
        teacher.encode(single)
        for handle in handles:
            handle.remove()
        normed = []
        for layer in kept[-2:]:
            deviation = (layer.var(0, correction=0) + 1e-5).sqrt()
            normed.append((layer - layer.mean(0)) / deviation)
        target = sum(normed) / 2
        output = model.encode(single, mask[row : row + 1], objective.views.masker.embedding).hidden_states[-1][0]
        output = model.encoder.finish(output)
        prediction = objective.terms[0].head(output)
        for t in mask[row, : len(output)].nonzero().flatten():
            total += float((prediction[t] - target[t]).square().sum().detach()) / math.sqrt(len(target[t]))
            count += 1
    result = objective(batch, 0, seeded(1))
    assert result.count == count
    assert float(result.loss.detach()) == pytest.approx(total / count, rel=1e-4)


def test_best_rq_predicts_the_nearest_entry_of_a_random_projection() -> None:
    objective = best_rq(tiny(), num_entries=16, code_size=4, num_codebooks=2, mel_hop=20, health_every=0).eval()
    seen = capture(objective)
    batch = examples()
    result = objective(batch, 0, seeded(2))
    prediction, target, where = seen
    quantizer = objective.terms[0].target.quantizer
    losses = []
    for row, clip in enumerate(batch.inputs.waveforms.unpad()):
        mel = standardize_frames(LogMel(80, hop_length=20)(clip[None]))[0]
        for t in where[row].nonzero().flatten().tolist():
            stacked = torch.cat([mel[2 * t], mel[2 * t + 1]])
            for group in range(2):
                unit = F.normalize(quantizer.projection[group] @ stacked, dim=0)
                code = int((quantizer.codebook[group] - unit).norm(dim=1).argmin())
                assert int(target[row, t, group]) == code
                losses.append(-float(prediction[row, t, group].log_softmax(0)[code].detach()))
    assert float(result.loss.detach()) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert result.count == int(where.sum())


def test_tera_restores_every_frame_of_the_unaltered_input() -> None:
    torch.manual_seed(0)
    model = Tera(hidden_size=24, num_layers=2, num_heads=3, feed_forward_size=32, num_mel_bins=20)
    objective = tera(model, max_bins=8, time_span=3, health_every=0).eval()
    batch = examples()
    view = objective.views(batch, objective.encoder, seeded(5))[0]
    hidden = view.hidden["audio"]
    total, values = 0.0, 0
    with torch.no_grad():
        for row, clip in enumerate(batch.inputs.waveforms.unpad()):
            frames = model.features(clip[None])[0]
            altered = hidden.masker(frames, hidden.mask[row, : len(frames)], hidden.seeds[row])
            states = model.encoder(Padded(model.projection(altered)[None], torch.tensor([len(frames)])))
            prediction = objective.terms[0].head(states.hidden_states[-1][0])
            total, values = total + float((prediction - frames).abs().sum()), values + frames.numel()
        result = objective(batch, 0, seeded(5))
    assert float(result.loss) == pytest.approx(total / values, rel=1e-4)


def copy_block(ours: Any, theirs: Any) -> None:
    attention = theirs.attention
    for kind in ("weight", "bias"):
        parts = [getattr(getattr(attention, f"{name}_proj"), kind) for name in ("q", "k", "v")]
        getattr(ours.attn.qkv, kind).copy_(torch.cat(parts))
    for mine, other in (
        (ours.attn.proj, attention.o_proj),
        (ours.norm1, theirs.layernorm_before),
        (ours.norm2, theirs.layernorm_after),
        (ours.mlp.fc1, theirs.mlp.fc1),
        (ours.mlp.fc2, theirs.mlp.fc2),
    ):
        mine.load_state_dict(other.state_dict())


@pytest.mark.parametrize("normalize", [True, False])
def test_mae_equals_transformers(normalize: bool) -> None:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(0)
    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=24,
            patch_size=4,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=64,
            layer_norm_eps=1e-6,
            norm_pix_loss=normalize,
            mask_ratio=0.7,
        )
    )
    upstream = MAE("tiny", hidden_size=24, num_layers=2, num_heads=2, feed_forward_size=32, patch_size=4, image_size=24)
    objective = mae(
        upstream, mask_ratio=0.7, decoder_size=16, decoder_layers=2, decoder_heads=2, normalize_patches=normalize
    )
    vit, encoder, decoder = theirs.vit, upstream.encoder, objective.terms[0].head
    with torch.no_grad():
        # the positions of the published weights, which transformers' own start does not reproduce
        vit.embeddings.position_embeddings[0, 1:] = encoder.positions.fixed(6)
        theirs.decoder.decoder_pos_embed[0, 1:] = decoder.positions.fixed(6)
        encoder.patch_embed.proj.load_state_dict(vit.embeddings.patch_embeddings.projection.state_dict())
        encoder.cls_token.copy_(vit.embeddings.cls_token)
        encoder.norm.load_state_dict(vit.layernorm.state_dict())
        for mine, other in zip(encoder.blocks, vit.layers, strict=True):
            copy_block(mine, other)
        decoder.embed.load_state_dict(theirs.decoder.decoder_embed.state_dict())
        decoder.mask_token.copy_(theirs.decoder.mask_token.flatten())
        decoder.norm.load_state_dict(theirs.decoder.decoder_norm.state_dict())
        decoder.output.load_state_dict(theirs.decoder.decoder_pred.state_dict())
        for mine, other in zip(decoder.blocks, theirs.decoder.decoder_layers, strict=True):
            copy_block(mine, other)
    pictures = torch.rand(3, 3, 24, 24)
    batch = Examples(Inputs(images=pictures))
    # the draw of our mask, which hides what is lowest; transformers hides what is highest
    noise = 1 - torch.rand(3, 36, generator=seeded(6))
    pixels = standardize_pictures(pictures, upstream.image_mean, upstream.image_std, torch.float32)
    expected = theirs(pixels, noise=noise)
    output = objective(batch, 0, seeded(6))
    assert output.count == int(expected.mask.sum())
    assert float(output.loss.detach()) == pytest.approx(float(expected.loss.detach()), rel=1e-5)
    output.loss.backward()
    expected.loss.backward()
    pairs = (
        (encoder.patch_embed.proj.weight.grad, vit.embeddings.patch_embeddings.projection.weight.grad),
        (decoder.mask_token.grad, theirs.decoder.mask_token.grad.flatten()),
        (encoder.blocks[0].mlp.fc1.weight.grad, vit.layers[0].mlp.fc1.weight.grad),
    )
    for ours, other in pairs:
        assert (ours - other).abs().max() <= 1e-3 * other.abs().max()
