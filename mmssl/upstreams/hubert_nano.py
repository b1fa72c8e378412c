"""The small HuBERT whose weights come with mmssl."""

from __future__ import annotations

from pathlib import Path

from mmssl.errors import CheckpointError, ConfigError
from mmssl.random import isolated_rng
from mmssl.upstreams.checkpoints import read_checkpoint
from mmssl.upstreams.speech_config import preset_config
from mmssl.upstreams.speech_transformer import SpeechTransformer

FOLDER = Path(__file__).parents[1] / "models" / "hubert_nano"
WEIGHTS = "model.safetensors"


class HubertNano(SpeechTransformer):
    """HuBERT of 1.9 M parameters on log-mel frames, pretrained on six hours of speech in seven languages.

    Sources: Hsu et al. 2021 (HuBERT), Lin et al. 2023 (MelHuBERT, the front end). Data, licences, recipe and scores are
    in the model card, `mmssl/models/hubert_nano/README.md`. The same sizes with drawn weights:
    `load_upstream("hubert", preset="mel_hubert_nano")`.

    Args:
        num_layers: keep the first blocks only; None for all four.
        dropout: in training, of hidden states.
        layer_drop: in training, the probability with which a block is passed over.

    Raises:
        ConfigError: there are not as many layers.
        CheckpointError: the weights are missing or damaged: install mmssl again.
    """

    default_preset = "mel_hubert_nano"

    def __init__(
        self, *, num_layers: int | None = None, dropout: float | None = None, layer_drop: float | None = None
    ) -> None:
        sizes = preset_config(self.default_preset)
        kept = sizes.num_layers if num_layers is None else num_layers
        if not 1 <= kept <= sizes.num_layers:
            raise ConfigError(f"hubert_nano has {sizes.num_layers} layers, num_layers = {num_layers} were asked for.")
        # weights that are drawn and replaced at once must not move the caller's generator
        with isolated_rng(0):
            super().__init__(num_layers=kept, dropout=dropout, layer_drop=layer_drop)
        beyond = tuple(f"encoder.blocks.{k}." for k in range(kept, sizes.num_layers))
        state = read_checkpoint(FOLDER / WEIGHTS)
        try:
            self.load_state_dict({name: value for name, value in state.items() if not name.startswith(beyond)})
        except RuntimeError as error:
            raise CheckpointError(
                f"{FOLDER / WEIGHTS} is not what came with mmssl, install it again: {error}"
            ) from error
