"""Integer formats: what they promise of values, scales and bytes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moespac.kernels.quantise import dequantise, quantise

FORMATS = ("int8", "int4-g32", "int4-g128")
SCALES = (torch.float16, torch.bfloat16)
GROUPS = {"int4-g32": 32, "int4-g128": 128}
every_format = pytest.mark.parametrize("format", FORMATS)
every_int4 = pytest.mark.parametrize("format", GROUPS)
every_scale = pytest.mark.parametrize("scale_dtype", SCALES, ids=str)


def normal(rows: int, columns: int, seed: int = 0, std: float = 0.02) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * std


def round_trip(weight: torch.Tensor, format: str, scale_dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return dequantise(*quantise(weight, format, scale_dtype), format, weight.shape[1])


def relative_error(weight: torch.Tensor, format: str, scale_dtype: torch.dtype = torch.float16) -> float:
    return float((round_trip(weight, format, scale_dtype) - weight).norm() / weight.norm())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 5),
    st.integers(1, 300),
    st.sampled_from(FORMATS),
    st.sampled_from(SCALES),
    st.sampled_from([1e-6, 0.02, 30.0]),
)
def test_shapes_types_and_error(rows: int, columns: int, format: str, scale_dtype: torch.dtype, std: float) -> None:
    weight = normal(rows, columns, seed=columns, std=std)
    payload, scales = quantise(weight, format, scale_dtype)
    result = dequantise(payload, scales, format, columns)
    assert result.dtype == torch.float32 and result.shape == weight.shape
    error = (result - weight).abs()
    if format == "int8":
        assert payload.dtype == torch.int8 and payload.shape == weight.shape
        assert scales.dtype == torch.float32 and scales.shape == (rows,)
        assert payload.min() >= -127
        assert (error <= scales[:, None] * 0.5001).all()
        return
    group = GROUPS[format]
    assert payload.dtype == torch.uint8 and payload.shape == (rows, -(-columns // 32) * 16)
    assert scales.dtype == scale_dtype and scales.shape == (rows, -(-columns // group))
    steps = scales.float().repeat_interleave(group, dim=1)[:, :columns]
    # Half a step within the range of the nibbles; beyond it a value is clipped to the range's end.
    inside = (weight / steps).clamp(-8, 7) * steps
    assert ((result - inside).abs() <= steps.abs() * 0.5001).all()
    # Never worse than the scale that clips nothing (rounded, thus the margin).
    widest = (
        torch.nn.functional.pad(weight, (0, scales.shape[1] * group - columns)).view(rows, -1, group).abs().amax(-1)
    )
    plain = (widest / 7)[..., None] ** 2 / 4 * group
    assert (error.square().sum() <= plain.sum() * 1.05).all()


@every_int4
def test_nibbles_lie_as_documented(format: str) -> None:
    # -8 is in every group, so that the scale is 1 and the steps are the values themselves.
    weight = (torch.arange(256) * 5 % 16 - 8).float().view(2, 128)
    payload, scales = quantise(weight, format)
    assert (scales == 1).all()
    for row in range(2):
        for column in range(128):
            byte = int(payload[row, column // 32 * 16 + column % 16])
            assert (byte >> 4 if column % 32 >= 16 else byte & 15) == weight[row, column] + 8


@every_int4
def test_features_past_the_last_hold_zero(format: str) -> None:
    payload, _ = quantise(normal(3, 33), format)
    assert (payload[:, 17:] == 0x88).all()
    assert (payload[:, 16] >> 4 == 8).all()


@every_format
@every_scale
def test_what_has_been_quantised_stays_as_it_is(format: str, scale_dtype: torch.dtype) -> None:
    # With the widest step in each group its scale is found again, whatever its sign.
    weight = normal(16, 384)
    weight[:, ::32] = torch.tensor([1.0, -1.0] * 8)[:, None] * 0.2
    once = round_trip(weight, format, scale_dtype)
    torch.testing.assert_close(round_trip(once, format, scale_dtype), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "format, bound", [("int8", 0.009), ("int4-g32", 0.083), ("int4-g128", 0.1)], ids=lambda value: str(value)
)
@every_scale
def test_error_on_normal_weights(format: str, bound: float, scale_dtype: torch.dtype) -> None:
    assert relative_error(normal(256, 2048), format, scale_dtype) < bound


@every_int4
def test_searching_scales_beats_taking_the_widest_value(format: str) -> None:
    weight = normal(64, 1024, seed=5)
    groups = weight.view(64, -1, GROUPS[format])
    scale = groups.abs().amax(-1, keepdim=True) / 7
    plain = (groups / scale).round() * scale - groups
    assert relative_error(weight, format) < 0.92 * plain.norm() / weight.norm()


@every_format
def test_any_float_type_gives_the_same_bytes(format: str) -> None:
    weight = normal(8, 256).half().float().bfloat16()
    for dtype in (torch.float32, torch.float64):
        for one, other in zip(quantise(weight.to(dtype), format), quantise(weight, format), strict=True):
            assert torch.equal(one, other)


@every_format
def test_rows_do_not_depend_on_each_other(format: str) -> None:
    weight = normal(2000, 320)  # several chunks
    payload, scales = quantise(weight, format)
    for row in (0, 777, 1999):
        alone = quantise(weight[row : row + 1], format)
        assert torch.equal(alone[0][0], payload[row]) and torch.equal(alone[1][0], scales[row])


@every_format
@every_scale
def test_zeros_and_values_below_the_scales_range(format: str, scale_dtype: torch.dtype) -> None:
    weight = normal(4, 256)
    weight[1] = 0
    weight[2, :128] = 0
    weight[3] *= 1e-12
    result = round_trip(weight, format, scale_dtype)
    assert result.isfinite().all()
    assert (result[1] == 0).all() and (result[2, :128] == 0).all()
    # Float16's smallest scale is 6e-8: what is far below rounds to zero.
    assert (result[3] - weight[3]).abs().max() <= max(6e-8 / 2, float(weight[3].abs().max()) / 7)
    assert torch.linalg.norm(result[0] - weight[0]) < 0.15 * weight[0].norm()


@every_format
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_with_their_row(format: str, value: float) -> None:
    weight = normal(6, 64)
    weight[4, 63] = value
    with pytest.raises(ValueError, match="row 4 holds NaN or infinity"):
        quantise(weight, format)


def test_a_scale_beyond_float16_is_refused_and_bfloat16_holds_it() -> None:
    weight = normal(3, 64)
    weight[2, 5] = 6e5
    with pytest.raises(ValueError, match=r"row 2 holds 600000, beyond 524032.*bfloat16 scales or int8"):
        quantise(weight, "int4-g32", torch.float16)
    assert round_trip(weight, "int4-g32", torch.bfloat16)[2, 5] == pytest.approx(6e5, rel=0.01)


def test_values_whose_squares_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match="row 0 holds 1e\\+30"):
        quantise(torch.full((1, 32), 1e30), "int4-g32", torch.bfloat16)
    assert relative_error(torch.full((1, 128), 2.0**60), "int4-g128", torch.bfloat16) == 0


def test_scale_types_go_by_name_too() -> None:
    weight = normal(2, 64)
    assert torch.equal(quantise(weight, "int4-g32", "bfloat16")[1], quantise(weight, "int4-g32", torch.bfloat16)[1])


@pytest.mark.parametrize(
    "weight, format, scale_dtype, message",
    [
        (torch.zeros(4), "int8", "float16", "floats of two dimensions"),
        (torch.zeros(4, 4, dtype=torch.int64), "int8", "float16", "floats of two dimensions"),
        (torch.zeros(4, 4), "int4-g64", "float16", "int4-g64 is not int8, int4-g32 or int4-g128"),
        (torch.zeros(4, 4), "int4-g32", "float8", "float8 is not float16 or bfloat16"),
    ],
)
def test_bad_arguments_are_refused(weight: torch.Tensor, format: str, scale_dtype: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantise(weight, format, scale_dtype)
