"""What an operator costs: one formula for each counted operator.

The convention is fvcore's: one multiply-add is one MAC; matrix products and convolutions count, and so do normalisation
(2 an element where statistics are frozen, else 5; one less without affine weights) and interpolation (one a tap of an
output element). Element-wise work, reductions, pooling and copies are free. So is RMS normalisation, as in fvcore: some
devices fuse it, others write it as element-wise operators. Added to fvcore's list: fused attention, Fourier transforms,
deformable convolution, recurrent layers, batched products with an addend and the other interpolations.

A formula for an operator of yours is one line:

    formula("other", "mylab::selective_scan")(lambda output, states, *_, **__: 9 * states.numel())
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from torch import Tensor

from harness.errors import BenchError, DuplicateName

Kind = Literal["matmul", "attention", "convolution", "normalisation", "interpolation", "fft", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Formula = Callable[..., int]

FORMULAS: dict[str, dict[Kind, Formula]] = {}


def formula(kind: Kind, *operators: str) -> Callable[[Formula], Formula]:
    """Return a decorator that makes a function the formula of some operators.

    The function takes the operator's output, then its arguments, and returns MACs. An operator whose work is of several
    kinds has one formula for each.

    Args:
        kind: what the MACs are filed under. `attention` is any product of two batches of matrices, so that the shares
            do not depend on whether attention is fused.
        operators: qualified names without an overload, such as `aten::mm`.

    Raises:
        BenchError: no such kind.
        DuplicateName: one of the operators has a formula of this kind.
    """
    if kind not in KINDS:
        raise BenchError(f"{kind!r} is no kind of operator: choose from {', '.join(KINDS)}.")

    def decorate(function: Formula) -> Formula:
        for operator in operators:
            if kind in FORMULAS.setdefault(operator, {}):
                raise DuplicateName(f"The operator {operator!r} has a formula for {kind!r} already. Remove one.")
            FORMULAS[operator][kind] = function
        return function

    return decorate


def count_operator(operator: str, output: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Kind, int]:
    """Return the MACs of one call by kind; empty for an operator without a formula."""
    return {kind: function(output, *args, **kwargs) for kind, function in FORMULAS.get(operator, {}).items()}


# --- products -------------------------------------------------------------------------------------------------------


@formula("matmul", "aten::mm", "aten::_scaled_mm", "aten::_int_mm", "aten::mv", "aten::dot", "aten::vdot")
def product(output: Tensor, left: Tensor, *_: Any, **__: Any) -> int:
    """(M, K) x (K, N)."""
    return output.numel() * left.shape[-1]


@formula("matmul", "aten::addmm", "aten::addmv", "aten::_addmm_activation")
def product_with_addend(output: Tensor, _addend: Tensor, left: Tensor, *_: Any, **__: Any) -> int:
    """(M, N) + (M, K) x (K, N)."""
    return output.numel() * left.shape[-1]


@formula("matmul", "aten::linear", "aten::mkldnn_linear")
def linear(output: Tensor, tokens: Tensor, *_: Any, **__: Any) -> int:
    """(..., K) x (N, K) transposed."""
    return output.numel() * tokens.shape[-1]


@formula("attention", "aten::bmm")
def batched_product(output: Tensor, left: Tensor, *_: Any, **__: Any) -> int:
    """(B, M, K) x (B, K, N)."""
    return output.numel() * left.shape[-1]


@formula("attention", "aten::baddbmm")
def batched_product_with_addend(output: Tensor, _addend: Tensor, left: Tensor, *_: Any, **__: Any) -> int:
    """(B, M, N) + (B, M, K) x (B, K, N)."""
    return output.numel() * left.shape[-1]


@formula("attention", "aten::addbmm")
def summed_batched_product(output: Tensor, _addend: Tensor, left: Tensor, *_: Any, **__: Any) -> int:
    """(M, N) + the sum over B of (B, M, K) x (B, K, N)."""
    return output.numel() * left.shape[0] * left.shape[2]


@formula("matmul", "aten::_cdist_forward", "aten::_euclidean_dist")
def distances(output: Tensor, points: Tensor, *_: Any, **__: Any) -> int:
    """(B, P, R) distances of points (B, P, M): one multiply-add a coordinate, as the squares sum up."""
    return output.numel() * points.shape[-1]


@formula("matmul", "aten::_trilinear")
def trilinear(_output: Tensor, *operands: Any, **__: Any) -> int:
    """The bilinear layer: one multiply-add an element of the broadcast product of its three operands."""
    shapes = (_unsqueezed(operand, axes).shape for operand, axes in zip(operands[:3], operands[3:6], strict=True))
    return math.prod(map(max, *shapes))


def _unsqueezed(operand: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        operand = operand.unsqueeze(axis)
    return operand


@formula("matmul", "aten::affine_grid_generator")
def affine_grid(output: Tensor, theta: Tensor, *_: Any, **__: Any) -> int:
    """theta (N, D, D + 1) times each homogeneous coordinate."""
    return output.numel() * theta.shape[-1]


@formula("matmul", "aten::mkldnn_rnn_layer")
def recurrent_layer(
    _output: Any, steps: Tensor, weight_input: Tensor, weight_hidden: Tensor, *_: Any, **__: Any
) -> int:
    """One direction of one layer over (T, N, C): each step uses both weights once."""
    return steps.shape[0] * steps.shape[1] * (weight_input.numel() + weight_hidden.numel())


@formula("matmul", "aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu")
def recurrent_network(_output: Any, steps: Tensor, *rest: Any, **__: Any) -> int:
    """Whole networks, which inference mode does not take apart; the weights are the list that holds matrices."""
    weights = next(tensors for tensors in rest if isinstance(tensors, list | tuple) and tensors[0].ndim == 2)
    return steps.shape[:-1].numel() * sum(int(weight.numel()) for weight in weights if weight.ndim == 2)


@formula("matmul", "aten::_cudnn_rnn", "aten::miopen_rnn")
def recurrent_layers(_output: Any, steps: Tensor, weights: list[Tensor], *_: Any, **__: Any) -> int:
    """All layers and directions over (T, N, C): each step uses each weight matrix once."""
    return steps.shape[0] * steps.shape[1] * sum(weight.numel() for weight in weights if weight.ndim == 2)


# --- attention ------------------------------------------------------------------------------------------------------


@formula(
    "attention",
    "aten::scaled_dot_product_attention",
    "aten::_scaled_dot_product_attention_math",
    "aten::_scaled_dot_product_attention_math_for_mps",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "higher_order::flex_attention",
)
def scaled_dot_product(_output: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Scores and their product with the values, heads first; masked pairs count, for a mask may depend on data."""
    return query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


@formula("attention", "aten::_native_multi_head_attention")
def heads_of_native_attention(_output: Any, query: Tensor, key: Tensor, *_: Any, **__: Any) -> int:
    """The two products inside all heads; tokens are (B, N, C)."""
    return 2 * query.numel() * key.shape[1]


@formula("matmul", "aten::_native_multi_head_attention")
def projections_of_native_attention(
    _output: Any, query: Tensor, key: Tensor, value: Tensor, width: int, *_: Any, **__: Any
) -> int:
    """The input projections of query, key and value, and the output projection."""
    return (2 * query.numel() + key.numel() + value.numel()) * width


@formula("attention", "aten::_transformer_encoder_layer_fwd")
def heads_of_encoder_layer(output: Tensor, tokens: Tensor, *_: Any, **__: Any) -> int:
    """The two products inside all heads; tokens are (B, N, C)."""
    return heads_of_native_attention(output, tokens, tokens)


@formula("matmul", "aten::_transformer_encoder_layer_fwd")
def projections_of_encoder_layer(output: Tensor, tokens: Tensor, width: int, *rest: Any, **__: Any) -> int:
    """The four projections of attention and the two of the feed-forward part."""
    hidden: int = rest[13].shape[0]  # ffn_weight_1, (hidden, width)
    return projections_of_native_attention(output, tokens, tokens, tokens, width) + 2 * tokens.numel() * hidden


@formula("normalisation", "aten::_transformer_encoder_layer_fwd")
def norms_of_encoder_layer(_output: Tensor, tokens: Tensor, *_: Any, **__: Any) -> int:
    """Two layer normalisations with affine weights."""
    return 2 * 5 * tokens.numel()


# --- convolution ----------------------------------------------------------------------------------------------------


@formula("convolution", "aten::convolution", "aten::_convolution", "aten::convolution_overrideable")
def convolution(
    output: Tensor,
    images: Tensor,
    weight: Tensor,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool = False,
    *_: Any,
    **__: Any,
) -> int:
    """Each weight works once at each place of the output, or of the input where transposed; padding counts."""
    places = images if transposed else output
    return weight.numel() * places.shape[0] * places.shape[2:].numel()


@formula("convolution", "aten::mkldnn_convolution", "aten::cudnn_convolution", "aten::_slow_conv2d_forward")
@formula("convolution", "aten::_conv_depthwise2d", "aten::conv_depthwise3d", "aten::slow_conv_dilated2d")
@formula("convolution", "aten::cudnn_convolution_relu", "aten::cudnn_convolution_add_relu", "aten::slow_conv3d_forward")
@formula("convolution", "aten::slow_conv_dilated3d")
def forward_convolution(output: Tensor, _images: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """Each weight works once at each place of the output."""
    return weight.numel() * output.shape[0] * output.shape[2:].numel()


@formula(
    "convolution", "aten::cudnn_convolution_transpose", "aten::slow_conv_transpose2d", "aten::slow_conv_transpose3d"
)
def transposed_convolution(_output: Tensor, images: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """Each weight works once at each place of the input."""
    return weight.numel() * images.shape[0] * images.shape[2:].numel()


@formula("convolution", "aten::conv_tbc")
def time_first_convolution(output: Tensor, _steps: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """Over (T, B, C): each weight works once at each place of the output."""
    return weight.numel() * output.shape[:2].numel()


@formula("convolution", "torchvision::deform_conv2d")
def deformable_products(output: Tensor, _images: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """The products of a plain convolution."""
    return forward_convolution(output, output, weight)


@formula("interpolation", "torchvision::deform_conv2d")
def deformable_samples(output: Tensor, images: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """Four taps for each sampled value: one a channel, kernel position and place of the output."""
    return 4 * images.shape[1] * weight.shape[2:].numel() * output.shape[0] * output.shape[2:].numel()


# --- normalisation --------------------------------------------------------------------------------------------------


@formula("normalisation", "aten::native_layer_norm")
def layer_norm(_output: Any, tokens: Tensor, _shape: Any, weight: Tensor | None = None, *_: Any, **__: Any) -> int:
    """fvcore's `norm_flop_counter`."""
    return tokens.numel() * (4 if weight is None else 5)


@formula("normalisation", "aten::native_group_norm", "aten::_batch_norm_with_update")
def group_norm(_output: Any, maps: Tensor, weight: Tensor | None = None, *_: Any, **__: Any) -> int:
    """fvcore's `norm_flop_counter`."""
    return maps.numel() * (4 if weight is None else 5)


@formula("normalisation", "aten::_native_batch_norm_legit_no_training", "aten::_batch_norm_no_update")
def frozen_batch_norm(_output: Any, maps: Tensor, weight: Tensor | None = None, *_: Any, **__: Any) -> int:
    """fvcore's `batchnorm_flop_jit` with frozen statistics."""
    return maps.numel() * (1 if weight is None else 2)


@formula("normalisation", "aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm")
@formula("normalisation", "aten::_native_batch_norm_legit")
def batch_norm(output: Any, maps: Tensor, weight: Tensor | None, _bias: Any, *rest: Any, **__: Any) -> int:
    """fvcore's `batchnorm_flop_jit`; the first boolean says whether statistics come from the batch."""
    training = next(argument for argument in rest if isinstance(argument, bool))
    return group_norm(output, maps, weight) if training else frozen_batch_norm(output, maps, weight)


# --- interpolation --------------------------------------------------------------------------------------------------


@formula("interpolation", "aten::upsample_nearest1d", "aten::upsample_nearest2d", "aten::upsample_nearest3d")
@formula("interpolation", "aten::_upsample_nearest_exact1d", "aten::_upsample_nearest_exact2d")
@formula("interpolation", "aten::_upsample_nearest_exact3d")
def nearest(output: Tensor, *_: Any, **__: Any) -> int:
    """One tap."""
    return output.numel()


@formula("interpolation", "aten::upsample_linear1d", "aten::upsample_bilinear2d", "aten::upsample_trilinear3d")
@formula("interpolation", "aten::grid_sampler_2d", "aten::grid_sampler_3d", "aten::cudnn_grid_sampler")
@formula("interpolation", "aten::_grid_sampler_2d_cpu_fallback")
def linear_interpolation(output: Tensor, *_: Any, **__: Any) -> int:
    """Two taps an axis; grid sampling counts as linear whatever its mode, as in fvcore."""
    return output.numel() << (output.ndim - 2)


@formula("interpolation", "aten::upsample_bicubic2d")
def cubic_interpolation(output: Tensor, *_: Any, **__: Any) -> int:
    """Four taps an axis."""
    return output.numel() * 16


@formula("interpolation", "aten::_upsample_bilinear2d_aa")
def antialiased_linear(output: Tensor, maps: Tensor, *_: Any, **__: Any) -> int:
    """Two taps an axis, and more where the filter widens for downscaling."""
    return _antialiased(output, maps, 2)


@formula("interpolation", "aten::_upsample_bicubic2d_aa")
def antialiased_cubic(output: Tensor, maps: Tensor, *_: Any, **__: Any) -> int:
    """Four taps an axis, and more where the filter widens for downscaling."""
    return _antialiased(output, maps, 4)


def _antialiased(output: Tensor, maps: Tensor, taps: int) -> int:
    widening = math.prod(
        max(1.0, before / after) for before, after in zip(maps.shape[2:], output.shape[2:], strict=True)
    )
    return round(output.numel() * taps**2 * widening)


# --- Fourier transforms ---------------------------------------------------------------------------------------------


def transform_macs(elements: int, length: int, *, real: bool = False) -> int:
    """MACs of fast Fourier transforms: 5 N log2 N flops for N complex points, half of it for real ones; 2 flops a MAC.

    Args:
        elements: points of all transforms together.
        length: points of one transform.
        real: whether input or output is real.

    Source: the usual operation count of the radix-2 algorithm (Cooley and Tukey 1965), as FFTW's benchmarks use it.
    """
    return round((1.25 if real else 2.5) * elements * math.log2(max(length, 1)))


@formula("fft", "aten::_fft_c2c")
def complex_transform(output: Tensor, _points: Tensor, axes: list[int], *_: Any, **__: Any) -> int:
    """All axes at once: the logarithms add up."""
    return transform_macs(output.numel(), math.prod(output.shape[axis] for axis in axes))


@formula("fft", "aten::_fft_r2c")
def transform_of_real(output: Tensor, points: Tensor, axes: list[int], *_: Any, **__: Any) -> int:
    """A real transform over the last axis, then complex ones over the others, on half the spectrum where one-sided."""
    others = math.prod(points.shape[axis] for axis in axes[:-1])
    return transform_macs(points.numel(), points.shape[axes[-1]], real=True) + transform_macs(output.numel(), others)


@formula("fft", "aten::_fft_c2r")
def transform_to_real(output: Tensor, points: Tensor, axes: list[int], *_: Any, **__: Any) -> int:
    """The same backwards."""
    others = math.prod(points.shape[axis] for axis in axes[:-1])
    return transform_macs(output.numel(), output.shape[axes[-1]], real=True) + transform_macs(points.numel(), others)
