from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.nn.quantizers import GumbelQuantizer, RandomProjectionQuantizer


def test_values_are_entries_of_the_codebook() -> None:
    torch.manual_seed(0)
    for mode in (True, False):
        quantizer = GumbelQuantizer(6, 8, num_groups=2, num_entries=5).train(mode)
        out = quantizer(torch.randn(3, 4, 6), 0.7, torch.Generator().manual_seed(0))
        assert out.values.shape == (3, 4, 8)
        assert out.codes.shape == (3, 4, 2)
        assert out.probabilities.shape == (3, 4, 2, 5)
        for group in range(2):
            entries = quantizer.codebook[group][out.codes[..., group]]
            assert torch.allclose(out.values[..., 4 * group : 4 * group + 4], entries, atol=1e-6)
        assert torch.allclose(out.probabilities.sum(-1), torch.ones(3, 4, 2))


def test_codes_are_drawn_with_the_probabilities_of_the_logits() -> None:
    quantizer = GumbelQuantizer(3, 2, num_groups=1, num_entries=4).train()
    x = torch.tensor([[0.3, -0.2, 0.5]])
    out = quantizer(x.expand(20000, 3), 1.7, torch.Generator().manual_seed(0))
    drawn = torch.bincount(out.codes[:, 0], minlength=4) / 20000
    assert (drawn - out.probabilities[0, 0]).abs().max() < 0.015
    greedy = quantizer.eval()(x)
    assert int(greedy.codes) == int(greedy.probabilities.argmax())


def test_gradients_are_those_of_the_soft_choice() -> None:
    quantizer = GumbelQuantizer(3, 4, num_groups=2, num_entries=5).train()
    x = torch.randn(7, 3, requires_grad=True)
    weight = torch.randn(7, 4)
    (quantizer(x, 0.9, torch.Generator().manual_seed(1)).values * weight).sum().backward()
    noise = -torch.empty(7, 2, 5).exponential_(generator=torch.Generator().manual_seed(1)).log()
    other = x.detach().clone().requires_grad_()
    soft = ((quantizer.logits(other).view(7, 2, 5) + noise) / 0.9).softmax(-1)
    (torch.einsum("ngv,gve->nge", soft, quantizer.codebook).flatten(1) * weight).sum().backward()
    assert torch.allclose(x.grad, other.grad, atol=1e-5)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="groups divide"):
        GumbelQuantizer(4, 5, num_groups=2)
    with pytest.raises(ConfigError, match="temperature"):
        GumbelQuantizer(4, 4, num_groups=2)(torch.randn(1, 4), 0.0)
    with pytest.raises(ConfigError, match="2 entries"):
        RandomProjectionQuantizer(4, num_entries=1)


def test_random_projection_takes_the_nearest_entry_and_is_frozen() -> None:
    state = torch.get_rng_state()
    quantizer = RandomProjectionQuantizer(10, num_entries=33, code_size=4, num_codebooks=2, seed=5)
    assert torch.equal(state, torch.get_rng_state())
    x = torch.randn(3, 6, 10)
    codes = quantizer(x)
    for b in range(3):
        for t in range(6):
            for g in range(2):
                unit = F.normalize(quantizer.projection[g] @ x[b, t], dim=0)
                distances = (quantizer.codebook[g] - unit).norm(dim=1)
                assert int(codes[b, t, g]) == int(distances.argmin())
    assert list(quantizer.parameters()) == []
    assert torch.allclose(quantizer.codebook.norm(dim=-1), torch.ones(2, 33))
    assert torch.equal(codes, RandomProjectionQuantizer(10, 33, 4, 2, seed=5)(x))
    assert not torch.equal(codes, RandomProjectionQuantizer(10, 33, 4, 2, seed=6)(x))
