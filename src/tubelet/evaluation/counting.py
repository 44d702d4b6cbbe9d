"""Count the resources of a call: floating-point operations and memory."""

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
    """Count the FLOPs of convolutions, matrix products and attention.

    A multiplication and an addition are two FLOPs. As in papers, operations that a faster algorithm
    such as Winograd's saves are counted nevertheless.

    Args:
        model: Network, whose fused layers run as separate operations during the call.
        call: Function that runs the network; it is called once.

    Source: `torch.utils.flop_counter`, and formulas for operators that it does not know.
    """
    from torch.utils.flop_counter import FlopCounterMode

    # torch 2.14 has no formula for the attention kernel of CPUs, nor for torchvision's operators.
    formulas: dict[Any, Any] = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    }
    if "torchvision" in sys.modules:
        formulas[torch.ops.torchvision.deform_conv2d] = _deform_conv_flops
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    # The counter does not see inside fused operations.
    with use_backend(model, "unfused"), counter:
        call()
    return counter.get_total_flops()


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Measure the peak memory that a call allocates, without the memory in use before.

    Args:
        call: Function to measure; it is called once.
        device: Device that it computes on. On CUDA, the work space inside operations is included;
            elsewhere only tensors are.
    """
    if device.type != "cuda":
        return peak_tensor_bytes(call)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    bytes_before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - bytes_before


def _attention_flops(
    q_shape: Any,
    k_shape: Any,
    v_shape: Any,
    *_: Any,
    **__: Any,
) -> int:
    """Count q·k and scores·v; shapes are (batch, heads, tokens, channels)."""
    num_queries = math.prod(q_shape[:3])
    num_keys = k_shape[2]
    return 2 * num_queries * num_keys * (q_shape[3] + v_shape[3])


def _deform_conv_flops(
    lq_shape: Any,
    weight_shape: Any,
    *_: Any,
    out_shape: Any = None,
    **__: Any,
) -> int:
    """Count a deformable convolution as a convolution: its bilinear sampling is not counted."""
    products_per_output = math.prod(weight_shape[1:])
    return 2 * math.prod(out_shape) * products_per_output
