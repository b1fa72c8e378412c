from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmssl import load_upstream
from mmssl.compat.s3prl import NAMES, Featurizer, S3PRLUpstream, hub
from mmssl.errors import ConfigError, InputError
from mmssl.registry import UPSTREAMS

TINY = {"hidden_size": 8, "context_size": 8, "num_context_layers": 2}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.1


def test_the_documented_script_runs() -> None:
    # what S3PRL's documentation shows, with the import changed and an untrained tiny model
    model = S3PRLUpstream("modified_cpc", randomize=True, extra_conf=TINY)
    model.eval()
    with torch.no_grad():
        wavs = noise(2, 16000 * 2)
        wavs_len = torch.LongTensor([16000 * 1, 16000 * 2])
        all_hs, all_hs_len = model(wavs, wavs_len)
    for hs, hs_len in zip(all_hs, all_hs_len, strict=True):
        assert isinstance(hs, torch.FloatTensor)
        assert isinstance(hs_len, torch.LongTensor)
        batch_size, max_seq_len, hidden_size = hs.shape
        assert (batch_size, max_seq_len, hidden_size) == (2, 200, 8)
        assert hs_len.tolist() == [100, 200]
        assert not hs[0, 100:].any()
    featurizer = Featurizer(model)
    hs, hs_len = featurizer(all_hs, all_hs_len)
    assert hs.shape == (2, 200, featurizer.output_size)
    assert featurizer.downsample_rate == 160
    torch.testing.assert_close(hs, sum(all_hs) / 3)
    assert (model.num_layers, model.hidden_sizes, model.downsample_rates) == (3, [8] * 3, [160] * 3)


def test_waveforms_may_have_a_last_axis_and_layers_a_norm() -> None:
    plain = S3PRLUpstream("cpc", randomize=True, extra_conf=TINY)
    normed = S3PRLUpstream("cpc", randomize=True, extra_conf=TINY, normalize=True)
    wavs, lengths = noise(2, 4000), torch.tensor([4000, 2500])
    flat, _ = plain(wavs, lengths)
    for a, b in zip(flat, plain(wavs[..., None], lengths)[0], strict=True):
        assert torch.equal(a, b)
    for hs, reference in zip(normed(wavs, lengths)[0], flat, strict=True):
        torch.testing.assert_close(hs[0], torch.nn.functional.layer_norm(reference[0], (8,)))
        assert not hs[1, int(plain.upstream.output_lengths(torch.tensor(2500))) :].any()


def test_a_featurizer_sums_chosen_layers_and_learns() -> None:
    model = S3PRLUpstream("cpc", randomize=True, extra_conf=TINY)
    with torch.no_grad():
        states, lengths = model(noise(1, 4000), torch.tensor([4000]))
    featurizer = Featurizer(model, layer_selections=[2, 0])
    featurizer.weights.data = torch.tensor([0.0, 1.0])
    share = torch.tensor([0.0, 1.0]).softmax(0)
    found = featurizer(states, lengths)[0]
    torch.testing.assert_close(found, share[0] * states[0] + share[1] * states[2])
    found.square().sum().backward()
    assert featurizer.weights.grad.abs().min() > 0
    with pytest.raises(ConfigError, match="among 0 to 2"):
        Featurizer(model, layer_selections=[3])
    with pytest.raises(ConfigError, match="one width and rate"):
        Featurizer(S3PRLUpstream("cpc", randomize=True, extra_conf=TINY | {"context_size": 6}))


def test_experts_take_lists_and_give_dicts() -> None:
    expert = hub.cpc(randomize=True, **TINY)
    clips = [noise(3000), noise(5000)]
    with torch.no_grad():
        found = expert(clips)
    assert expert.get_downsample_rates("hidden_states") == 160
    assert torch.equal(found["last_hidden_state"], found["hidden_states"][-1])
    assert torch.equal(found["hidden_state_1"], found["hidden_states"][1])
    upstream = load_upstream("cpc", **TINY)
    for row, clip in enumerate(clips):
        alone = upstream(clip[None])["audio"]
        for layer, state in enumerate(found["hidden_states"]):
            frames = int(found["lengths"][layer][row])
            torch.testing.assert_close(state[row, :frames], alone.hidden_states[layer][0])
    with pytest.raises(InputError, match="list of clips"):
        expert([noise(1, 3000)])
    fbank = getattr(hub, "fbank")()  # noqa: B009
    assert fbank([noise(4000)])["last_hidden_state"].shape[-1] == 240


def test_weights_are_loaded_from_disk_and_never_invented(tmp_path: Path) -> None:
    for name in ("hubert", "modified_cpc", "apc_local"):
        with pytest.raises(ConfigError, match="pretrained weights on disk"):
            S3PRLUpstream(name)
    with pytest.raises(ConfigError, match="Nothing is downloaded"):
        S3PRLUpstream("cpc_url", "https://example.org/cpc.pt")
    with pytest.raises(ConfigError, match="nothing to refresh"):
        S3PRLUpstream("fbank", refresh=True)
    with pytest.raises(ConfigError, match="it has no weights"):
        S3PRLUpstream("fbank", "x.pt")
    with pytest.raises(ConfigError, match="randomize=True"):
        S3PRLUpstream("cpc", "x.pt", randomize=True)
    trained = load_upstream("xvector", seed=5, channels=8, wide_size=9)
    torch.save(trained.encoder.state_dict(), tmp_path / "x.pt")
    again = S3PRLUpstream("xvector", str(tmp_path / "x.pt"), extra_conf={"channels": 8, "wide_size": 9})
    wave = noise(1, 4000)
    torch.testing.assert_close(again(wave, torch.tensor([4000]))[0][-1], trained(wave)["audio"].hidden_states[-1])


def test_loading_is_quiet_and_parameters_may_be_trained() -> None:
    state = torch.random.get_rng_state()
    model = S3PRLUpstream("cpc", randomize=True, extra_conf=TINY)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not model.upstream.training
    model(noise(1, 3000), torch.tensor([3000]))[0][-1].sum().backward()
    assert all(p.grad is not None for p in model.upstream.parameters())


def test_names_lead_to_upstreams_that_exist() -> None:
    import inspect

    for name, (ours, arguments) in NAMES.items():
        parameters = inspect.signature(UPSTREAMS.resolve(ours)).parameters
        assert set(arguments) <= set(parameters), name
    assert {"hubert", "fbank", "cpc"} <= set(S3PRLUpstream.available_names()) == set(dir(hub))
    for name in S3PRLUpstream.available_names(only_registered_ckpt=True):
        S3PRLUpstream(name)
    with pytest.raises(ConfigError, match="Did you mean 'hubert'"):
        S3PRLUpstream("huber")
    with pytest.raises(ConfigError, match="need waveforms"):
        S3PRLUpstream("mmssl.testing.dummies.DummyImage")
