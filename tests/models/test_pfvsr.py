import dataclasses
from contextlib import nullcontext
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import CheckpointError, ConfigError
from tubelet.layers.frozen import all_parameters
from tubelet.layers.inference import prepare_for_inference
from tubelet.layers.temporal_mixing import TimeAttention, TrajectoryAttention
from tubelet.models.dat import ARCHITECTURE as DAT_ARCHITECTURE
from tubelet.models.dat import DAT, DATConfig
from tubelet.models.edsr import EDSR, EDSRConfig
from tubelet.models.hat import HAT, HATConfig
from tubelet.models.msrresnet import MSRResNet, MSRResNetConfig
from tubelet.models.pfvsr import (
    ARCHITECTURE,
    PFVSR,
    PFVSRConfig,
    adapt,
    adapters_for,
    needed_backbone,
)
from tubelet.models.rrdb import RRDBConfig, RRDBNet
from tubelet.models.srvgg import SRVGGConfig, SRVGGNetCompact
from tubelet.models.swinir import SwinIR, SwinIRConfig
from tubelet.training.activation_checkpointing import activation_checkpointing
from tubelet.zoo.bases import hash_tensors, refer_to
from tubelet.zoo.checkpoint import open_checkpoint, save_checkpoint
from tubelet.zoo.opening import open_model

_GROUPS = {"depths": (2, 1), "num_heads": (2, 2), "channels": 12}
TRANSFORMERS = {
    "swinir pixelshuffledirect": lambda: SwinIR(
        SwinIRConfig(**_GROUPS, window=4, upsampler="pixelshuffledirect")
    ),
    "swinir pixelshuffle": lambda: SwinIR(
        SwinIRConfig(**_GROUPS, window=4, scale=2, upsample_channels=4)
    ),
    "swinir nearest+conv": lambda: SwinIR(
        SwinIRConfig(**_GROUPS, window=4, scale=2, upsampler="nearest+conv", upsample_channels=4)
    ),
    "swinir none": lambda: SwinIR(
        SwinIRConfig(**_GROUPS, window=4, scale=1, upsampler="none", qkv_bias=False)
    ),
    "dat": lambda: DAT(
        DATConfig(
            channels=32,
            depths=(4, 2),
            num_heads=(2, 2),
            split_size=(2, 4),
            scale=2,
            mlp_ratio=1.0,
            upsample_channels=4,
        )
    ),
    "hat": lambda: HAT(
        HATConfig(**_GROUPS, window=4, squeeze_factor=4, upsample_channels=4, scale=2)
    ),
}
CONVOLUTIONAL = {
    "rrdb": lambda: RRDBNet(RRDBConfig(channels=8, num_blocks=2, growth_channels=4)),
    "rrdb x2": lambda: RRDBNet(
        RRDBConfig(channels=8, num_blocks=2, growth_channels=4, unshuffle=2)
    ),
    "edsr": lambda: EDSR(EDSRConfig(channels=8, num_blocks=2, scale=2)),
    "msrresnet": lambda: MSRResNet(MSRResNetConfig(channels=8, num_blocks=2)),
    "srvgg": lambda: SRVGGNetCompact(SRVGGConfig(channels=8, num_blocks=2, scale=2)),
}
BACKBONES = TRANSFORMERS | CONVOLUTIONAL


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return BACKBONES[name]().eval()


def strategies(name: str) -> tuple[str, ...]:
    return ("t-msa", "trajectory", "none") if name in TRANSFORMERS else ("neighbors", "none")


def train_like(network: PFVSR, std: float = 0.1) -> PFVSR:
    """Draw every layer that starts at zero."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        if ".up." in name or name.endswith("gate"):
            with torch.no_grad():
                parameter.normal_(0, std, generator=generator)
    return network


def by_itself(backbone: nn.Module, lq: Tensor) -> Tensor:
    sr = backbone(lq.flatten(0, 1)[:, None])
    return sr.view(*lq.shape[:2], *sr.shape[2:])


def count(config: PFVSRConfig, part: str) -> int:
    with torch.device("meta"):
        network = PFVSR(config)
    return sum(p.numel() for name, p in network.named_parameters() if f".{part}." in name)


@pytest.mark.parametrize("is_prepared", [False, True], ids=["reference", "inference"])
@pytest.mark.parametrize("name", BACKBONES)
def test_untrained_adapters_change_nothing(name, is_prepared):
    backbone = build(name)
    if is_prepared:
        prepare_for_inference(backbone)
    settings = list(product(strategies(name), ("T-first", "S-first"), ("after", "before")))
    if name in CONVOLUTIONAL:
        # The order and the position of the adapters are settings of transformers.
        settings = settings[::4]
    for number, (temporal, order, position) in enumerate(settings):
        num_frames = (1, 2, 3, 5)[number % 4]
        lq = torch.rand(2, num_frames, 3, 14, 10)
        network = adapt(
            backbone,
            temporal=temporal,
            order=order,
            position=position,
            mlp="adapter",
            token_px=2,
        )
        if is_prepared:
            prepare_for_inference(network)
        with torch.inference_mode():
            assert torch.equal(network(lq), by_itself(backbone, lq))


def test_the_paper_form_before_the_attention_has_no_gate():
    backbone = build("hat")
    network = adapt(backbone, position="before", gate="none")
    lq = torch.rand(1, 2, 3, 8, 8)
    with torch.inference_mode():
        assert not torch.equal(network(lq), by_itself(backbone, lq))
    assert not any(name.endswith("gate") for name in network.state_dict())


@pytest.mark.parametrize("name", ["swinir pixelshuffledirect", "hat", "dat", "rrdb x2", "srvgg"])
def test_another_frame_matters_with_a_temporal_strategy_alone(name):
    backbone = build(name)
    lq = torch.rand(1, 3, 3, 8, 8)
    other = lq.clone()
    other[:, 2] = torch.rand(3, 8, 8)
    for temporal in strategies(name):
        network = train_like(adapt(backbone, temporal=temporal, token_px=2))
        with torch.inference_mode():
            is_equal = torch.equal(network(lq)[:, 1], network(other)[:, 1])
        assert is_equal == (temporal == "none")


@pytest.mark.parametrize(("temporal", "is_blind"), [("t-msa", True), ("trajectory", False)])
def test_attention_along_time_ignores_the_order_of_frames(temporal, is_blind):
    network = train_like(adapt(build("swinir none"), temporal=temporal, token_px=2), 0.5)
    lq = torch.rand(1, 4, 3, 8, 8)
    order = [2, 0, 3, 1]
    with torch.inference_mode():
        difference = (network(lq[:, order]) - network(lq)[:, order]).abs().max()
    assert (difference < 1e-5) == is_blind


def test_both_branches_use_the_weights_of_the_block():
    backbone = build("swinir none")
    lq = torch.rand(1, 2, 3, 8, 8)
    for settings in ({"spatial": "none"}, {"temporal": "none"}):
        network = train_like(adapt(backbone, **settings))
        names = network.state_dict().keys()
        assert all(name.startswith("blocks.") for name in names)
        with torch.no_grad():
            before = network(lq) - by_itself(backbone, lq)
            weight = backbone.layers[0].blocks[0].attn.qkv.weight
            weight.add_(0.1 * torch.randn_like(weight))
            after = network(lq) - by_itself(backbone, lq)
        # What the adapters add depends on the frozen projections.
        assert not torch.allclose(before, after, atol=1e-6)


SWINIR = PFVSRConfig(num_blocks=36)
COUNTS = {
    "SwinIR classical, HAT": (SWINIR, 1_176_120, 1_176_120),
    "HAT-S": (PFVSRConfig(channels=144), 754_272, 754_272),
    "SwinIR light": (PFVSRConfig(channels=60, num_blocks=24), 88_560, 88_560),
    "DAT-light": (PFVSRConfig(channels=60, num_blocks=18, temporal_stride=2), 66_420, 33_210),
    "DAT": (PFVSRConfig(temporal_stride=2), 1_176_120, 588_060),
    "small-swinir": (PFVSRConfig(channels=48, num_blocks=8), 19_008, 19_008),
    "paper-budget": (
        PFVSRConfig(spatial_width=246, temporal_width=453),
        3_203_496,
        5_893_668,
    ),
    "RRDBNet": (
        PFVSRConfig(kind="convolution", temporal="neighbors", channels=64, num_blocks=23),
        96_416,
        190_624,
    ),
    "RRDBNet, every dense block": (
        PFVSRConfig(kind="convolution", temporal="neighbors", channels=64, num_blocks=69),
        289_248,
        571_872,
    ),
    "RRDBNet 6B": (
        PFVSRConfig(kind="convolution", temporal="neighbors", channels=64, num_blocks=6),
        25_152,
        49_728,
    ),
}


@pytest.mark.parametrize(("config", "spatial", "temporal"), COUNTS.values(), ids=list(COUNTS))
def test_parameters_are_those_of_the_specification(config, spatial, temporal):
    assert count(config, "spatial") == spatial
    assert count(config, "temporal") == temporal


def test_a_trained_flow_counts_apart():
    with torch.device("meta"):
        network = PFVSR(dataclasses.replace(SWINIR, temporal="trajectory"))
    assert sum(p.numel() for p in network.spynet.parameters()) == 1_440_300
    assert network.strategy is not None
    assert PFVSR(dataclasses.replace(SWINIR, temporal="trajectory", flow="frozen")).spynet is None


@pytest.mark.parametrize(
    ("name", "settings", "moved"),
    [
        ("swinir none", {"temporal": "t-msa", "mlp": "adapter"}, (".up.",)),
        ("hat", {"temporal": "trajectory", "token_px": 2}, (".up.",)),
        # Before the attention, the adapter of space is behind nothing that is zero, that of time
        # is behind the gate.
        ("swinir none", {"position": "before", "spatial": "none"}, ("gate",)),
        ("rrdb", {}, (".up.",)),
    ],
)
def test_training_moves_what_is_behind_no_zero(name, settings, moved):
    backbone = build(name)
    digest = hash_tensors(backbone)
    network = adapt(backbone, **settings).train()
    # Frames of pictures, so that flow and matches are those of a video.
    lq = functional.interpolate(torch.rand(4, 3, 4, 4), (16, 16), mode="bicubic").clamp(0, 1)
    lq = lq.view(2, 2, 3, 16, 16)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)

    def step() -> set[str]:
        before = {name: value.clone() for name, value in network.named_parameters()}
        optimizer.zero_grad()
        (network(lq) - 0.5).square().mean().backward()
        optimizer.step()
        return {name for name, value in network.named_parameters() if not value.equal(before[name])}

    names = set(dict(network.named_parameters()))
    assert step() == {name for name in names if any(part in name for part in moved)}
    num_steps = 2 if settings.get("position") == "before" else 1
    for _ in range(num_steps - 1):
        step()
    adapters = {name for name in names if not name.startswith("spynet.")}
    assert step() >= adapters
    if "spynet.basic_module.0.basic_module.0.weight" in names:
        assert network.spynet.basic_module[0].basic_module[0].weight.grad.abs().max() > 0
    # The specification asks for 50 steps; one network is enough for that.
    for _ in range(48 if name == "swinir none" else 3):
        step()
    assert hash_tensors(backbone) == digest
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_nearest_trajectories_have_no_flow_to_train():
    network = adapt(build("hat"), temporal="trajectory", gather="nearest")
    assert network.spynet is None


def test_the_gradient_is_that_of_the_plain_formula():
    """T-first, T-MSA and S-MSA as the paper writes them, token by token, in float64."""
    backbone = build("swinir none").double()
    network = train_like(adapt(backbone).double())
    lq = torch.rand(1, 3, 3, 8, 8, dtype=torch.float64)
    network(lq).square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()

    block = backbone.layers[0].blocks[0]
    adapters = iter(network.blocks)

    def plain(block: nn.Module, adapter: nn.Module, x: Tensor) -> Tensor:
        y = block.norm1(x)  # (T, H, W, C)
        q, k, v = block.attn.qkv(y).chunk(3, -1)
        heads = block.attn.heads
        d = q.shape[-1] // heads
        mixed = torch.zeros_like(y)
        for t, h in product(range(len(x)), range(heads)):
            part = slice(h * d, (h + 1) * d)
            scores = (q[t, ..., part] * k[..., part]).sum(-1) / d**0.5  # (T, H, W)
            weights = scores.softmax(0)[..., None]
            mixed[t, ..., part] = (weights * v[..., part]).sum(0)
        x = x + adapter.temporal(block.attn.proj(mixed))

        def adapted(tokens: Tensor, size: tuple[int, ...]) -> Tensor:
            a = block.attn(tokens, size)
            return a + adapter.spatial(a)

        x = block.add_attention(x, adapted)
        return x + block.mlp(block.norm2(x))

    for group in backbone.layers:
        for block in group.blocks:
            block.forward = partial(plain, block, next(adapters))
    by_itself(backbone, lq).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-10, rtol=1e-10), name


def test_a_file_has_the_adapters_and_refers_to_the_image_network(tmp_path):
    backbone = build("swinir none")
    image_file = tmp_path / "image.safetensors"
    save_checkpoint(image_file, backbone, {})
    base = open_model(str(image_file))
    network = train_like(adapt(base.network, temporal="trajectory", token_px=2, flow="frozen"))
    file = tmp_path / "street.safetensors"
    save_checkpoint(file, network, {}, base=refer_to(base, tmp_path))
    num_bytes = 4 * sum(parameter.numel() for parameter in network.parameters())
    assert file.stat().st_size <= num_bytes + 64 * 1024

    opened = open_model(str(file))
    assert opened.network.config == network.config
    lq = torch.rand(1, 3, 3, 12, 8)
    with torch.inference_mode():
        assert torch.equal(opened.network(lq), network(lq))

    # One bit of one weight.
    with torch.no_grad():
        weight = backbone.conv_first.weight.view(-1)
        weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    save_checkpoint(image_file, backbone, {})
    with pytest.raises(CheckpointError, match="trained with other weights"):
        open_model(str(file))


@pytest.mark.parametrize("name", BACKBONES)
def test_shapes_tell_the_configuration(name):
    backbone = build(name)
    for temporal in strategies(name):
        config = adapters_for(backbone, temporal=temporal, num_overlaps=int(name == "hat"))
        opened = open_checkpoint(PFVSR(config).state_dict())
        assert opened.architecture is ARCHITECTURE
        assert isinstance(opened.model, PFVSR)
        assert opened.config.num_blocks == config.num_blocks
        assert opened.config.temporal == temporal
        assert opened.config.num_overlaps == config.num_overlaps


@pytest.mark.parametrize("temporal", ["t-msa", "none"])
def test_files_without_spatial_adapters_open(temporal):
    backbone = build("hat")
    config = adapters_for(backbone, spatial="none", temporal=temporal, mlp="adapter")
    opened = open_checkpoint(PFVSR(config).state_dict())
    assert (opened.config.spatial, opened.config.temporal) == ("none", temporal)
    assert opened.config.mlp == "adapter"
    assert opened.config.num_blocks == 3
    opened.model.with_backbone(backbone)


def test_adapters_of_overlapping_attention():
    backbone = build("hat")
    network = adapt(backbone, num_overlaps=1)
    assert len(network.overlaps) == 2
    lq = torch.rand(1, 2, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(network(lq), by_itself(backbone, lq))
        nn.init.ones_(network.overlaps[1].spatial.up.bias)
        assert not torch.equal(network(lq), by_itself(backbone, lq))


def test_a_strategy_of_ones_own():
    class Shift(nn.Module):
        """Every frame sees the one before it."""

        uses_flow = False

        def mix(self, y, attention, clip):
            frames = y.view(-1, clip.num_frames, *y.shape[1:])
            earlier = torch.cat([torch.zeros_like(frames[:, :1]), frames[:, :-1]], 1)
            return earlier.flatten(0, 1)

    backbone = build("hat")
    network = PFVSR(adapters_for(backbone), strategy=Shift()).with_backbone(backbone)
    train_like(network)
    lq = torch.rand(1, 3, 3, 8, 8)
    other = lq.clone()
    other[:, 1] = torch.rand(3, 8, 8)
    with torch.inference_mode():
        difference = (network(lq) - network(other))[0].abs().amax((1, 2, 3))
    assert (difference > 0).tolist() == [False, True, True]


def test_a_strategy_needs_adapters_and_no_parameters():
    backbone = build("hat")
    with pytest.raises(ConfigError, match="there are no adapters for it"):
        PFVSR(adapters_for(backbone, temporal="none"), strategy=TimeAttention())
    strategy = TimeAttention()
    strategy.weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(ConfigError, match="TimeAttention has parameters"):
        PFVSR(adapters_for(backbone), strategy=strategy)
    # A strategy that needs flow gets it, whatever the configuration says.
    strategy = TrajectoryAttention(token_px=2)
    network = PFVSR(adapters_for(backbone), strategy=strategy).with_backbone(backbone)
    lq = torch.rand(1, 2, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(network(lq), by_itself(backbone, lq))


def test_recomputed_activations_have_the_same_gradient():
    network = train_like(adapt(build("swinir none"), temporal="trajectory", token_px=2))
    lq = torch.rand(1, 3, 3, 8, 8)
    gradients = []
    for context in (nullcontext(), activation_checkpointing(network)):
        network.zero_grad()
        with context:
            network(lq).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-6), name


def test_the_engine_knows_what_the_image_network_sees():
    backbone = build("dat")
    config = adapters_for(backbone)
    own = ARCHITECTURE.contract(config)
    image = DAT_ARCHITECTURE.contract(backbone.config)
    both = needed_backbone(config).contract(own, image)
    assert both.sees_whole_image
    assert both.temporal == own.temporal
    assert both.precisions == ("fp32",)


def test_every_part_has_a_width_of_its_own():
    backbone = build("hat")
    network = adapt(backbone, spatial="none", mlp="adapter", num_overlaps=1)
    assert network.blocks[0].spatial is None
    assert network.blocks[0].mlp.down.out_features == 6
    assert network.overlaps[0].spatial.down.out_features == 6


def test_dat_sees_other_frames_in_its_spatial_attention():
    backbone = build("dat")
    network = adapt(backbone)
    for number, (adapters, block) in enumerate(
        zip(network.blocks, [b for group in backbone.layers for b in group.blocks], strict=True)
    ):
        assert (adapters.temporal is not None) == (number % 2 == 0)
        is_spatial = type(block.attn).__name__ == "AdaptiveSpatialAttention"
        assert (adapters.temporal is not None) == is_spatial


@pytest.mark.parametrize("mode", ["token", "channel"])
def test_channel_attention_of_dat_may_have_a_temporal_branch(mode):
    backbone = build("dat")
    lq = torch.rand(1, 3, 3, 8, 8)
    network = adapt(backbone, channel_temporal=mode)
    assert all(adapters.temporal is not None for adapters in network.blocks)
    with torch.inference_mode():
        assert torch.equal(network(lq), by_itself(backbone, lq))
        # The second block attends between channels.
        nn.init.normal_(network.blocks[1].temporal.up.weight)
        changed = network(lq)
    assert not torch.allclose(changed, by_itself(backbone, lq), atol=1e-6)
    # The order of the frames does not matter.
    with torch.inference_mode():
        assert torch.allclose(network(lq.flip(1)).flip(1), changed, atol=1e-5)
    assert count(PFVSRConfig(channels=60, num_blocks=18), "temporal") == 66_420


def test_the_backbone_is_as_before_after_a_call():
    backbone = build("edsr")
    network = train_like(adapt(backbone))
    lq = torch.rand(1, 2, 3, 8, 8)
    before = by_itself(backbone, lq)
    network(lq)
    assert torch.equal(by_itself(backbone, lq), before)
    assert len(list(all_parameters(network))) > len(list(network.parameters()))


def test_a_pattern_names_the_modules():
    backbone = build("rrdb")
    network = adapt(backbone, pattern="body.*.rdb[13]")
    assert network.config.num_blocks == 4
    lq = torch.rand(1, 2, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(network(lq), by_itself(backbone, lq))
    assert adapters_for(backbone, pattern="body.*.rdb*").num_blocks == 6


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"2 convolution blocks of 8 channels"):
        PFVSR(adapters_for(build("hat"))).with_backbone(build("edsr"))
    with pytest.raises(ConfigError, match="no image network"):
        PFVSR(adapters_for(build("hat")))(torch.rand(1, 1, 3, 8, 8))
    with pytest.raises(ConfigError, match="Linear has no blocks"):
        adapt(nn.Linear(3, 3))
    with pytest.raises(ConfigError, match=r"body\.4 outputs \(1, 12, 16, 16\)"):
        # The last convolution makes the image.
        adapt(SRVGGNetCompact(SRVGGConfig(channels=8, num_blocks=1, scale=2)), pattern="body.4")
    with pytest.raises(ConfigError, match="nothing to train"):
        adapt(build("edsr"), spatial="none", temporal="none")
    with pytest.raises(ConfigError, match=r"even depths, not \(3,\)"):
        adapt(DAT(DATConfig(channels=32, depths=(3,), num_heads=(2,))))
    with pytest.raises(ConfigError, match="no module of EDSR"):
        adapt(build("edsr"), pattern="trunk")
    with pytest.raises(
        ConfigError, match="temporal='neighbors' does not fit HAT; use one of t-msa"
    ):
        adapt(build("hat"), temporal="neighbors")
