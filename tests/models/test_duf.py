from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers.clip_parity import assert_clip_as_recorded, assert_recognized
from helpers.image_parity import assert_every_parameter_learns, load, published_keys
from tubelet.errors import ConfigError
from tubelet.models.duf import ARCHITECTURE, DUF, DenseBlock, DUFConfig, apply_filters

TINY: dict[str, Any] = {"channels": 4, "growth_channels": 2, "num_blocks": 2}


def _seeded(**changes: Any) -> DUF:
    torch.manual_seed(0)
    model = DUF(DUFConfig(**{**TINY, **changes})).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    return model


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("case", "changes"), [("duf16_A", {}), ("duf16_A_eps", {"norm_eps": 1e-3})]
)
def test_recorded_outputs(
    recordings: Path, case: str, changes: dict[str, Any], layout: torch.memory_format
) -> None:
    assert_clip_as_recorded(recordings, case, layout, arrange=lambda sr: sr[:, 0], **changes)


@pytest.mark.parametrize(
    ("file", "config", "parameters"),
    [
        ("basicsr_duf_16", DUFConfig(num_blocks=3, growth_channels=32), 1_900_640),
        ("basicsr_duf_52", DUFConfig(num_blocks=21, growth_channels=16), 5_821_952),
    ],
)
def test_recognizes_published_files(
    recordings: Path, file: str, config: DUFConfig, parameters: int
) -> None:
    assert_recognized(recordings, file, ARCHITECTURE, config, parameters)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_loads_its_own_names(scale: int) -> None:
    model = _seeded(scale=scale)
    assert load(ARCHITECTURE, model.state_dict()).config == model.config


def test_refuses_other_files(recordings: Path) -> None:
    others = [path.stem for path in (recordings / "keys").glob("*.txt") if "duf" not in path.stem]
    assert len(others) > 40
    assert [
        file
        for file in others
        if ARCHITECTURE.translate(published_keys(recordings, file)) is not None
    ] == []
    assert ARCHITECTURE.translate({}) is None


@pytest.mark.parametrize("ends", ["zeros", "drop"])
def test_a_block_equals_a_convolution_in_time_and_the_plane(ends: Any) -> None:
    torch.manual_seed(0)
    block = DenseBlock(4, 3, ends, 1e-5).eval()
    x = torch.rand(2, 4, 5, 6, 7)  # (B, C, T, H, W)
    nn.init.uniform_(block.bias)
    weight = block.conv_2.weight.unflatten(0, (3, 3)).permute(1, 2, 0, 3, 4)  # (O, C, 3, 3, 3)
    with torch.inference_mode():
        middle = functional.relu(block.norm_1(x.transpose(1, 2).flatten(0, 1)))
        middle = (
            functional.relu(block.norm_2(block.conv_1(middle))).unflatten(0, (2, 5)).transpose(1, 2)
        )
        new = functional.conv3d(
            middle, weight, block.bias, padding=(1 if ends == "zeros" else 0, 1, 1)
        )
        old = x if ends == "zeros" else x[:, :, 1:-1]
        out = torch.stack(block(list(x.unbind(2))), 2)
    torch.testing.assert_close(out, torch.cat([old, new], 1), rtol=0, atol=1e-5)


def test_training_normalizes_over_all_frames() -> None:
    torch.manual_seed(0)
    block = DenseBlock(3, 2, "zeros", 1e-5)
    frames = [torch.rand(1, 3, 4, 4) + t for t in range(3)]
    expected = torch.cat(frames).mean((0, 2, 3))
    block(frames)
    torch.testing.assert_close(block.norm_1.running_mean, expected * block.norm_1.momentum)


def test_filters_that_select_a_tap_shift_the_frame() -> None:
    frame = torch.rand(1, 3, 6, 7)
    filters = torch.full((1, 9, 2, 6, 7), -1e4)
    # The filter of the first sub-pixel selects the pixel, that of the second the one above it.
    filters[:, 4, 0] = 0
    filters[:, 1, 1] = 0
    out = apply_filters(frame, filters.flatten(1, 2), 3)
    torch.testing.assert_close(out[:, 0::2], frame)
    torch.testing.assert_close(out[:, 1::2, 1:], frame[:, :, :-1])
    assert not out[:, 1::2, 0].any()


def test_gradients_reach_every_parameter() -> None:
    assert_every_parameter_learns(_seeded(), torch.rand(2, 7, 3, 6, 7))


def test_tiles_with_the_stated_halo_equal_the_whole() -> None:
    model = _seeded()
    contract = ARCHITECTURE.contract(model.config)
    assert contract is not None
    lq = torch.rand(1, 7, 3, 4, 32)

    def without(column: int) -> Tensor:
        changed = lq.clone()
        changed[..., column:] = 0
        # The first 8 columns of lq
        return model(changed)[..., : 4 * 8]

    with torch.inference_mode():
        torch.testing.assert_close(
            without(contract.halo_px + 8), model(lq)[..., : 4 * 8], rtol=0, atol=1e-7
        )
        assert (without(contract.halo_px + 6) - model(lq)[..., : 4 * 8]).abs().max() > 4e-7


def test_refuses_a_configuration_out_of_range() -> None:
    for changes in (
        {"scale": 8},
        {"growth_channels": 0},
        {"channels": 0},
        {"num_blocks": -1},
        {"norm_eps": 0.0},
    ):
        with pytest.raises(ConfigError):
            DUFConfig(**{**TINY, **changes})
