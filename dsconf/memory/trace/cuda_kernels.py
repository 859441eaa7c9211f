"""What CUDA runs where the CPU runs something else: a trace on the CPU keeps and needs what CUDA would.

Fake tensors live on the CPU here, because a CPU build of torch has no autograd for fake CUDA tensors. Four functions
choose their kernel by device and are put in place of the CPU's choice: attention, dropout, RMSNorm and the statistics
of LayerNorm. Scratch memory that only the kernels themselves see is added from the rules of memory/layers/attention.py.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod, sqrt
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dsconf.memory.autograd.column_sum import ColumnSum

_HALF = (torch.float16, torch.bfloat16)
_aten: Any = torch.ops.aten


class CudaKernels(TorchFunctionMode):
    """While active, torch's functions take the kernels they take on CUDA.

    A function of ``torch.nn.functional`` that calls another one does so past the mode, so the names there change too.
    """

    def __enter__(self) -> CudaKernels:
        for name, replacement in _FUNCTIONAL.items():
            setattr(functional, name, replacement)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *failure: object) -> None:
        super().__exit__(*failure)  # type: ignore[no-untyped-call]
        for name in _FUNCTIONAL:
            setattr(functional, name, _ORIGINAL[name])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the replacement where there is one, else the function itself."""
        kwargs = kwargs or {}
        in_fp32 = getattr(func, "__name__", "") in FP32_UNDER_AUTOCAST and "dtype" not in kwargs
        if in_fp32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = _upcast(args), dict(zip(kwargs, _upcast(tuple(kwargs.values())), strict=True))
        return _REPLACED.get(func, func)(*args, **kwargs)


# torch's list of CUDA operations that autocast runs in fp32 (docs.pytorch.org/docs/stable/amp.html), as far as the
# CPU's autocast leaves them in the lower type.
_FP32 = (
    "acos asin binary_cross_entropy_with_logits cosh cdist cosine_similarity cross_entropy cumprod cumsum dist erfinv "
    "exp expm1 group_norm kl_div l1_loss layer_norm log log10 log_softmax log1p log2 mse_loss nll_loss norm normalize "
    "pdist poisson_nll_loss pow __pow__ prod reciprocal rms_norm rsqrt sinh smooth_l1_loss softmax softmin softplus "
    "sum tan"
)
FP32_UNDER_AUTOCAST = frozenset(_FP32.split())


def _upcast(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(v.float() if isinstance(v, torch.Tensor) and v.dtype in _HALF else v for v in values)


def _dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:  # noqa: A002
    """Stand in for the fused kernel, which keeps a mask of one byte an element (ATen/native/Dropout.cpp)."""
    if not training or not 0 < p < 1:
        return _ORIGINAL["dropout"](input, p, training, inplace)
    return _aten.native_dropout(input, p, True)[0]


def _rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Any:  # noqa: A002
    """Stand in for the fused kernel of torch 2.9 and later, which keeps the input and one rstd for each row."""
    fused = getattr(_aten, "_fused_rms_norm", None)
    if fused is None or (weight is not None and weight.dtype != input.dtype):
        return _ORIGINAL["rms_norm"](input, normalized_shape, weight, eps)
    return fused(input, list(normalized_shape), weight, eps)[0]


def _softmax(input: Any, dim: int | None = None, *args: Any, **options: Any) -> Any:  # noqa: A002
    """Stand in for the kernel: fp16 is cast to fp32 inside the kernel, without a copy (ATen/native/SoftMax.cpp:
    softmax)."""
    if dim is None or input.dtype != torch.float16 or options.get("dtype") != torch.float32:
        return _ORIGINAL["softmax"](input, dim, *args, **options)
    return _aten._softmax(input, dim, True)


def _rand(*size: Any, **options: Any) -> Any:
    """Return 0.5: a lone random number decides whether a layer is dropped; 0.5 stands for it, as fake tensors have no
    value."""
    if "size" in options or size not in ((), ((),), ([],), (torch.Size([]),)):
        return torch.rand(*size, **options)
    return torch.tensor(0.5)


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Stand in for ``scaled_dot_product_attention`` as on CUDA: FlashAttention-2, memory-efficient, or the plain
    formula.

    The order and the conditions are torch's (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp); the words are those
    of the function it stands for.
    """
    if torch.is_autocast_enabled("cpu"):
        lower = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(lower), key.to(lower), value.to(lower)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(lower)
    scale = 1 / sqrt(query.size(-1)) if scale is None else scale
    mask = _additive(attn_mask, query)
    if mask is None and _flash_takes(query, key, value, is_causal, enable_gqa):
        width = query.size(-1)
        padded = [functional.pad(x, (0, -width % 8)) if width % 8 else x for x in (query, key, value)]
        out = _aten._scaled_dot_product_flash_attention(*padded, dropout_p, is_causal, False, scale=scale)[0]
        return out[..., :width] if width % 8 else out
    if _efficient_takes(query, key, value, enable_gqa):
        mask = None if mask is None else _aligned(mask, query, key)
        call = _aten._scaled_dot_product_efficient_attention
        return call(
            query,
            key,
            value,
            attn_bias=mask,
            compute_log_sumexp=query.requires_grad,
            dropout_p=dropout_p,
            is_causal=is_causal,
            scale=scale,
        )[0]
    plain = _aten._scaled_dot_product_attention_math
    return plain(
        query,
        key,
        value,
        attn_mask=attn_mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        dropout_mask=None,
        scale=scale,
        enable_gqa=enable_gqa,
    )[0]


def _additive(mask: Any, query: Any) -> Any:
    """Make the mask additive: a boolean mask is turned into an additive one in every call
    (convert_boolean_attn_mask)."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), float("-inf"))


def _aligned(mask: Any, query: Any, key: Any) -> Any:
    """Align the mask: rows of the mask start at multiples of 16 elements, and it is expanded to all heads
    (preprocess_mask)."""
    keys = key.size(-2)
    if keys % 16:
        mask = functional.pad(mask, (0, -keys % 16))[..., :keys]
    return mask.expand(query.size(0), query.size(1), query.size(-2), keys)


def _flash_takes(query: Any, key: Any, value: Any, is_causal: bool, grouped: bool) -> bool:
    width = query.size(-1)
    return bool(
        torch.backends.cuda.flash_sdp_enabled()
        and _plain_layout(query, key, value)
        and query.dtype in _HALF
        and width == key.size(-1) == value.size(-1) <= 256
        and not (is_causal and query.size(-2) != key.size(-2))
        and (query.size(1) % key.size(1) == 0 if grouped else query.size(1) == key.size(1) == value.size(1))
    )


def _efficient_takes(query: Any, key: Any, value: Any, grouped: bool) -> bool:
    step = 8 if query.dtype in _HALF else 4
    return bool(
        torch.backends.cuda.mem_efficient_sdp_enabled()
        and _plain_layout(query, key, value)
        and query.dtype in (*_HALF, torch.float32)
        and query.size(-1) % step == value.size(-1) % step == 0
        and not grouped
        and query.size(1) == key.size(1) == value.size(1)
    )


def _plain_layout(*tensors: Any) -> bool:
    return all(x.dim() == 4 and x.stride(-1) == 1 and x.size(0) == tensors[0].size(0) for x in tensors)


_FUNCTIONAL: dict[str, Callable[..., Any]] = {
    "dropout": _dropout,
    "rms_norm": _rms_norm,
    "softmax": _softmax,
    "scaled_dot_product_attention": attention,
}
_ORIGINAL: dict[str, Any] = {name: getattr(functional, name) for name in _FUNCTIONAL}
_REPLACED: dict[Any, Callable[..., Any]] = {
    **{original: _FUNCTIONAL[name] for name, original in _ORIGINAL.items()},
    torch.dropout: _dropout,
    torch.rms_norm: _rms_norm,
    torch.rand: _rand,
}


def as_on_cuda(func: Any, out: Any) -> Any:
    """Give statistics CUDA's type: LayerNorm's and GroupNorm's mean and rstd are fp32 on CUDA; on the CPU they have
    the input's type."""
    if func not in (_aten.native_layer_norm.default, _aten.native_group_norm.default):
        return out
    y, *statistics = out
    return (y, *(torch.empty_like(x, dtype=torch.float32) for x in statistics))


def scratch(func: Any, args: tuple[Any, ...]) -> int:
    """Return the bytes a CUDA kernel takes besides its inputs and outputs: backward of attention and softmax, sums
    over rows."""
    if func in (
        _aten._scaled_dot_product_flash_attention_backward.default,
        _aten._scaled_dot_product_efficient_attention_backward.default,
    ):
        return _attention_scratch(args[1], args[2])
    if func is _aten._softmax_backward_data.default:
        return int(args[0].numel() * args[0].element_size())  # gradient times output (SoftMax.cu)
    if func is _aten.sum.dim_IntList and isinstance(args[0], torch.Tensor):
        kept = args[0].dim() - len(args[1] or range(args[0].dim()))
        columns = args[0].size(-1)
        if kept == 1 and args[0].dim() - 1 not in args[1] and -1 not in args[1]:
            return ColumnSum(args[0].numel() // columns, columns).scratch
    return 0


def _attention_scratch(query: Any, key: Any) -> int:
    """Count fp32 sums of dq, one statistic for each row, and dk, dv of every head where heads share them (mha_bwd)."""
    rows, width = prod(query.shape[:-1]), query.size(-1)
    found: int = 4 * rows
    if query.dtype in _HALF:
        found += 4 * rows * width
        if key.size(1) != query.size(1):
            found += 4 * rows * width
    return found
