"""Count what a call takes: floating-point operations, and memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tubelet.layers.inference import use_backend
from tubelet.restore.memory import peak_tensor_bytes

__all__ = ["count_flops", "peak_bytes"]


def count_flops(model: nn.Module, call: Callable[[], object]) -> int:
    """Count the FLOPs of convolutions, matrix products and attention, a multiplication and an addition as two.

    What is saved in computing them, as by Winograd's convolution, is not taken off, as in any paper.

    Args:
        model: the network, whose fused layers take one operation after the other meanwhile.
        call: called once; it runs the network.

    Source: `torch.utils.flop_counter`, and formulas for operators that it leaves out.
    """
    from torch.utils.flop_counter import FlopCounterMode

    # torch 2.14 has no formula for the attention kernel of CPUs, nor for the operators of torchvision.
    formulas: dict[Any, Any] = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops
    }
    if "torchvision" in sys.modules:
        formulas[torch.ops.torchvision.deform_conv2d] = _deform_conv_flops
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with use_backend(model, "unfused"), counter:
        call()
    return counter.get_total_flops()


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Measure what a call has allocated at once, beyond what was there before.

    Args:
        call: called once.
        device: where it computes. Elsewhere than on CUDA, work space inside operations is not seen.
    """
    if device.type != "cuda":
        return peak_tensor_bytes(call)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _attention_flops(q_shape: Any, k_shape: Any, v_shape: Any, *_: Any, **__: Any) -> int:
    """Count q·k and scores·v; shapes are (batch, heads, tokens, channels)."""
    return 2 * math.prod(q_shape[:3]) * k_shape[2] * (q_shape[3] + v_shape[3])


def _deform_conv_flops(
    lq_shape: Any, weight_shape: Any, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    """Count as a convolution: the bilinear samples are left out, as for warping."""
    return 2 * math.prod(out_shape) * math.prod(weight_shape[1:])
