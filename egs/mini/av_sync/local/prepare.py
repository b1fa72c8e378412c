"""mini: talking heads with emotions in voice and face, made here; nothing is read."""

from mmssl.stages.av_mini import prepare

__all__ = ["prepare"]
