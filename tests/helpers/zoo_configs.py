"""A configuration of every architecture that makes images, as small as it goes."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tubelet.models.architecture import Architecture
from tubelet.models.basicvsr import BasicVSRConfig
from tubelet.models.basicvsr_pp import BasicVSRPlusPlusConfig
from tubelet.models.dat import DATConfig
from tubelet.models.duf import DUFConfig
from tubelet.models.edsr import EDSR, EDSRConfig
from tubelet.models.edvr import EDVRConfig
from tubelet.models.fast import FastConfig
from tubelet.models.frvsr import FRVSRConfig
from tubelet.models.fsrcnn import FSRCNNConfig
from tubelet.models.hat import HATConfig
from tubelet.models.iart import IARTConfig
from tubelet.models.iconvsr import IconVSRConfig
from tubelet.models.lrti_vsr import LRTIVSRConfig
from tubelet.models.mia_vsr import MIAVSRConfig
from tubelet.models.msrresnet import MSRResNetConfig
from tubelet.models.ovsr import OVSRConfig
from tubelet.models.pfvsr import PFVSR, PFVSRConfig
from tubelet.models.psrt import PSRTConfig
from tubelet.models.rbpn import RBPNConfig
from tubelet.models.realbasicvsr import RealBasicVSRConfig
from tubelet.models.rlsp import RLSPConfig
from tubelet.models.rrdb import RRDBConfig
from tubelet.models.rrn import RRNConfig
from tubelet.models.rsdn import RSDNConfig
from tubelet.models.rvrt import RVRTConfig
from tubelet.models.sesr import SESRConfig
from tubelet.models.srvgg import SRVGGConfig
from tubelet.models.swinir import SwinIRConfig
from tubelet.models.tdan import TDANConfig
from tubelet.models.tmnet import TMNetConfig
from tubelet.models.toflow import TOFlowConfig
from tubelet.models.ttvsr import TTVSRConfig
from tubelet.models.two_step import TwoStepConfig, TwoStepRestorer
from tubelet.models.vrt import VRTConfig
from tubelet.models.zooming_slow_mo import ZoomingSlowMoConfig
from tubelet.zoo.architectures import ARCHITECTURES
from tubelet.zoo.baselines import Resample
from tubelet.zoo.checkpoint import save_checkpoint

_ATTENTION: dict[str, Any] = {
    "channels": 8,
    "depths": (2,),
    "num_heads": (2,),
    "upsample_channels": 8,
}
_CHAIN: dict[str, Any] = {
    "channels": 8,
    "depths": (2,),
    "num_heads": (2,),
    "mid_channels": 8,
    "hr_channels": 8,
    "drop_path": 0.0,
}

TINY: dict[str, Any] = {
    "BasicVSR": BasicVSRConfig(channels=8, num_blocks=1),
    "BasicVSRPlusPlus": BasicVSRPlusPlusConfig(channels=8, num_blocks=1, groups=2),
    "DAT": DATConfig(**(_ATTENTION | {"channels": 64}), split_size=(4, 8), drop_path=0.0),
    "DUF": DUFConfig(channels=8, num_blocks=3, growth_channels=4),
    "EDSR": EDSRConfig(channels=8, num_blocks=1),
    "EDVR": EDVRConfig(
        channels=8, num_frames=3, groups=2, num_extract_blocks=1, num_reconstruct_blocks=1
    ),
    "FastVSR": FastConfig(channels=8, num_blocks=1, expansion=2),
    "FRVSR": FRVSRConfig(channels=8, num_blocks=1),
    "FSRCNN": FSRCNNConfig(),
    "HAT": HATConfig(**_ATTENTION, window=8, compress_ratio=2, squeeze_factor=2),
    "IART": IARTConfig(**_CHAIN),
    "IconVSR": IconVSRConfig(channels=8, num_blocks=1, groups=2, temporal_padding=1),
    "LRTIVSR": LRTIVSRConfig(**_CHAIN),
    "MIAVSR": MIAVSRConfig(**_CHAIN),
    "MSRResNet": MSRResNetConfig(channels=8, num_blocks=1),
    "OVSR": OVSRConfig(channels=8, num_precursor_blocks=1, num_successor_blocks=1),
    "PSRT": PSRTConfig(**_CHAIN),
    "RBPN": RBPNConfig(num_frames=3, base_channels=8, channels=8, num_blocks=1),
    "RealBasicVSR": RealBasicVSRConfig(channels=8, num_blocks=1, num_cleaning_blocks=1),
    "RLSP": RLSPConfig(num_layers=3, channels=8, state_channels=8),
    "RRDBNet": RRDBConfig(channels=8, num_blocks=1, growth_channels=4),
    "RRN": RRNConfig(channels=8, num_blocks=2),
    "RSDN": RSDNConfig(channels=8, num_blocks=1),
    "RVRT": RVRTConfig(
        channels=8,
        num_blocks=(1, 1, 1),
        depths=(1, 2, 1),
        num_heads=(2, 2, 2),
        groups=4,
        attention_heads=4,
    ),
    "SESR": SESRConfig(channels=8, num_blocks=1, expanded_channels=16),
    "PFVSR": PFVSRConfig(
        scale=2,
        kind="convolution",
        channels=8,
        num_blocks=1,
        temporal="neighbors",
        flow="frozen",
        num_frames=3,
    ),
    "SRVGGNetCompact": SRVGGConfig(channels=8, num_blocks=1),
    "SwinIR": SwinIRConfig(**_ATTENTION, window=8),
    "TDAN": TDANConfig(
        channels=8, num_frames=3, groups=2, num_extract_blocks=1, num_reconstruct_blocks=1
    ),
    "TMNet": TMNetConfig(groups=2, num_front_blocks=1, num_back_blocks=1),
    "TOFlow": TOFlowConfig(num_frames=3),
    "TTVSR": TTVSRConfig(channels=8, num_blocks=1),
    "TwoStepRestorer": TwoStepConfig(channels=2, norm="none"),
    "VRT": VRTConfig(
        channels=8,
        group_channels=8,
        depths=(2,) * 7,
        group_depths=(1, 1),
        num_frame_groups=1,
        num_heads=2,
        window_frames=2,
        window=2,
        groups=2,
    ),
    "ZoomingSlowMo": ZoomingSlowMoConfig(
        channels=8, groups=2, num_front_blocks=1, num_back_blocks=1
    ),
}
"""By the name of the architecture."""
ADAPTED = EDSRConfig(scale=2, channels=8, num_blocks=1)
"""The image network of the adapters."""


def architecture_of(name: str) -> Architecture:
    return next(architecture for architecture in ARCHITECTURES if architecture.name == name)


def tiny_network(name: str) -> nn.Module:
    """Build a network as it is run: a two-step one over bicubic, adapters over EDSR."""
    network = architecture_of(name).build(TINY[name])
    match network:
        case TwoStepRestorer():
            return network.with_image_model(Resample(2))
        case PFVSR():
            return network.with_backbone(EDSR(ADAPTED))
        case _:
            return network


def base_of(name: str, folder: Path) -> dict[str, str] | None:
    """Return the reference to a base that a composite network needs; save that of adapters."""
    if name == "PFVSR":
        save_checkpoint(folder / "image.safetensors", EDSR(ADAPTED), {})
        return {"model": "image.safetensors"}
    return {"model": "bicubic-x2"} if architecture_of(name).base is not None else None


def tiny_frames(name: str) -> int:
    """Return how many frames a small input has."""
    temporal = architecture_of(name).contract(TINY[name]).temporal
    return 2 * temporal.radius + 1 if temporal.kind == "window" else 3


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradient of a loss by every parameter that it depends on."""
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
