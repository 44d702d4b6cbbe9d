"""Published weights of video networks; addresses are from the publishers' own pages."""

from __future__ import annotations

from dataclasses import replace

from tubelet.downloads import RemoteFile
from tubelet.models import (
    basicvsr,
    basicvsr_pp,
    duf,
    edvr,
    iconvsr,
    realbasicvsr,
    rvrt,
    tdan,
    toflow,
    vrt,
    zooming_slow_mo,
)
from tubelet.models.basicvsr import BasicVSRConfig
from tubelet.models.basicvsr_pp import BasicVSRPlusPlusConfig
from tubelet.models.duf import DUFConfig
from tubelet.models.edvr import EDVRConfig
from tubelet.models.iconvsr import IconVSRConfig
from tubelet.models.realbasicvsr import RealBasicVSRConfig
from tubelet.models.rvrt import RVRTConfig
from tubelet.models.tdan import TDANConfig
from tubelet.models.toflow import TOFlowConfig
from tubelet.models.vrt import VRTConfig
from tubelet.models.zooming_slow_mo import ZoomingSlowMoConfig
from tubelet.zoo.publishers import Network, PublishedWeights, basicsr, github, openmmlab

__all__ = ["VIDEO_FILES"]

_BASICVSR: Network = (basicvsr.ARCHITECTURE, BasicVSRConfig())
_ICONVSR: Network = (iconvsr.ARCHITECTURE, IconVSRConfig())
_ICONVSR_7: Network = (iconvsr.ARCHITECTURE, IconVSRConfig(temporal_padding=3))
_PLUS: Network = (basicvsr_pp.ARCHITECTURE, BasicVSRPlusPlusConfig())
_PLUS_LARGE: Network = (
    basicvsr_pp.ARCHITECTURE,
    BasicVSRPlusPlusConfig(channels=128, num_blocks=25),
)
_PLUS_FULL: Network = (
    basicvsr_pp.ARCHITECTURE,
    BasicVSRPlusPlusConfig(channels=128, num_blocks=25, input="full"),
)
_REAL: Network = (realbasicvsr.ARCHITECTURE, RealBasicVSRConfig())
_EDVR_M: Network = (edvr.ARCHITECTURE, EDVRConfig())
_EDVR_M_WOTSA: Network = (edvr.ARCHITECTURE, EDVRConfig(fusion="conv"))
_LARGE = EDVRConfig(channels=128, num_reconstruct_blocks=40)
_EDVR_L: Network = (edvr.ARCHITECTURE, _LARGE)
_EDVR_L_WOTSA: Network = (edvr.ARCHITECTURE, replace(_LARGE, fusion="conv"))
_EDVR_L_7: Network = (edvr.ARCHITECTURE, replace(_LARGE, num_frames=7))
_EDVR_L_BLUR: Network = (edvr.ARCHITECTURE, replace(_LARGE, predeblur="plain"))
_EDVR_L_FULL: Network = (edvr.ARCHITECTURE, replace(_LARGE, predeblur="strided"))
_TDAN: Network = (
    tdan.ARCHITECTURE,
    TDANConfig(deform="modulated", release="mmagic", border="zeros"),
)
_RVRT: Network = (rvrt.ARCHITECTURE, RVRTConfig())
_TOFLOW: Network = (toflow.ARCHITECTURE, TOFlowConfig())
_VRT_6: Network = (vrt.ARCHITECTURE, VRTConfig())
_VRT_7: Network = (vrt.ARCHITECTURE, VRTConfig(window_frames=8, num_neighbors=2, groups=16))
_VRT_16: Network = (vrt.ARCHITECTURE, VRTConfig(window_frames=8, num_neighbors=3, groups=24))


def _duf(*, scale: int = 4, blocks: int = 21, growth: int = 16) -> Network:
    """Describe a DUF network whose weights were converted from TensorFlow."""
    # TensorFlow's batch norm adds 1e-3 to the variance, PyTorch's 1e-5.
    config = DUFConfig(scale=scale, num_blocks=blocks, growth_channels=growth, norm_eps=1e-3)
    return duf.ARCHITECTURE, config


VIDEO_FILES: tuple[PublishedWeights, ...] = (
    # BasicVSR, Chan et al., CVPR 2021.
    openmmlab(
        "basicvsr-reds4",
        _BASICVSR,
        "basicvsr/basicvsr_reds4_20120409-0e599677.pth",
        "REDS, bicubic",
    ),
    openmmlab(
        "basicvsr-vimeo_bi",
        _BASICVSR,
        "basicvsr/basicvsr_vimeo90k_bi_20210409-d2d8f760.pth",
        "Vimeo-90K, bicubic",
    ),
    openmmlab(
        "basicvsr-vimeo_bd",
        _BASICVSR,
        "basicvsr/basicvsr_vimeo90k_bd_20210409-0154dd64.pth",
        "Vimeo-90K, blurred",
    ),
    # IconVSR, of the same paper.
    openmmlab(
        "iconvsr-reds4", _ICONVSR, "iconvsr/iconvsr_reds4_20210413-9e09d621.pth", "REDS, bicubic"
    ),
    openmmlab(
        "iconvsr-vimeo_bi",
        _ICONVSR_7,
        "iconvsr/iconvsr_vimeo90k_bi_20210413-7c7418dc.pth",
        "Vimeo-90K, bicubic",
    ),
    openmmlab(
        "iconvsr-vimeo_bd",
        _ICONVSR_7,
        "iconvsr/iconvsr_vimeo90k_bd_20210414-5f38cb34.pth",
        "Vimeo-90K, blurred",
    ),
    # BasicVSR++, Chan et al., CVPR 2022.
    openmmlab(
        "basicvsr_pp-reds4",
        _PLUS,
        "basicvsr_plusplus/basicvsr_plusplus_c64n7_8x1_600k_reds4_20210217-db622b2f.pth",
        "REDS, bicubic",
    ),
    openmmlab(
        "basicvsr_pp-vimeo_bi",
        _PLUS,
        "basicvsr_plusplus/basicvsr_plusplus_c64n7_8x1_300k_vimeo90k_bi_20210305-4ef437e2.pth",
        "Vimeo-90K, bicubic",
    ),
    openmmlab(
        "basicvsr_pp-vimeo_bd",
        _PLUS,
        "basicvsr_plusplus/basicvsr_plusplus_c64n7_8x1_300k_vimeo90k_bd_20210305-ab315ab1.pth",
        "Vimeo-90K, blurred",
    ),
    openmmlab(
        "basicvsr_pp-ntire_vsr",
        _PLUS_LARGE,
        "basicvsr_plusplus/basicvsr_plusplus_c128n25_ntire_vsr_20210311-1ff35292.pth",
        "NTIRE 2021, bicubic; large",
    ),
    # BasicVSR++ for compressed video (scale 1), NTIRE 2021 challenge.
    openmmlab(
        "basicvsr_pp-decompress1",
        _PLUS_FULL,
        "basicvsr_plusplus/basicvsr_plusplus_c128n25_ntire_decompress_track1_20210223-7b2eba02.pth",
        "HEVC at fixed QP, for fidelity; NTIRE 2021",
    ),
    openmmlab(
        "basicvsr_pp-decompress2",
        _PLUS_FULL,
        "basicvsr_plusplus/basicvsr_plusplus_c128n25_ntire_decompress_track2_20210314-eeae05e6.pth",
        "HEVC at fixed QP, for looks; NTIRE 2021",
    ),
    openmmlab(
        "basicvsr_pp-decompress3",
        _PLUS_FULL,
        "basicvsr_plusplus/basicvsr_plusplus_c128n25_ntire_decompress_track3_20210304-6daf4a40.pth",
        "HEVC at fixed bit rate, for fidelity; NTIRE 2021",
    ),
    # RealBasicVSR, Chan et al., CVPR 2022.
    openmmlab(
        "realbasicvsr-reds",
        _REAL,
        "real_basicvsr/realbasicvsr_c64b20_1x30x8_lr5e-5_150k_reds_20211104-52f77c2c.pth",
        "real videos; sharp, invents detail",
    ),
    openmmlab(
        "realbasicvsr-reds_wogan",
        _REAL,
        "real_basicvsr/realbasicvsr_wogan_c64b20_2x30x8_lr1e-4_300k_reds_20211027-0e2ff207.pth",
        "real videos; smooth",
    ),
    # RVRT, Liang et al., NeurIPS 2022.
    github(
        "rvrt-reds",
        _RVRT,
        "JingyunLiang/RVRT/v0.0/001_RVRT_videosr_bi_REDS_30frames.pth",
        "REDS, bicubic",
    ),
    github(
        "rvrt-vimeo_bi",
        _RVRT,
        "JingyunLiang/RVRT/v0.0/002_RVRT_videosr_bi_Vimeo_14frames.pth",
        "Vimeo-90K, bicubic",
    ),
    github(
        "rvrt-vimeo_bd",
        _RVRT,
        "JingyunLiang/RVRT/v0.0/003_RVRT_videosr_bd_Vimeo_14frames.pth",
        "Vimeo-90K, blurred",
    ),
    # EDVR, Wang et al., CVPRW 2019, as MMagic trained it.
    openmmlab(
        "edvr_m-reds", _EDVR_M, "edvr/edvrm_x4_8x4_600k_reds_20210625-e29b71b5.pth", "REDS, bicubic"
    ),
    openmmlab(
        "edvr_m-reds_wotsa",
        _EDVR_M_WOTSA,
        "edvr/edvrm_wotsa_x4_8x4_600k_reds_20200522-0570e567.pth",
        "REDS, bicubic; without attention",
    ),
    openmmlab(
        "edvr_l-reds",
        _EDVR_L,
        "edvr/edvrl_c128b40_8x8_lr2e-4_600k_reds4_20220104-4509865f.pth",
        "REDS, bicubic",
    ),
    openmmlab(
        "edvr_l-reds_wotsa",
        _EDVR_L_WOTSA,
        "edvr/edvrl_wotsa_c128b40_8x8_lr2e-4_600k_reds4_20211228-d895a769.pth",
        "REDS, bicubic; without attention",
    ),
    # TDAN, Tian et al., CVPR 2020.
    openmmlab(
        "tdan-vimeo_bi",
        _TDAN,
        "tdan/tdan_vimeo90k_bix4_20210528-739979d9.pth",
        "Vimeo-90K, bicubic",
    ),
    openmmlab(
        "tdan-vimeo_bd",
        _TDAN,
        "tdan/tdan_vimeo90k_bdx4_20210528-c53ab844.pth",
        "Vimeo-90K, blurred",
    ),
    # TOFlow, Xue et al., IJCV 2019.
    openmmlab(
        "toflow-vimeo", _TOFLOW, "tof/tof_x4_vimeo90k_official-a569ff50.pth", "Vimeo-90K, bicubic"
    ),
    # VRT, Liang et al., 2022.
    github(
        "vrt-reds_n6",
        _VRT_6,
        "JingyunLiang/VRT/v0.0/001_VRT_videosr_bi_REDS_6frames.pth",
        "REDS, bicubic; 6 frames",
    ),
    github(
        "vrt-reds_n16",
        _VRT_16,
        "JingyunLiang/VRT/v0.0/002_VRT_videosr_bi_REDS_16frames.pth",
        "REDS, bicubic; 16 frames",
    ),
    github(
        "vrt-vimeo_bi",
        _VRT_7,
        "JingyunLiang/VRT/v0.0/003_VRT_videosr_bi_Vimeo_7frames.pth",
        "Vimeo-90K, bicubic",
    ),
    github(
        "vrt-vimeo_bd",
        _VRT_7,
        "JingyunLiang/VRT/v0.0/004_VRT_videosr_bd_Vimeo_7frames.pth",
        "Vimeo-90K, blurred",
    ),
    # Zooming Slow-Mo, Xiang et al., CVPR 2020.
    PublishedWeights(
        id="zooming_slow_mo-vimeo",
        architecture=zooming_slow_mo.ARCHITECTURE,
        config=ZoomingSlowMoConfig(),
        summary="Vimeo-90K, bicubic; also doubles the frame rate",
        file=RemoteFile(
            name="xiang2020zooming.pth",
            url=(
                "https://github.com/Mukosame/Zooming-Slow-Mo-CVPR-2020/raw/master/"
                "experiments/pretrained_models/xiang2020zooming.pth"
            ),
            page="https://github.com/Mukosame/Zooming-Slow-Mo-CVPR-2020",
        ),
        license="GPL-3.0-only",
    ),
    # EDVR, the authors' weights.
    basicsr(
        "edvr_m-reds_official",
        _EDVR_M,
        "EDVR_M_x4_SR_REDS_official-32075921.pth",
        "REDS, bicubic; the authors'",
    ),
    basicsr(
        "edvr_m-reds_wotsa_official",
        _EDVR_M_WOTSA,
        "EDVR_M_woTSA_x4_SR_REDS_official-1edf645c.pth",
        "REDS, bicubic; without attention; the authors'",
    ),
    basicsr(
        "edvr_l-reds_official",
        _EDVR_L,
        "EDVR_L_x4_SR_REDS_official-9f5f5039.pth",
        "REDS, bicubic; the authors'",
    ),
    basicsr(
        "edvr_l-vimeo_official",
        _EDVR_L_7,
        "EDVR_L_x4_SR_Vimeo90K_official-162b54e4.pth",
        "Vimeo-90K, bicubic; the authors'",
    ),
    basicsr(
        "edvr_l-srblur_official",
        _EDVR_L_BLUR,
        "EDVR_L_x4_SRblur_REDS_official-983d7b8e.pth",
        "REDS, motion blur and bicubic; the authors'",
    ),
    basicsr(
        "edvr_l-deblur_official",
        _EDVR_L_FULL,
        "EDVR_L_deblur_REDS_official-ca46bd8c.pth",
        "REDS, motion blur; the authors'",
    ),
    basicsr(
        "edvr_l-deblurcomp_official",
        _EDVR_L_FULL,
        "EDVR_L_deblurcomp_REDS_official-0e988e5c.pth",
        "REDS, motion blur and compression; the authors'",
    ),
    # DUF, Jo et al., CVPR 2018.
    basicsr("duf_52-x4", _duf(), "DUF_x4_52L_official-483d2c78.pth", "blurred; 52 layers"),
    basicsr("duf_28-x4", _duf(blocks=9), "DUF_x4_28L_official-cbada450.pth", "blurred; 28 layers"),
    basicsr(
        "duf_16-x4",
        _duf(blocks=3, growth=32),
        "DUF_x4_16L_official-bf8f0cfa.pth",
        "blurred; 16 layers",
    ),
    basicsr(
        "duf_16-x3",
        _duf(scale=3, blocks=3, growth=32),
        "DUF_x3_16L_official-34ce53ec.pth",
        "blurred; 16 layers",
    ),
    basicsr(
        "duf_16-x2",
        _duf(scale=2, blocks=3, growth=32),
        "DUF_x2_16L_official-39537cb9.pth",
        "blurred; 16 layers",
    ),
)
"""Weights of video networks. A download is verified by the published digits of its hash."""
