"""The operators that cost nothing by the convention of `harness.costs.formulas`."""

from __future__ import annotations

from typing import Any

import torch

FREE_TAGS = frozenset({torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.inplace_view, torch.Tag.view_copy})

FREE_BY_REASON = {
    "making and copying": """
        arange empty empty_like empty_permuted empty_strided eye fft_fftfreq fft_rfftfreq full full_like linspace
        logspace new_empty new_empty_strided new_full new_ones new_zeros ones ones_like rand rand_like randint
        randint_like randn randn_like randperm range scalar_tensor tril_indices triu_indices zeros zeros_like zero
        lift lift_fresh bernoulli bernoulli_ exponential multinomial normal poisson random uniform hann_window
        hamming_window blackman_window _to_copy _copy_from _lazy_clone _pin_memory copy copy_ fill set resize
        resize_as record_stream complex polar
    """,
    "moving": """
        cat stack _stack _chunk_cat block_diag constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d
        replication_pad1d replication_pad2d replication_pad3d flip roll rot90 repeat repeat_interleave channel_shuffle
        pixel_shuffle pixel_unshuffle im2col col2im diag_embed diagonal_scatter select_scatter slice_scatter
        as_strided_scatter _unsafe_view _reshape_copy _resize_output tril triu unsafe_split unsafe_split_with_sizes
        _transform_bias_rescale_qkv _mkldnn_reshape _mkldnn_transpose to_mkldnn _pack_padded_sequence
        _pad_packed_sequence
    """,
    "indexing": """
        embedding _embedding_bag _embedding_bag_forward_only gather index index_add index_copy index_fill index_put
        _index_put_impl index_reduce index_select masked_fill masked_scatter masked_select nonzero nonzero_static put
        scatter scatter_add scatter_reduce take _unsafe_index _unsafe_index_put _unsafe_masked_index
        _unsafe_masked_index_put_accumulate segment_reduce
    """,
    "ordering": """
        sort topk kthvalue median nanmedian mode unique_consecutive unique_dim _unique _unique2 bucketize searchsorted
        isin bincount histc argsort
    """,
    "asking": """
        _local_scalar_dense _fused_sdp_choice is_same_size is_pinned is_coalesced size stride sym_size sym_stride
        _assert_async _assert_scalar _assert_tensor_metadata _functional_assert_async allclose equal _is_all_true
        _is_any_true result_type
    """,
    "element by element": """
        _prelu_kernel glu log_sigmoid_forward rrelu_with_noise native_dropout _fused_dropout _softmax _log_softmax
        _safe_softmax _masked_softmax softmax log_softmax _weight_norm_interface hardswish gelu mish threshold
        _fused_rms_norm dist renorm linalg_cross addr _thnn_fused_lstm_cell _thnn_fused_gru_cell
        fake_quantize_per_channel_affine_cachemask fake_quantize_per_tensor_affine_cachemask floor_divide true_divide
        divide multiply subtract greater greater_equal less less_equal not_equal __and__ __or__ __iand__ __ior__
        _add_relu
    """,
    "along an axis": """
        cumsum cumprod cummax cummin _cummax_helper _cummin_helper logcumsumexp _logcumsumexp trace aminmax _aminmax
    """,
    "pooling": """
        avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d
        adaptive_max_pool3d max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d
        fractional_max_pool2d fractional_max_pool3d mkldnn_max_pool2d mkldnn_adaptive_avg_pool2d
    """,
}
FREE = frozenset(name for names in FREE_BY_REASON.values() for name in names.split())


def is_free(operator: Any) -> bool:
    """Whether an operator costs nothing by the convention: it is listed, or torch tags it as element-wise or a view."""
    namespace, _, name = operator_name(operator).partition("::")
    if namespace == "prim":
        return True
    if namespace == "aten" and (name in FREE or name.removesuffix("_") in FREE):
        return True
    return getattr(operator, "is_view", False) or not FREE_TAGS.isdisjoint(getattr(operator, "tags", ()))


def operator_name(operator: Any) -> str:
    """Return the qualified name of an operator without its overload, such as `aten::mm`."""
    if isinstance(operator, torch._ops.OpOverload):
        return operator._schema.name
    return f"{getattr(operator, 'namespace', 'python')}::{operator.name()}"
