"""The small HuBERT whose weights come with mmssl."""

from __future__ import annotations

from pathlib import Path

from mmssl.upstreams.speech_transformer import SpeechTransformer

FOLDER = Path(__file__).parents[1] / "models" / "hubert_nano"


class HubertNano(SpeechTransformer):
    """HuBERT (Hsu et al. 2021) of 5.1 M parameters, pretrained on six hours of speech in seven languages.

    Data, licences, recipe and scores are in its model card, `mmssl/models/hubert_nano/README.md`. The same sizes with
    drawn weights: `load_upstream("hubert", preset="hubert_nano")`.

    Args:
        num_layers: keep the first blocks only; None for all six.
        dropout: in training, of hidden states.
        layer_drop: in training, the probability with which a block is passed over.

    Raises:
        ConfigError: there are not as many layers.
        CheckpointError: the weights are missing or damaged: install mmssl again.
    """

    default_preset = "hubert_nano"

    def __init__(
        self, *, num_layers: int | None = None, dropout: float | None = None, layer_drop: float | None = None
    ) -> None:
        super().__init__(checkpoint=str(FOLDER), num_layers=num_layers, dropout=dropout, layer_drop=layer_drop)
