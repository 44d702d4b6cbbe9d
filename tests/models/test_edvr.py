from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.clip_parity import assert_clip_as_recorded, assert_recognized
from helpers.image_parity import (
    assert_every_parameter_learns,
    assert_frames_are_encoded_once,
    load,
    published_keys,
)
from tubelet.errors import CheckpointError, ConfigError
from tubelet.models.edvr import ARCHITECTURE, EDVR, EDVRConfig
from tubelet.zoo.checkpoint import load_model

TINY: dict[str, Any] = {
    "channels": 8,
    "groups": 2,
    "num_extract_blocks": 1,
    "num_reconstruct_blocks": 1,
    "num_frames": 3,
}
MMSR = (  # ours, of the authors: "mmsr", which EDVR was first published in
    ("conv_l2_", "fea_L2_conv"),
    ("conv_l3_", "fea_L3_conv"),
    ("feat_conv.l1", "L1_fea_conv"),
    ("feat_conv.l2", "L2_fea_conv"),
    ("dcn_pack.l", "L"),
    ("conv_offset.", "conv_offset_mask."),
    ("fusion.temporal_attn1", "tsa_fusion.tAtt_2"),
    ("fusion.temporal_attn2", "tsa_fusion.tAtt_1"),
    ("fusion.feat_fusion", "tsa_fusion.fea_fusion"),
    ("fusion.spatial_attn_add", "tsa_fusion.sAtt_add_"),
    ("fusion.spatial_attn_l", "tsa_fusion.sAtt_L"),
    ("fusion.spatial_attn", "tsa_fusion.sAtt_"),
    ("reconstruction.", "recon_trunk."),
    ("conv_hr.", "HRconv."),
    ("predeblur.conv_first.", "pre_deblur.conv_first_1."),
    ("predeblur.stride_conv_hr1", "pre_deblur.conv_first_2"),
    ("predeblur.stride_conv_hr2", "pre_deblur.conv_first_3"),
    ("predeblur.stride_conv_l2", "pre_deblur.deblur_L2_conv"),
    ("predeblur.stride_conv_l3", "pre_deblur.deblur_L3_conv"),
    ("predeblur.resblock_l3", "pre_deblur.RB_L3_1"),
    ("predeblur.resblock_l2_", "pre_deblur.RB_L2_"),
    *((f"predeblur.resblock_l1.{i}.", f"pre_deblur.RB_L1_{i + 1}.") for i in range(5)),
)


def _seeded(**changes: Any) -> EDVR:
    torch.manual_seed(0)
    model = EDVR(EDVRConfig(**{**TINY, **changes})).eval()
    for name, parameter in model.named_parameters():
        if "conv_offset" in name:  # which starts at zero: no offsets
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def _authors_name(name: str) -> str:
    for level in "123":
        for conv in "123":
            name = name.replace(f"offset_conv{conv}.l{level}", f"L{level}_offset_conv{conv}")
        for end in ("weight", "bias", "conv_offset"):
            name = name.replace(f"dcn_pack.l{level}.{end}", f"dcn_pack.l{level}_dcnpack.{end}")
    for ours, theirs in MMSR:
        if ours in name:
            name = name.replace(ours, theirs)
    return name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", ["edvr_A", "edvr_A_predeblur", "edvr_A_wotsa", "edvr_mmagic_A"])
def test_recorded_outputs(recordings: Path, case: str, layout: torch.memory_format) -> None:
    assert_clip_as_recorded(recordings, case, layout, arrange=lambda sr: sr[:, 0])


@pytest.mark.parametrize(
    ("file", "config", "parameters"),
    [
        ("basicsr_edvr_M", EDVRConfig(), 3_300_131),
        ("mmagic_edvrM", EDVRConfig(), 3_300_131),
        ("basicsr_edvr_M_woTSA", EDVRConfig(fusion="conv"), 2_996_259),
        ("basicsr_edvr_L", EDVRConfig(channels=128, num_reconstruct_blocks=40), 20_633_827),
        (
            "basicsr_edvr_L_vimeo7",
            EDVRConfig(channels=128, num_reconstruct_blocks=40, num_frames=7),
            20_699_363,
        ),
    ],
)
def test_recognizes_published_files(
    recordings: Path, file: str, config: EDVRConfig, parameters: int
) -> None:
    assert_recognized(recordings, file, ARCHITECTURE, config, parameters)


@pytest.mark.parametrize("changes", [{}, {"fusion": "conv"}, {"predeblur": "strided"}])
def test_loads_the_names_of_the_authors(changes: dict[str, Any]) -> None:
    model = _seeded(**changes)
    theirs = {
        _authors_name(name.removeprefix("extractor.")): value
        for name, value in model.state_dict().items()
    }
    if changes.get("fusion") == "conv":
        theirs = {name.replace("fusion.", "tsa_fusion."): value for name, value in theirs.items()}
    assert "pcd_align.L3_dcnpack.conv_offset_mask.weight" in theirs
    loaded = load(ARCHITECTURE, theirs)
    assert loaded.config == model.config
    for name, value in loaded.state_dict().items():
        assert value is not None
        torch.testing.assert_close(value, model.state_dict()[name], msg=name)


def test_loads_its_own_names() -> None:
    model = _seeded(predeblur="plain")
    assert load(ARCHITECTURE, model.state_dict()).config == model.config


def test_reports_a_missing_fusion_weight() -> None:
    damaged = _seeded().state_dict()
    del damaged["extractor.fusion.feat_fusion.weight"]
    with pytest.raises(CheckpointError, match=r"lacks the fusion weight extractor\.fusion"):
        load_model(damaged)


def test_leaves_other_files_alone(recordings: Path) -> None:
    others = [path.stem for path in (recordings / "keys").glob("*.txt") if "edvr" not in path.stem]
    assert len(others) > 40
    assert [
        file
        for file in others
        if ARCHITECTURE.translate(published_keys(recordings, file)) is not None
    ] == []
    assert ARCHITECTURE.translate({}) is None


@pytest.mark.parametrize(
    "changes", [{}, {"fusion": "conv"}, {"predeblur": "plain"}, {"predeblur": "strided"}]
)
def test_gradients_reach_every_parameter(changes: dict[str, Any]) -> None:
    size = 32 if changes.get("predeblur") == "strided" else 16
    assert_every_parameter_learns(_seeded(**changes), torch.rand(1, 3, 3, size, size))


def test_frames_are_encoded_once_for_all_windows() -> None:
    assert_frames_are_encoded_once(_seeded(), torch.rand(1, 5, 3, 16, 20))


def test_tiles_with_the_stated_halo_equal_the_whole() -> None:
    model = _seeded(num_frames=1)
    for parameter in model.parameters():
        if parameter.ndim == 4:  # so that no layer hides what the ones before it see
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    contract = ARCHITECTURE.contract(model.config)
    assert contract is not None
    changed = torch.rand(1, 1, 3, 16, 128)
    lq = changed.clone()
    changed[..., contract.halo_px + 16 :] = 0  # beyond what the first 16 columns see
    with torch.inference_mode():
        difference: Tensor = (model(lq) - model(changed))[..., : 4 * 16]
    assert difference.abs().max() < 1e-4 * model(lq).std()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 4}, "num_frames=4 must be odd"),
        ({"groups": 3}, "groups=3 must divide channels=8"),
        ({"fusion": "sum"}, "fusion='sum' must be tsa or conv"),
        ({"predeblur": "yes"}, "predeblur='yes' must be none, plain or strided"),
        ({"channels": 0}, "channels=0 must be at least 1"),
        ({"num_extract_blocks": -1}, "num_extract_blocks=-1 must be at least 0"),
    ],
)
def test_refuses_a_configuration_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EDVRConfig(**{**TINY, **changes})
