"""Designs of the studies of LRTI-VSR: arms, and the claims that compare them.

study        question                                                 networks
mechanism    does a network learn to use states that have seen        BasicVSR
             more frames than it was trained on?
truncation   truncated against plain training on real clips,          BasicVSR, BasicVSR++,
             at equal steps and at equal time                         LRTI-VSR
block        attention and gate of LRTI-VSR against its parents'      LRTI-VSR

"TB 8 of 40" is truncated back-propagation: samples of 8 frames that continue from the states of a
clip of 40.

Source: LRTI-VSR, Tables 1 and 3 to 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tubelet.errors import RequestError, suggest
from tubelet.studies.lrti_design import Arm, Claim, PublishedCost, Study
from tubelet.studies.lrti_sizes import NETWORKS, PRESETS, Preset

__all__ = ["STUDIES", "build_studies"]

STUDIES = ("mechanism", "truncation", "block")


def build_studies(
    preset_name: str,
    kinds: Sequence[str],
    networks: Sequence[str],
) -> list[Study]:
    """Build the studies of a preset.

    Args:
        preset_name: Name of one of `PRESETS`.
        kinds: Some of `STUDIES`.
        networks: Some of `NETWORKS`, for "truncation".

    Raises:
        RequestError: There is no such preset, study or network.
    """
    _check_names("preset", (preset_name,), PRESETS)
    _check_names("study", kinds, STUDIES)
    _check_names("network", networks, NETWORKS)
    preset = PRESETS[preset_name]
    studies: list[Study] = []
    if "mechanism" in kinds:
        studies.append(_mechanism(preset))
    if "truncation" in kinds:
        studies += [_truncation(preset, network) for network in networks]
    if "block" in kinds:
        studies.append(_block(preset))
    return studies


def _check_names(noun: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Check that all names are known.

    Raises:
        RequestError: One is not; the message suggests another.
    """
    choices = list(known)
    for name in names:
        if name not in choices:
            raise RequestError(f"unknown {noun} {name!r}; {suggest(name, choices)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _ArmNames:
    """Names of the arms of a study, by their part in it.

    Attributes:
        plain: Plain training.
        same: Plain training on the samples of `truncated`.
        truncated: Truncated back-propagation.
        shorter: Truncated back-propagation on shorter samples.
        longer: Plain training on longer samples.
    """

    plain: str
    same: str
    truncated: str
    shorter: str = ""
    longer: str


_UNRELATED = ", unrelated frames"


def _mechanism(preset: Preset) -> Study:
    """Noisy slow pans: a long memory can average the noise away."""
    short, long = preset.mechanism
    clip = preset.clips.frames
    names = _ArmNames(
        plain=f"plain {short}",
        same=f"plain {short}, same samples",
        truncated=f"TB {short} of {clip}",
        longer=f"plain {long}",
    )
    return Study(
        name="mechanism",
        kind="mechanism",
        title="Mechanism: noisy slow pans",
        regime=f"Windows of {preset.clips.window_px} px that move over a frame by at most 2 whole "
        f"pixels per frame, {clip} frames; BI x4, noise of standard deviation 10/255 on lq, "
        "independent from frame to frame",
        training=preset.networks["basicvsr"](),
        arms=_mechanism_arms(names, short, long),
        claims=_mechanism_claims(names),
        clips=preset.clips,
        seeds=preset.seeds[0],
        effect_db=0.1,
    )


def _mechanism_arms(names: _ArmNames, short: int, long: int) -> tuple[Arm, ...]:
    """List the arms: on pans, and for the negative control on unrelated frames."""
    same = Arm(name=names.same, strategy="plain-same-samples", length=short, clips="pans")
    truncated = Arm(name=names.truncated, strategy="truncated", length=short, clips="pans")
    return (
        Arm(name=names.plain, length=short, clips="pans"),
        same,
        truncated,
        Arm(name=names.longer, length=long, clips="pans"),
        replace(same, name=names.same + _UNRELATED, clips="unrelated"),
        replace(truncated, name=names.truncated + _UNRELATED, clips="unrelated"),
    )


def _mechanism_claims(names: _ArmNames) -> tuple[Claim, ...]:
    """List the claims; those on quality are about the frames that can have a long memory."""
    more_frames = Claim(
        id="M0",
        text=f"{names.longer} > {names.plain}: more frames average the noise",
        better=names.longer,
        worse=names.plain,
        endpoint="inner",
        role="positive control",
    )
    gain = Claim(
        id="M1",
        text=f"{names.truncated} > {names.plain} by 0.3 dB",
        better=names.truncated,
        worse=names.plain,
        margin_db=0.3,
        endpoint="inner",
    )
    fair_gain = replace(
        gain,
        id="M2",
        text=f"{names.truncated} > {names.same} by 0.3 dB",
        worse=names.same,
    )
    growth = Claim(
        id="M3",
        text="the gain of M2 grows with the distance from the ends of a clip",
        better=names.truncated,
        worse=names.same,
        endpoint="growth",
    )
    like_long = Claim(
        id="M4",
        text=f"{names.truncated} ≥ {names.longer} - 0.1 dB",
        better=names.truncated,
        worse=names.longer,
        margin_db=-0.1,
        endpoint="inner",
    )
    nothing_to_gain = Claim(
        id="M5",
        text="no gain on unrelated frames (at most 0.05 dB)",
        better=names.truncated + _UNRELATED,
        worse=names.same + _UNRELATED,
        kind="absence",
        margin_db=0.05,
        endpoint="inner",
        role="negative control",
    )
    return more_frames, gain, fair_gain, growth, like_long, nothing_to_gain


# Published differences of Table 3 for LRTI-VSR, and of Table 2 for the others.
_PUBLISHED_GAIN_DB = {"basicvsr": 0.14, "basicvsr_pp": 0.10, "lrti": 0.36}
_NETWORK_NAMES = {"basicvsr": "BasicVSR", "basicvsr_pp": "BasicVSR++", "lrti": "LRTI-VSR"}


def _truncation(preset: Preset, network: str) -> Study:
    """Real clips: Table 3, at equal steps and at equal time."""
    half, length, long = preset.truncation
    clip = preset.clips.frames
    names = _ArmNames(
        plain=f"plain {length}",
        same=f"plain {length}, same samples",
        truncated=f"TB {length} of {clip}",
        shorter=f"TB {half} of {clip}",
        longer=f"plain {long}",
    )
    is_lrti = network == "lrti"
    at_equal_steps = _claims_at_equal_steps(names, _PUBLISHED_GAIN_DB[network], is_lrti=is_lrti)
    return Study(
        name=f"truncation-{network}",
        kind="truncation",
        title=f"Truncated back-propagation: {_NETWORK_NAMES[network]}",
        regime=f"Real clips, BI x4; all frames of the first {clip} of each held-out clip",
        training=preset.networks[network](),
        arms=_truncation_arms(names, preset),
        claims=(*at_equal_steps, *_claims_at_equal_time(names)),
        clips=preset.clips,
        seeds=preset.seeds[1],
        is_pilot=True,
        effect_db=0.08,
    )


def _truncation_arms(names: _ArmNames, preset: Preset) -> tuple[Arm, ...]:
    """List the arms: with as many steps as the others, then with as much time as `truncated`."""
    half, length, long = preset.truncation
    plain = Arm(
        name=names.plain,
        length=length,
        published=PublishedCost(memory_gb=3.9, days=3.33, psnr_db=31.08),
    )
    truncated = Arm(
        name=names.truncated,
        strategy="truncated",
        length=length,
        published=PublishedCost(memory_gb=3.8, days=3.75, psnr_db=31.44),
    )
    shorter = Arm(
        name=names.shorter,
        strategy="truncated",
        length=half,
        published=PublishedCost(memory_gb=2.9, days=2.83, psnr_db=31.22),
    )
    longer = Arm(
        name=names.longer,
        length=long,
        published=PublishedCost(memory_gb=10.9, days=9.12, psnr_db=31.44),
    )
    same = Arm(name=names.same, strategy="plain-same-samples", length=length)
    arms = [plain, same, truncated, shorter, longer]
    for arm in (plain, shorter, longer):
        name = _in_time(arm.name, names)
        arms.append(replace(arm, name=name, time_of=names.truncated, published=None))
    return tuple(arms)


def _in_time(arm: str, names: _ArmNames) -> str:
    """Name the arm that gets the time of truncated back-propagation."""
    return f"{arm}, time of {names.truncated}"


def _claims_at_equal_steps(
    names: _ArmNames,
    gain_db: float,
    *,
    is_lrti: bool,
) -> tuple[Claim, ...]:
    """List the paper's claims, with the fair control, and one on the ends of a video."""
    gain = Claim(
        id="LC1" if is_lrti else "LC5",
        text=f"{names.truncated} > {names.plain}",
        better=names.truncated,
        worse=names.plain,
        published_db=gain_db,
    )
    fair_gain = replace(
        gain,
        id=f"{gain.id}f",
        text=f"{names.truncated} > {names.same} (fair control)",
        worse=names.same,
    )
    like_long = Claim(
        id="LC2",
        text=f"{names.truncated} ≥ {names.longer} - 0.05 dB",
        better=names.truncated,
        worse=names.longer,
        margin_db=-0.05,
        published_db=0.0 if is_lrti else None,
    )
    shorter = Claim(
        id="LC3",
        text=f"{names.shorter} > {names.plain}",
        better=names.shorter,
        worse=names.plain,
        published_db=0.14 if is_lrti else None,
    )
    ends = Claim(
        id="E1",
        text=f"{names.truncated} ≥ {names.plain} - 0.05 dB in the first and last two frames, "
        "which it never trains",
        better=names.truncated,
        worse=names.plain,
        margin_db=-0.05,
        endpoint="ends",
    )
    return gain, fair_gain, like_long, shorter, ends


def _claims_at_equal_time(names: _ArmNames) -> tuple[Claim, ...]:
    """List the claims about arms that are trained as long as truncated back-propagation."""
    plain = _in_time(names.plain, names)
    return (
        Claim(
            id="T1",
            text=f"{names.truncated} > {names.plain} at equal time",
            better=names.truncated,
            worse=plain,
        ),
        Claim(
            id="T2",
            text=f"{names.truncated} ≥ {names.longer} - 0.05 dB at equal time",
            better=names.truncated,
            worse=_in_time(names.longer, names),
            margin_db=-0.05,
        ),
        Claim(
            id="T3",
            text=f"{names.shorter} > {names.plain} at equal time",
            better=_in_time(names.shorter, names),
            worse=plain,
        ),
    )


_BLOCKS: Mapping[str, Mapping[str, Any]] = {
    "MFSAB": {"block": "mfsab", "stack_order": "current-middle"},
    "IIAB (softmax)": {"block": "iiab"},
    "softmax-positive": {"block": "ritb", "activation": "softmax-positive", "gate": "none"},
    "ReLU²": {"block": "ritb", "activation": "relu2", "gate": "none"},
    "RGU": {"block": "ritb", "activation": "softmax", "gate": "shared"},
    "RITB": {"block": "ritb", "activation": "relu2", "gate": "shared"},
    "RITB, two-thirds": {"block": "ritb", "activation": "relu2", "gate": "two-thirds"},
}
"""Networks of the study "block", by name."""


def _block(preset: Preset) -> Study:
    """Blocks of one network in turn: Tables 1 and 5, without truncated back-propagation."""
    length = preset.truncation[1]
    blocks: list[Arm] = []
    for name, fields in _BLOCKS.items():
        blocks.append(Arm(name=name, length=length, network=fields))
    noisy = Arm(name="RITB, noisy pans", length=length, clips="pans")
    # The first frame of a video has no past: all three frames of its windows are the current one.
    alone = Arm(
        name="RITB without the past, noisy pans",
        length=1,
        clips="pans",
        is_framewise=True,
    )
    training = preset.networks["lrti"]()
    return Study(
        name="block",
        kind="block",
        title="Block of LRTI-VSR",
        regime=f"Real clips, BI x4, plain training on {length} frames",
        training=replace(training, length=length),
        arms=(*blocks, noisy, alone),
        claims=_block_claims(noisy.name, alone.name),
        clips=replace(preset.clips, window_px=max(preset.clips.window_px, 4 * training.patch_px)),
        seeds=preset.seeds[2],
        effect_db=0.05,
    )


def _block_claims(noisy: str, alone: str) -> tuple[Claim, ...]:
    """List the claims of Tables 1 and 5, and the control that the past matters."""
    return (
        Claim(
            id="R0",
            text="without the past, RITB loses 0.1 dB on noisy pans",
            better=noisy,
            worse=alone,
            margin_db=0.1,
            role="positive control",
        ),
        _block_claim("LC6a", "ReLU²", "softmax-positive", 0.10),
        _block_claim("LC6b", "softmax-positive", "IIAB (softmax)", 0.09),
        _block_claim("LC7a", "RGU", "IIAB (softmax)", 0.14),
        _block_claim("LC7b", "RITB", "ReLU²", 0.06),
        _block_claim("LC7c", "RITB", "RGU", 0.11),
        _block_claim("LC7d", "IIAB (softmax)", "MFSAB", 0.07),
        # The paper does not say which of the two gates it has.
        _block_claim("G1", "RITB, two-thirds", "RITB", None),
    )


def _block_claim(claim_id: str, better: str, worse: str, published_db: float | None) -> Claim:
    return Claim(
        id=claim_id,
        text=f"{better} > {worse}",
        better=better,
        worse=worse,
        published_db=published_db,
    )
