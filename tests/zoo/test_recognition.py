"""Every published file is claimed by the architecture that it is of, and by no other."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.image_parity import listed_state, recorded_state
from helpers.recordings import recorded
from tubelet.zoo.architectures import ARCHITECTURES
from tubelet.zoo.checkpoint import open_checkpoint
from tubelet.zoo.unsupported import UNSUPPORTED, matches

PUBLISHED = {
    "basicsr_basicvsr_reds_b30": "BasicVSR",
    "mmagic_basicvsr": "BasicVSR",
    "basicsr_basicvsrpp_128_25": "BasicVSRPlusPlus",
    "basicsr_basicvsrpp_64_7": "BasicVSRPlusPlus",
    "mmagic_basicvsrpp_c128n25": "BasicVSRPlusPlus",
    "mmagic_basicvsrpp_c64n7": "BasicVSRPlusPlus",
    "basicsr_iconvsr_b30": "IconVSR",
    "basicsr_iconvsr_vimeo_tp3": "IconVSR",
    "mmagic_iconvsr": "IconVSR",
    "mmagic_realbasicvsr": "RealBasicVSR",
    "govsr_8+4_56": "OVSR",
    "govsr_8+4_80": "OVSR",
    "basicsr_edsr_L_x4": "EDSR",
    "basicsr_edsr_M_x4": "EDSR",
    "basicsr_rrdb_6b_anime": "RRDBNet",
    "basicsr_rrdb_x4": "RRDBNet",
    "basicsr_spynet": "SpyNet",
    "basicsr_edvr_L": "EDVR",
    "basicsr_edvr_L_vimeo7": "EDVR",
    "basicsr_edvr_M": "EDVR",
    "basicsr_edvr_M_woTSA": "EDVR",
    "mmagic_edvrM": "EDVR",
    "frnet_nb10": "FRVSR",
    "rrn_10L": "RRN",
    "rrn_5L": "RRN",
    "rsdn9_128": "RSDN",
    "rvrt_001_reds_30f": "RVRT",
    "srvgg_animevideov3": "SRVGGNetCompact",
    "srvgg_general_x4v3": "SRVGGNetCompact",
    "zsm_lunatokis": "ZoomingSlowMo",
    "tdan_official": "TDAN",
    "mmagic_tdan": "TDAN",
    "basicsr_duf_16": "DUF",
    "basicsr_duf_52": "DUF",
    "basicsr_swinir_classical_x4": "SwinIR",
    "basicsr_swinir_light_x4": "SwinIR",
    "basicsr_swinir_real_M_x4": "SwinIR",
    "dat_light_x4": "DAT",
    "hat_L_x4": "HAT",
    "hat_S_x4": "HAT",
    "hat_x2": "HAT",
    "hat_x4": "HAT",
    "basicsr_tof": "TOFlow",
    "mmagic_tof": "TOFlow",
    "iart_reds": "IART",
    "miavsr_reds": "MIAVSR",
    "psrt_recurrent_reds": "PSRT",
    "ttvsr": "TTVSR",
    "vrt_001_reds_6f": "VRT",
    "vrt_002_reds_16f": "VRT",
}
RECORDED = {
    "basicvsr_A": "BasicVSR",
    "basicvsr_mmagic_A": "BasicVSR",
    "basicvsrpp_A_hr": "BasicVSRPlusPlus",
    "basicvsrpp_mmagic_A": "BasicVSRPlusPlus",
    "iconvsr_A_tp3": "IconVSR",
    "realbasicvsr_A": "RealBasicVSR",
    "ovsr_global_A": "OVSR",
    "edsr_A": "EDSR",
    "edvr_A_predeblur": "EDVR",
    "edvr_mmagic_A": "EDVR",
    "frvsr_bd_A": "FRVSR",
    "fsrcnn_x4_A": "FSRCNN",
    "msrresnet_A": "MSRResNet",
    "rlsp_A": "RLSP",
    "rrdbnet_kair_x4_A": "RRDBNet",
    "rrdbnet_x2_A": "RRDBNet",
    "rrn_A": "RRN",
    "rsdn_A_damped": "RSDN",
    "rvrt_A": "RVRT",
    "srvgg_x4_A": "SRVGGNetCompact",
    "tmnet_A_t": "TMNet",
    "zsm_A": "ZoomingSlowMo",
    "tdan_A_dcnv1": "TDAN",
    "tdan_mmagic_A": "TDAN",
    "duf16_A": "DUF",
    "swinir_light_x4_A": "SwinIR",
    "swinir_nearest_x4_A": "SwinIR",
    "dat_x2_A": "DAT",
    "hat_x2_A": "HAT",
    "toflow_A": "TOFlow",
    "rbpn_A": "RBPN",
    "rbpn_x2_A": "RBPN",
    "iart_A": "IART",
    "miavsr_nomask_A": "MIAVSR",
    "psrt_recurrent_A": "PSRT",
    "ttvsr_A": "TTVSR",
    "vrt_A_damped": "VRT",
}
NAMED = {"two_step_A": "TwoStepRestorer", "two_step_encoder_A": "ConditionalEncoder"}
"""Of which the names and shapes are enough: one is large, the other makes no images."""


def claims(state: dict[str, Tensor]) -> list[str]:
    """Return all names under which a state dict is recognized."""
    own = [
        architecture.name
        for architecture in ARCHITECTURES
        if architecture.translate(state) is not None
    ]
    return own + [foreign.name.split()[0] for foreign in UNSUPPORTED if matches(foreign, state)]


def test_each_list_of_keys_is_claimed_by_its_own(recordings: Path) -> None:
    paths = sorted((recordings / "keys").glob("*.txt"))
    assert paths
    for path in paths:
        assert claims(listed_state(path)) == [PUBLISHED[path.stem]], path.stem


@pytest.mark.parametrize(("case", "name"), NAMED.items())
def test_recorded_names_are_claimed_by_their_own(recordings: Path, case: str, name: str) -> None:
    description, _ = recorded(recordings, case)
    assert claims(
        {key: torch.empty(s, device="meta") for key, (_, s) in description["state_dict"].items()}
    ) == [name]


@pytest.mark.parametrize(("case", "name"), RECORDED.items())
@pytest.mark.parametrize("prefix", ["", "generator."])
def test_recorded_weights_are_recognized_and_load(
    recordings: Path, case: str, name: str, prefix: str
) -> None:
    description, _ = recorded(recordings, case)
    state = recorded_state(recordings, description)
    opened = open_checkpoint(
        {"state_dict": {f"{prefix}{key}": value for key, value in state.items()}}
    )
    assert opened.architecture.name == name
    assert type(opened.model).__name__ == name
    assert not opened.model.training
    contract = opened.architecture.contract(opened.config)
    assert contract is not None
    assert contract.scale == description.get("scale", contract.scale)
