from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl import load_upstream
from mmssl.errors import CheckpointError, ConfigError, InputError
from mmssl.upstreams.discrete_bert import DiscreteBert

TINY: dict[str, Any] = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "feed_forward_size": 24, "channels": 8}


def build(**arguments: Any) -> DiscreteBert:
    upstream = load_upstream("discrete_bert", **(TINY | {"num_entries": 4} | arguments))
    assert isinstance(upstream, DiscreteBert)
    return upstream


def clip(samples: int = 4000, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def test_without_a_dictionary_every_combination_has_an_id() -> None:
    upstream = build()
    assert upstream.bert.embedding.num_embeddings == 4 + 16 + 1
    codes = upstream.tokenizer(clip()).codes
    assert upstream.tokens([clip()])[0].tolist() == (4 + 4 * codes[:, 0] + codes[:, 1]).tolist()


def test_a_dictionary_gives_the_ids(tmp_path: Path) -> None:
    file = tmp_path / "dict.txt"
    file.write_text("3-1 9\nmadeupword0000 0\n0-2 1\n")
    upstream = build(dictionary=str(file))
    assert upstream.bert.embedding.num_embeddings == 4 + 3 + 1
    ids = upstream._ids(torch.tensor([[3, 1], [0, 2], [1, 1]]))
    assert ids.tolist() == [4, 6, 3]


def test_a_dictionary_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    for line, message in (("3-1-2 9", "2 codes below 4"), ("3-7 9", "2 codes below 4"), ("the 5", "no token of codes")):
        (tmp_path / "dict.txt").write_text(line)
        with pytest.raises(CheckpointError, match=message):
            build(dictionary=str(tmp_path / "dict.txt"))
    (tmp_path / "dict.txt").write_text("3-1")
    with pytest.raises(CheckpointError, match="lines of a token and its count"):
        build(dictionary=str(tmp_path / "dict.txt"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        build(dictionary="absent.txt")


def test_a_gradient_changes_no_value_and_comes_through_the_tokens() -> None:
    upstream = build(num_entries=3)
    plain = upstream(clip()[None])["audio"].hidden_states
    waveform = clip()[None].requires_grad_()
    asked = upstream(waveform)["audio"].hidden_states
    for before, after in zip(plain, asked, strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=1e-6)
    asked[-1][0, 5].square().sum().backward()
    assert waveform.grad is not None
    assert bool(waveform.grad.any())


def test_tokens_do_not_depend_on_the_type() -> None:
    upstream = build()
    before = upstream.tokens([clip()])[0]
    assert torch.equal(upstream.to(torch.bfloat16).tokens([clip()])[0], before)
    assert upstream(clip()[None])["audio"].hidden_states[0].dtype == torch.bfloat16


def test_pieces_of_max_positions_do_not_see_each_other() -> None:
    upstream = build(max_positions=10)
    ids = torch.arange(4, 16).repeat(2)
    states = upstream.bert([ids])
    for start in (0, 10, 20):
        alone = upstream.bert([ids[start : start + 10]])
        for whole, piece in zip(states, alone, strict=True):
            torch.testing.assert_close(whole.data[start : start + 10], piece.data, rtol=0, atol=1e-5)


def test_wrong_tokens_and_clips_are_refused() -> None:
    upstream = build()
    for wrong in (torch.tensor([21]), torch.tensor([-1]), torch.zeros(0, dtype=torch.int64)):
        with pytest.raises(InputError, match="from 0 to 20"):
            upstream.bert([wrong])
    with pytest.raises(InputError, match="at least 465"):
        upstream.extract_packed([clip(100)])


def test_files_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bert.pt"
    state = {f"encoder.sentence_encoder.{k}": v for k, v in fairseq_names(build()).items()}
    torch.save({"args": {"encoder_attention_heads": 2}, "model": state}, path)
    with pytest.raises(ConfigError, match="tokenizer_checkpoint"):
        load_upstream("discrete_bert", checkpoint=str(path))
    torch.save({"args": {"activation_fn": "relu"}, "model": state}, path)
    with pytest.raises(CheckpointError, match="only gelu"):
        load_upstream("discrete_bert", checkpoint=str(path))
    torch.save({"model": {"a": torch.ones(1)}}, path)
    with pytest.raises(CheckpointError, match="no BERT of fairseq"):
        load_upstream("discrete_bert", checkpoint=str(path))


def fairseq_names(upstream: DiscreteBert) -> dict[str, torch.Tensor]:
    """Enough of a state dict for its sizes to be read."""
    bert = upstream.bert
    return {
        "embed_tokens.weight": bert.embedding.weight,
        "embed_positions.weight": torch.zeros(12, 16),
        "layers.0.fc1.weight": torch.zeros(24, 16),
    }
