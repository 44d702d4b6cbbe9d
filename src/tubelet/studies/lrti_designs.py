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
from dataclasses import replace
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


def _mechanism(preset: Preset) -> Study:
    """Noisy slow pans: a long memory can average the noise away."""
    short, long = preset.mechanism
    clip = preset.clips.frames
    plain = f"plain {short}"
    same = f"plain {short}, same samples"
    truncated = f"TB {short} of {clip}"
    longer = f"plain {long}"
    unrelated = ", unrelated frames"
    arms = (
        Arm(name=plain, length=short, clips="pans"),
        Arm(name=same, strategy="plain-same-samples", length=short, clips="pans"),
        Arm(name=truncated, strategy="truncated", length=short, clips="pans"),
        Arm(name=longer, length=long, clips="pans"),
        Arm(
            name=same + unrelated,
            strategy="plain-same-samples",
            length=short,
            clips="unrelated",
        ),
        Arm(name=truncated + unrelated, strategy="truncated", length=short, clips="unrelated"),
    )
    claims = (
        Claim(
            id="M0",
            text=f"{longer} > {plain}: more frames average the noise",
            better=longer,
            worse=plain,
            endpoint="inner",
            role="positive control",
        ),
        Claim(
            id="M1",
            text=f"{truncated} > {plain} by 0.3 dB",
            better=truncated,
            worse=plain,
            margin_db=0.3,
            endpoint="inner",
        ),
        Claim(
            id="M2",
            text=f"{truncated} > {same} by 0.3 dB",
            better=truncated,
            worse=same,
            margin_db=0.3,
            endpoint="inner",
        ),
        Claim(
            id="M3",
            text="the gain of M2 grows with the distance from the ends of a clip",
            better=truncated,
            worse=same,
            endpoint="growth",
        ),
        Claim(
            id="M4",
            text=f"{truncated} ≥ {longer} - 0.1 dB",
            better=truncated,
            worse=longer,
            margin_db=-0.1,
            endpoint="inner",
        ),
        Claim(
            id="M5",
            text="no gain on unrelated frames (at most 0.05 dB)",
            better=truncated + unrelated,
            worse=same + unrelated,
            kind="absence",
            margin_db=0.05,
            endpoint="inner",
            role="negative control",
        ),
    )
    return Study(
        name="mechanism",
        kind="mechanism",
        title="Mechanism: noisy slow pans",
        regime=f"windows of {preset.clips.window_px} px that move over a frame by at most 2 whole "
        f"pixels per frame, {clip} frames; BI x4, noise of standard deviation 10/255 on lq, "
        "independent from frame to frame",
        training=preset.networks["basicvsr"](),
        arms=arms,
        claims=claims,
        clips=preset.clips,
        seeds=preset.seeds[0],
        effect_db=0.1,
    )


# Published differences of Table 3 for LRTI-VSR, and of Table 2 for the others.
_PUBLISHED_GAIN_DB = {"basicvsr": 0.14, "basicvsr_pp": 0.10, "lrti": 0.36}
_NETWORK_NAMES = {"basicvsr": "BasicVSR", "basicvsr_pp": "BasicVSR++", "lrti": "LRTI-VSR"}


def _truncation(preset: Preset, network: str) -> Study:
    """Real clips: Table 3, at equal steps and at equal time."""
    half, length, long = preset.truncation
    clip = preset.clips.frames
    plain = f"plain {length}"
    same = f"plain {length}, same samples"
    truncated = f"TB {length} of {clip}"
    shorter = f"TB {half} of {clip}"
    longer = f"plain {long}"
    in_time = f", time of {truncated}"
    arms = (
        Arm(
            name=plain,
            length=length,
            published=PublishedCost(memory_gb=3.9, days=3.33, psnr_db=31.08),
        ),
        Arm(name=same, strategy="plain-same-samples", length=length),
        Arm(
            name=truncated,
            strategy="truncated",
            length=length,
            published=PublishedCost(memory_gb=3.8, days=3.75, psnr_db=31.44),
        ),
        Arm(
            name=shorter,
            strategy="truncated",
            length=half,
            published=PublishedCost(memory_gb=2.9, days=2.83, psnr_db=31.22),
        ),
        Arm(
            name=longer,
            length=long,
            published=PublishedCost(memory_gb=10.9, days=9.12, psnr_db=31.44),
        ),
        Arm(name=plain + in_time, length=length, time_of=truncated),
        Arm(name=shorter + in_time, strategy="truncated", length=half, time_of=truncated),
        Arm(name=longer + in_time, length=long, time_of=truncated),
    )
    gain_db = _PUBLISHED_GAIN_DB[network]
    is_lrti = network == "lrti"
    claims = (
        Claim(
            id="LC1" if is_lrti else "LC5",
            text=f"{truncated} > {plain}",
            better=truncated,
            worse=plain,
            published_db=gain_db,
        ),
        Claim(
            id="LC1f" if is_lrti else "LC5f",
            text=f"{truncated} > {same} (fair control)",
            better=truncated,
            worse=same,
            published_db=gain_db,
        ),
        Claim(
            id="LC2",
            text=f"{truncated} ≥ {longer} - 0.05 dB",
            better=truncated,
            worse=longer,
            margin_db=-0.05,
            published_db=0.0 if is_lrti else None,
        ),
        Claim(
            id="LC3",
            text=f"{shorter} > {plain}",
            better=shorter,
            worse=plain,
            published_db=0.14 if is_lrti else None,
        ),
        Claim(
            id="T1",
            text=f"{truncated} > {plain} at equal time",
            better=truncated,
            worse=plain + in_time,
        ),
        Claim(
            id="T2",
            text=f"{truncated} ≥ {longer} - 0.05 dB at equal time",
            better=truncated,
            worse=longer + in_time,
            margin_db=-0.05,
        ),
        Claim(
            id="T3",
            text=f"{shorter} > {plain} at equal time",
            better=shorter + in_time,
            worse=plain + in_time,
        ),
        Claim(
            id="E1",
            text=f"{truncated} ≥ {plain} - 0.05 dB in the first and last two frames, "
            "which it never trains",
            better=truncated,
            worse=plain,
            margin_db=-0.05,
            endpoint="ends",
        ),
    )
    return Study(
        name=f"truncation-{network}",
        kind="truncation",
        title=f"Truncated back-propagation: {_NETWORK_NAMES[network]}",
        regime=f"real clips, BI x4; all frames of the first {clip} of each held-out clip",
        training=preset.networks[network](),
        arms=arms,
        claims=claims,
        clips=preset.clips,
        seeds=preset.seeds[1],
        is_pilot=True,
        effect_db=0.08,
    )


_SOFTMAX = {"block": "ritb", "activation": "softmax"}
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
    blocks = [Arm(name=name, length=length, network=fields) for name, fields in _BLOCKS.items()]
    noisy = Arm(name="RITB, noisy pans", length=length, clips="pans")
    # The first frame of a video has no past: all three frames of its windows are the current one.
    alone = Arm(
        name="RITB without the past, noisy pans",
        length=1,
        clips="pans",
        is_framewise=True,
    )
    claims = (
        Claim(
            id="R0",
            text="without the past, RITB loses 0.1 dB on noisy pans",
            better=noisy.name,
            worse=alone.name,
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
    training = preset.networks["lrti"]()
    return Study(
        name="block",
        kind="block",
        title="Block of LRTI-VSR",
        regime=f"real clips, BI x4, plain training on {length} frames",
        training=replace(training, length=length),
        arms=(*blocks, noisy, alone),
        claims=claims,
        clips=replace(preset.clips, window_px=max(preset.clips.window_px, 4 * training.patch_px)),
        seeds=preset.seeds[2],
        effect_db=0.05,
    )


def _block_claim(claim_id: str, better: str, worse: str, published_db: float | None) -> Claim:
    return Claim(
        id=claim_id,
        text=f"{better} > {worse}",
        better=better,
        worse=worse,
        published_db=published_db,
    )
