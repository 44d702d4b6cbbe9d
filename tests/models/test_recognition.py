"""Every published file is claimed by the architecture that it is of, and by no other."""

from pathlib import Path

import pytest

from golden import recorded
from published_nets import listed_state, recorded_state
from tubelet.models.checkpoint import ARCHITECTURES, open_checkpoint

PUBLISHED = {
    "basicsr_basicvsr_reds_b30": "BasicVSR",
    "mmagic_basicvsr": "BasicVSR",
    "basicsr_edsr_L_x4": "EDSR",
    "basicsr_edsr_M_x4": "EDSR",
    "basicsr_rrdb_6b_anime": "RRDBNet",
    "basicsr_rrdb_x4": "RRDBNet",
    "basicsr_spynet": "SpyNet",
    "frnet_nb10": "FRVSR",
    "rrn_10L": "RRN",
    "rrn_5L": "RRN",
    "rsdn9_128": "RSDN",
    "srvgg_animevideov3": "SRVGGNetCompact",
    "srvgg_general_x4v3": "SRVGGNetCompact",
}
RECORDED = {
    "basicvsr_A": "BasicVSR",
    "basicvsr_mmagic_A": "BasicVSR",
    "edsr_A": "EDSR",
    "frvsr_bd_A": "FRVSR",
    "fsrcnn_x4_A": "FSRCNN",
    "msrresnet_A": "MSRResNet",
    "rlsp_A": "RLSP",
    "rrdbnet_kair_x4_A": "RRDBNet",
    "rrdbnet_x2_A": "RRDBNet",
    "rrn_A": "RRN",
    "rsdn_A_damped": "RSDN",
    "srvgg_x4_A": "SRVGGNetCompact",
}


def test_each_list_of_keys_is_claimed_by_its_own(shared: Path) -> None:
    for path in sorted((shared / "keys").glob("*.txt")):
        state = listed_state(path)
        claims = [architecture.name for architecture in ARCHITECTURES if architecture.translate(state) is not None]
        assert claims == ([PUBLISHED[path.stem]] if path.stem in PUBLISHED else []), path.stem


@pytest.mark.parametrize(("case", "name"), RECORDED.items())
@pytest.mark.parametrize("prefix", ["", "generator."])
def test_recorded_weights_load_without_being_told_what_they_are(
    shared: Path, case: str, name: str, prefix: str
) -> None:
    description, _ = recorded(shared, case)
    state = recorded_state(shared, description)
    opened = open_checkpoint({"state_dict": {f"{prefix}{key}": value for key, value in state.items()}})
    assert opened.architecture.name == name
    assert type(opened.model).__name__ == name
    assert not opened.model.training
    contract = opened.architecture.contract(opened.config)
    assert contract is not None
    assert contract.scale == description.get("scale", contract.scale)
