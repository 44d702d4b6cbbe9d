"""PSRT and MIA-VSR without masks: recorded outputs and published files."""

from pathlib import Path

import pytest
import torch

from helpers.clip_parity import assert_clip_as_recorded, assert_recognized
from helpers.image_parity import published_keys
from tubelet.models import mia_vsr, psrt
from tubelet.models.mia_vsr import MIAVSRConfig
from tubelet.models.psrt import PSRTConfig
from tubelet.zoo.checkpoint import open_checkpoint


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("case", "changes"),
    [("psrt_recurrent_A", {}), ("miavsr_nomask_A", {"use_mask": False})],
)
def test_gives_the_recorded_output(
    recordings: Path, case: str, changes: dict[str, bool], layout: torch.memory_format
) -> None:
    assert_clip_as_recorded(recordings, case, layout, **changes)


def test_recognizes_the_published_files(recordings: Path) -> None:
    assert_recognized(
        recordings, "psrt_recurrent_reds", psrt.ARCHITECTURE, PSRTConfig(), 13_366_943
    )
    assert_recognized(recordings, "miavsr_reds", mia_vsr.ARCHITECTURE, MIAVSRConfig(), 16_596_719)


def test_infers_the_configuration_it_was_built_with() -> None:
    torch.manual_seed(0)
    config = PSRTConfig(
        channels=8, depths=(2, 1), num_heads=(2, 4), window=4, mid_channels=4, hr_channels=6
    )
    opened = open_checkpoint(psrt.PSRT(config).state_dict())
    assert opened.architecture is psrt.ARCHITECTURE
    assert opened.config == config


def test_leaves_files_of_other_networks_alone(recordings: Path) -> None:
    state = published_keys(recordings, "psrt_recurrent_reds")
    assert psrt.ARCHITECTURE.translate({**state, "another.weight": torch.zeros(1)}) is None
    assert psrt.ARCHITECTURE.translate({}) is None
