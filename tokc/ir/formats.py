"""The formats in which a weight's codes and scales are numbers, where they are no plain integers.

    e4m3, e5m2   8-bit floats (Micikevicius et al. 2022, arXiv:2209.05433), f32 scales
    mxfp4        e2m1 codes of 4 bits, a power of two, e8m0, each 32 columns (OCP Microscaling Formats v1.0)
    nvfp4        e2m1 codes, an e4m3 scale each 16 columns, an f32 scale for the tensor (NVIDIA Blackwell)

The ops that read weights name the format in their attribute `format`, "" for integers; a QuantLinear whose
activations are rounded to e4m3 says so in `act_format`. 8-bit floats are
tensors of ONNX's own types. onnxruntime has neither e2m1 nor e8m0 yet, so these are bit patterns in uint4 and
uint8, which the functions here, as parts of an op's body, turn to what they stand for.
"""

from typing import Literal, get_args

FloatFormat = Literal["e4m3", "e5m2", "mxfp4", "nvfp4"]
FORMATS: tuple[FloatFormat, ...] = get_args(FloatFormat)
NIBBLES = frozenset({"mxfp4", "nvfp4"})  # formats whose codes are e2m1

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # codes 0 to 7; 8 to 15 are the same below zero
E8M0_BIAS = 127
E4M3_LARGEST = 448.0
F32, INT32, E4M3 = 1, 6, 17  # onnx.TensorProto.DataType


def codes_body(weight_format: str) -> str:
    """Spell ``code_raw``, f32 [N, K]: what each code of `q` stands for before it is scaled."""
    if weight_format not in NIBBLES:
        return f"code_raw = Cast<to={F32}>(q)"
    levels = ", ".join(str(sign * level) for sign in (1, -1) for level in E2M1)
    return f"""
        code_levels = Constant<value_floats=[{levels}]>()
        code_index = Cast<to={INT32}>(q)
        code_raw = Gather<axis=0>(code_levels, code_index)"""


def scales_body(weight_format: str, *, tensor_scale: bool, rows: int, block_rows: int) -> str:
    """Spell ``scale_f32``, f32 [N, blocks]: `block_rows` rows of N = `rows` share one of `scale`."""
    lines = [f"scale_raw = Cast<to={F32}>(scale)"]
    value = "scale_raw"
    if weight_format == "mxfp4":
        lines += [
            f"scale_bias = Constant<value_float={float(E8M0_BIAS)}>()",
            "scale_two = Constant<value_float=2.0>()",
            "scale_exponent = Sub(scale_raw, scale_bias)",
            "scale_power = Pow(scale_two, scale_exponent)",
        ]
        value = "scale_power"
    if tensor_scale:
        lines.append(f"scale_whole = Mul({value}, tensor_scale)")
        value = "scale_whole"
    if block_rows > 1:
        lines += [
            "scale_first = Constant<value_int=0>()",
            f"scale_rows = Constant<value_int={rows}>()",
            "scale_step = Constant<value_int=1>()",
            f"scale_share = Constant<value_int={block_rows}>()",
            "scale_each = Range(scale_first, scale_rows, scale_step)",
            "scale_row = Div(scale_each, scale_share)",
            f"scale_f32 = Gather<axis=0>({value}, scale_row)",
        ]
    else:
        lines.append(f"scale_f32 = Identity({value})")
    return "\n".join(lines)


def activations_body() -> str:
    """Spell ``near``: what the e4m3 codes of x stand for; one scale, absmax / 448, a row."""
    return f"""
        near_axis = Constant<value_ints=[-1]>()
        near_abs = Abs(x)
        near_top = ReduceMax<keepdims=1>(near_abs, near_axis)
        near_most = Constant<value_float={E4M3_LARGEST}>()
        near_least = Constant<value_float={-E4M3_LARGEST}>()
        near_step = Div(near_top, near_most)
        near_0 = Constant<value_float=0.0>()
        near_1 = Constant<value_float=1.0>()
        near_none = Equal(near_step, near_0)
        near_scale = Where(near_none, near_1, near_step)
        near_scaled = Div(x, near_scale)
        near_held = Clip(near_scaled, near_least, near_most)
        near_e4m3 = Cast<to={E4M3}>(near_held)
        near_codes = Cast<to={F32}>(near_e4m3)
        near = Mul(near_codes, near_scale)"""
