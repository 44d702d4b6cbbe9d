import pytest
import torch

from tubelet.errors import ConfigError
from tubelet.models.fast import FastConfig, FastVSR

SMALL = {"channels": 8, "num_blocks": 2}
CONFIGS = [
    FastConfig(**SMALL),
    FastConfig(**SMALL, scale=2, lookahead=0),
    FastConfig(**SMALL, scale=3, output="rgb", expansion=2),
    FastConfig(**SMALL, recurrent=False, expansion=3),
]


def _model(config: FastConfig) -> FastVSR:
    torch.manual_seed(0)
    model = FastVSR(config).eval()
    # The recurrent path starts at zero, which would hide its effect.
    if model.recall is not None:
        for parameter in model.recall.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("config", CONFIGS)
def test_shape_and_gradients_of_every_parameter(config):
    model = _model(config).train()
    sr = model(torch.rand(2, 3, 3, 10, 13))
    assert sr.shape == (2, 3, 3, 10 * config.scale, 13 * config.scale)
    sr.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("config", CONFIGS)
@torch.inference_mode()
def test_collapsing_changes_no_pixel(config):
    model = _model(config)
    lq = torch.rand(1, 4, 3, 12, 12)
    wide = model(lq)
    collapsed = model.collapse()
    assert all(
        m.weight.shape[-1] == 3 for m in collapsed.modules() if isinstance(m, torch.nn.Conv2d)
    )
    torch.testing.assert_close(collapsed(lq), wide, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
@torch.inference_mode()
def test_steps_equal_the_clip_and_batches_are_independent(config):
    model = _model(config)
    lq = torch.rand(2, 5, 3, 9, 9)
    whole = model(lq)
    hidden = None
    for t in range(5):
        following = lq[:, [min(t + i, 4) for i in range(1 + config.lookahead)]]
        sr, hidden = model.step(following, hidden)
        torch.testing.assert_close(sr, whole[:, t])
    torch.testing.assert_close(model(lq[1:]), whole[1:])


@torch.inference_mode()
def test_frames_beyond_the_lookahead_do_not_matter_and_past_ones_do():
    model = _model(FastConfig(**SMALL))
    lq = torch.rand(1, 6, 3, 9, 9)
    changed_future = lq.clone()
    changed_past = lq.clone()
    changed_future[:, 4:] = 0
    changed_past[:, 0] = 0
    sr = model(lq)
    assert torch.equal(model(changed_future)[:, :3], sr[:, :3])
    assert not torch.equal(model(changed_future)[:, 3], sr[:, 3])
    assert not torch.equal(model(changed_past)[:, 4], sr[:, 4])


@torch.inference_mode()
def test_luma_output_leaves_color_differences_to_the_skip():
    model = _model(FastConfig(**SMALL))
    lq = torch.rand(1, 2, 3, 9, 9)
    skip = torch.nn.functional.interpolate(lq[:, 0], scale_factor=4.0, mode="bilinear")
    detail = model(lq)[:, 0] - skip
    assert detail.abs().max() > 1e-3
    torch.testing.assert_close(detail[:, 0], detail[:, 2])


def test_bad_configuration_is_refused():
    with pytest.raises(ConfigError, match="scale=5 must be 2, 3 or 4"):
        FastConfig(scale=5)
