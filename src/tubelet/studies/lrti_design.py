"""What a study of LRTI-VSR consists of: arms, and claims that compare them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tubelet.ops.sizes import round_up
from tubelet.recipes.lrti import LRTITraining
from tubelet.recipes.lrti_presets import Strategy
from tubelet.studies.lrti_clips import ClipKind, ClipSettings
from tubelet.studies.lrti_endpoints import Endpoint

__all__ = ["Arm", "Claim", "PublishedCost", "Role", "Study"]

Role = Literal["claim", "positive control", "negative control"]

_FLOOR_FRACTION = 1 / 3
_MIN_FLOOR_DB = 0.03
_SAVE_EVERY = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCost:
    """Memory, training time and RGB-PSNR of an arm in Table 3 or 4 of the paper."""

    memory_gb: float
    days: float
    psnr_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A way to train the network of a study.

    Attributes:
        name: Name in the report.
        strategy: See `LRTITraining`.
        length: Frames of a sample; of "TB", continued by the states of the long clip.
        clips: Clips that it is trained on and scored on.
        network: Fields of the network's configuration that differ from the study's.
        time_of: Name of the arm whose training time this one gets; empty for an equal number of
            steps.
        is_framewise: Every frame is a video of its own, in training as in the scores.
        published: Figures of the paper.
    """

    name: str
    strategy: Strategy = "plain"
    length: int
    clips: ClipKind = "real"
    network: Mapping[str, Any] = field(default_factory=dict[str, Any])
    time_of: str = ""
    is_framewise: bool = False
    published: PublishedCost | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The claim that an arm is better than another.

    Attributes:
        id: Short name; LC1 to LC7 are those of the paper.
        text: What is claimed.
        better: Name of the better arm.
        worse: Name of the worse arm.
        kind: "excess": the difference is above the margin. "absence": it is at most the margin, in
            either direction.
        margin_db: See `kind`.
        published_db: Difference in the paper; None if it has none.
        endpoint: What is compared.
        role: "positive control": if it fails, nothing else is judged. "negative control": if it
            fails, an effect exists even where there is nothing to gain.
    """

    id: str
    text: str
    better: str
    worse: str
    kind: Literal["excess", "absence"] = "excess"
    margin_db: float = 0.0
    published_db: float | None = None
    endpoint: Endpoint = "all"
    role: Role = "claim"

    @property
    def floor_db(self) -> float | None:
        """Smallest effect of interest: a third of the paper's; None for claims with a margin."""
        if self.kind == "absence" or self.margin_db:
            return None
        return max(_MIN_FLOOR_DB, _FLOOR_FRACTION * (self.published_db or 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A network, the arms that train it, and claims.

    Attributes:
        name: Name in the folder of the results.
        kind: One of `STUDIES`.
        title: Heading in the report.
        regime: Clips and samples, for the report.
        training: Settings that all arms share.
        arms: Arms; those that get the time of another one come after it.
        claims: Claims and controls.
        clips: Size of the clips.
        seeds: Number of seeds; of a pilot if `is_pilot`.
        is_pilot: The number of seeds follows from the spread between the seeds of a pilot.
        effect_db: Smallest effect that the seeds should show.
    """

    name: str
    kind: str
    title: str
    regime: str
    training: LRTITraining
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    clips: ClipSettings
    seeds: int
    is_pilot: bool = False
    effect_db: float

    def configure(self, arm: Arm) -> LRTITraining:
        """Build the settings of an arm, but for seed, steps and folders."""
        training = self.training
        samples = max(1, self.clips.frames // arm.length)
        batch = training.batch
        if arm.is_framewise:
            # As many frames in a step as the other arms have.
            batch *= training.length
        loop = replace(training.loop, save_every=round_up(_SAVE_EVERY, samples))
        return replace(
            training,
            network=replace(training.network, **arm.network),
            strategy=arm.strategy,
            length=arm.length,
            samples=samples,
            clip=self.clips.frames,
            batch=batch,
            loop=loop,
        )

    def arm(self, name: str) -> Arm:
        """Find an arm by its name."""
        return next(arm for arm in self.arms if arm.name == name)
