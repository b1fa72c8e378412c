"""L3-Net: a spectrogram tower and a picture tower, trained to tell whether a sound and a picture belong together.

Source: Arandjelovic and Zisserman 2017, "Look, Listen and Learn". Its audio tower takes windows of 1 s, and OpenL3
slides that window by 0.1 s. Here the tower runs over the whole clip, fully convolutional over time: a frame of the last
layer comes every 40 ms, and each second is computed once instead of ten times. The maximum over 25 frames is what the
window's last pooling would have given, but for its borders. The picture tower sees each video frame alone, so that its
frames are those of the video.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmssl.errors import ConfigError
from mmssl.nn.conv_tower import AudioTower, Pooling, VideoTower
from mmssl.nn.filterbank import fft_size
from mmssl.nn.resnet2d import l3_tower
from mmssl.nn.spectrogram import LogSpectrogram
from mmssl.upstreams.av_weights import read_towers, settle_modalities
from mmssl.upstreams.two_tower import TwoTower


class L3(TwoTower):
    """L3-Net with its four blocks per tower as layers, before the pooling between blocks.

    The spectrogram has windows of 10 ms, half overlapping, and the bins of the FFT: 257 x 199 for 1 s at 48 kHz as in
    the paper. A layer is pooled over frequency, or over the picture, by the maximum as the paper's last one is.
    The Keras weights of OpenL3 are not read: it slides other spectrograms (a hop of 242 samples).

    Args:
        checkpoint: a state dict of this class; None draws weights.
        modalities: towers to build, of "audio" and "video"; None for those of the checkpoint, else both.
        width: channels of the first block, 64 in the paper.
        sample_rate: in Hz.
        video_fps: of the video, in Hz.
        image_size: height and width of the pictures, at least 8.
        pooling: "max" or "mean".

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        modalities: Sequence[str] | None = None,
        *,
        width: int = 64,
        sample_rate: int = 48000,
        video_fps: float = 25.0,
        image_size: int = 224,
        pooling: Pooling = "max",
    ) -> None:
        found = read_towers(checkpoint)
        wanted = settle_modalities(modalities, found, checkpoint)
        if sample_rate < 1600 or image_size < 8:
            raise ConfigError(
                f"L3-Net needs a sample rate of at least 1600 Hz and pictures of at least 8 x 8, "
                f"got {sample_rate} Hz and {image_size}: three poolings halve both axes."
            )
        window = 2 * (sample_rate // 200)
        spectrogram = LogSpectrogram(fft_size(window), window // 2, window, offset=1e-7)
        audio = AudioTower(spectrogram, l3_tower(1, width, -1, pooling))
        # colours from -1 to 1, as in OpenL3
        video = VideoTower(l3_tower(3, width, None, pooling), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        super().__init__(
            audio if "audio" in wanted else None,
            video if "video" in wanted else None,
            sample_rate=sample_rate,
            video_fps=video_fps,
            image_size=image_size,
        )
        self.load_towers(found)
