"""The architectures that checkpoints are recognized as, in one explicit list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tubelet.models import (
    basicvsr,
    basicvsr_pp,
    dat,
    duf,
    edsr,
    edvr,
    fast,
    frvsr,
    fsrcnn,
    hat,
    iart,
    iconvsr,
    lrti_vsr,
    mia_vsr,
    msrresnet,
    ovsr,
    pfvsr,
    psrt,
    rbpn,
    realbasicvsr,
    rlsp,
    rrdb,
    rrn,
    rsdn,
    rvrt,
    sesr,
    spynet,
    srvgg,
    swinir,
    tdan,
    tmnet,
    toflow,
    ttvsr,
    two_step,
    vrt,
    zooming_slow_mo,
)
from tubelet.models.architecture import Architecture

if TYPE_CHECKING:
    from tubelet.models.contracts import (
        CleaningModel,
        ClipModel,
        EncodingWindowModel,
        FrameModel,
        OnlineModel,
        RecurrentModel,
        StreamingModel,
        WindowModel,
    )

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: tuple[Architecture, ...] = (
    fast.ARCHITECTURE,
    srvgg.ARCHITECTURE,
    rrdb.ARCHITECTURE,
    swinir.ARCHITECTURE,
    hat.ARCHITECTURE,
    dat.ARCHITECTURE,
    edsr.ARCHITECTURE,
    msrresnet.ARCHITECTURE,
    fsrcnn.ARCHITECTURE,
    sesr.ARCHITECTURE,
    rrn.ARCHITECTURE,
    rlsp.ARCHITECTURE,
    rsdn.ARCHITECTURE,
    frvsr.ARCHITECTURE,
    basicvsr.ARCHITECTURE,
    basicvsr_pp.ARCHITECTURE,
    iconvsr.ARCHITECTURE,
    ttvsr.ARCHITECTURE,
    realbasicvsr.ARCHITECTURE,
    ovsr.ARCHITECTURE,
    psrt.ARCHITECTURE,
    iart.ARCHITECTURE,
    mia_vsr.ARCHITECTURE,
    lrti_vsr.ARCHITECTURE,
    rvrt.ARCHITECTURE,
    vrt.ARCHITECTURE,
    edvr.ARCHITECTURE,
    zooming_slow_mo.ARCHITECTURE,
    tmnet.ARCHITECTURE,
    tdan.ARCHITECTURE,
    duf.ARCHITECTURE,
    toflow.ARCHITECTURE,
    rbpn.ARCHITECTURE,
    two_step.ARCHITECTURE,
    two_step.ENCODER_ARCHITECTURE,
    pfvsr.ARCHITECTURE,
    spynet.ARCHITECTURE,
)
"""Architectures that `load_model` tries in this order; the first that recognizes a file wins."""

if TYPE_CHECKING:
    # Never executed: pyright checks that every network implements the protocol of its kind.
    _FRAME: tuple[type[FrameModel], ...] = (
        srvgg.SRVGGNetCompact,
        rrdb.RRDBNet,
        swinir.SwinIR,
        hat.HAT,
        dat.DAT,
        edsr.EDSR,
        msrresnet.MSRResNet,
        fsrcnn.FSRCNN,
        sesr.SESR,
    )
    _WINDOW: tuple[type[WindowModel], ...] = (duf.DUF, rbpn.RBPN, two_step.TwoStepRestorer)
    _ENCODING: tuple[type[EncodingWindowModel], ...] = (edvr.EDVR, tdan.TDAN, toflow.TOFlow)
    _ONLINE: tuple[type[OnlineModel], ...] = (
        fast.FastVSR,
        rrn.RRN,
        rlsp.RLSP,
        rsdn.RSDN,
        frvsr.FRVSR,
    )
    _CLEANING: tuple[type[CleaningModel], ...] = (realbasicvsr.RealBasicVSR,)
    _CLIP: tuple[type[ClipModel], ...] = (vrt.VRT, pfvsr.PFVSR)
    _STREAMING: tuple[type[StreamingModel], ...] = (ttvsr.TTVSR,)
    _RECURRENT: tuple[type[RecurrentModel], ...] = (
        basicvsr.BasicVSR,
        basicvsr_pp.BasicVSRPlusPlus,
        iconvsr.IconVSR,
        realbasicvsr.RealBasicVSR,
        ovsr.OVSR,
        psrt.PSRT,
        iart.IART,
        mia_vsr.MIAVSR,
        lrti_vsr.LRTIVSR,
        rvrt.RVRT,
        zooming_slow_mo.ZoomingSlowMo,
        tmnet.TMNet,
    )
