"""DINO.

Source: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", section 3 and appendix C;
defaults are those of the authors' code.
"""

from __future__ import annotations

from mmssl.errors import ConfigError
from mmssl.objectives.losses.soft_cross_entropy import SoftCrossEntropy
from mmssl.objectives.objective import Objective
from mmssl.objectives.projectors import DinoHead
from mmssl.objectives.schedule import Cosine, Schedule
from mmssl.objectives.targets.other_view import TeacherView
from mmssl.objectives.term import Term
from mmssl.objectives.types import Encoder
from mmssl.objectives.view_encoders import ImageViewEncoder
from mmssl.objectives.views_augmented import Augmented, dino_chains
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.vit_mae import MAE

GLOBAL_VIEWS = 2


def dino(
    upstream: Upstream,
    *,
    num_outputs: int = 65536,
    hidden_size: int = 2048,
    bottleneck_size: int = 256,
    batch_norm: bool = False,
    num_local: int = 8,
    local_size: int | None = None,
    global_scale: tuple[float, float] = (0.4, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.4),
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    warmup_temperature: float = 0.04,
    warmup_steps: int = 0,
    center_momentum: float = 0.9,
    decay: tuple[float, float] = (0.996, 1.0),
    decay_steps: int = 100000,
    frozen_epochs: int = 1,
    jitter: float = 1.0,
    pooling: str | None = None,
    health_every: int = 50,
) -> Objective:
    """Give each view the distribution that a moving average gives to another, global view of the same picture.

    Args:
        upstream: an encoder of pictures (mae, torchvision, timm).
        num_outputs, hidden_size, bottleneck_size, batch_norm: of the head, see `DinoHead`.
        num_local: local views, which only the student sees; 0 for the two global ones alone.
        local_size: of local crops in pixels; None for 96 / 224 of the global ones, to the nearest multiple of a patch.
        global_scale, local_scale: ranges of the crops' areas.
        student_temperature, teacher_temperature, warmup_temperature, warmup_steps, center_momentum: see
            `SoftCrossEntropy`; small vision transformers were trained with .07 after 30 epochs of warm-up from .04.
        decay: of the teacher, at the start and at the end of `decay_steps`.
        decay_steps: optimizer steps over which it goes along a cosine from the one to the other: the whole run.
        frozen_epochs: epochs in which the head's last layer stays as it is.
        jitter: strength of the colour jitter, in units of the paper's.
        pooling: see `ImageViewEncoder`.
        health_every: see `Objective`.

    Raises:
        ConfigError: an upstream of another kind, or a value out of range.
    """
    encoder = ImageViewEncoder(upstream, pooling)
    if num_local < 0 or frozen_epochs < 0:
        raise ConfigError(f"num_local and frozen_epochs must be at least 0, got {num_local} and {frozen_epochs}.")
    side = (upstream.spec.image_size or (224, 224))[0]
    patch = side // upstream.encoder.positions.columns if isinstance(upstream, MAE) else 1
    local = max(1, round(side * 96 / 224 / patch)) * patch if local_size is None else local_size
    if local % patch:
        raise ConfigError(f"local_size must be a multiple of the patch size {patch}, got {local}.")
    width = upstream.spec.streams["image"].hidden_sizes[-1]
    head = DinoHead(width, num_outputs, hidden_size, bottleneck_size, batch_norm)
    loss = SoftCrossEntropy(
        num_outputs, student_temperature, teacher_temperature, warmup_temperature, warmup_steps, center_momentum
    )
    target = DinoTeacher(head, Cosine(*decay, decay_steps), frozen_epochs)
    pairs = view_pairs(GLOBAL_VIEWS + num_local)
    term = Term("distillation", loss, target, head, where="all", pairs=pairs, stream="image", pool=True)
    views = Augmented(dino_chains(side, local, num_local, global_scale, local_scale, jitter))
    return Objective(encoder, views, [term], health_every)


class DinoTeacher(TeacherView):
    """A teacher with DINO's head, whose last layer the student keeps in the first epochs.

    Args:
        head: of the student; not registered here.
        decay: see `TeacherView`.
        frozen_epochs: how many.
    """

    def __init__(self, head: DinoHead, decay: float | Schedule, frozen_epochs: int) -> None:
        super().__init__(head, decay)
        self.frozen_epochs = frozen_epochs

    def before_epoch(self, epoch: int, encoder: Encoder) -> None:
        """Freeze or free the last layer; see `Target.before_epoch`."""
        head = self._head[0]
        assert isinstance(head, DinoHead)
        head.frozen.fill_(epoch < self.frozen_epochs)


def view_pairs(num_views: int) -> list[tuple[int, int]]:
    """(student's view, teacher's view): every view with every global one but itself; the global ones are 0 and 1."""
    return [(student, teacher) for student in range(num_views) for teacher in range(GLOBAL_VIEWS) if student != teacher]
