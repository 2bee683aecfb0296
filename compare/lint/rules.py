"""The table of rules: what lint looks for, how bad it is, which programs it breaks, the fix.

    error      numbers are damaged, programs that read the format compute other weights without
               saying so, or the programs that the format is for do not load it
    warning    some program refuses the checkpoint, or loses bits of it
    note       worth knowing; nothing is wrong

docs/lint.md has the evidence of each row: which facts were seen by running a program, and which are
read in its code or reported.
"""

from __future__ import annotations

from dataclasses import dataclass

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """what: a sentence with {count}, {total} and {detail} of the findings that share a row."""

    severity: str
    what: str
    breaks: tuple[str, ...] = ()
    fix: str = "nothing"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A rule that fires for one linear, tensor, layer or config.

    count, total: of scales, codes, groups, ... where the rule counts something.
    """

    rule: str
    where: str
    count: int = 0
    total: int = 0
    detail: str = ""


AGAIN = "quantize it again from the float model"
SEVERAL = ("vLLM", "planish")
ZERO_POINTS = {
    "zero-v1-wraps": Rule(
        severity="error",
        what="{count} of {total} zero points are stored as {detail} (true zero 0), which programs"
        " decode in three ways",
        breaks=(
            "llama.cpp's converter and vLLM's exllama (they read 2^b)",
            "GPTQ readers of others",
        ),
        fix="planish reads it as its writer meant; write it as gptq_v2, awq or compressed-tensors",
    ),
    "zero-version": Rule(
        severity="error",
        what="all zero points are stored as {detail}",
        breaks=("every reader that trusts the label: all weights are off by one scale",),
        fix="correct checkpoint_format (packing_format) in config.json",
    ),
    "zero-v1-asymmetric": Rule(
        severity="warning",
        what='asymmetric zero points in version 1 ("gptq") by {detail}',
        breaks=("GPTQModel (refuses it unless its own 0.9.0 or newer wrote it)",),
        fix="write it as gptq_v2",
    ),
    "zero-v1-clamped": Rule(
        severity="note",
        what="{count} of {total} zero points are stored as 0 by AutoRound, which raises a true zero"
        " of 0 to 1 and leaves the codes",
        fix="export as auto_round:auto_awq or auto_round:gptqmodel, which store true zeros",
    ),
    "zero-range": Rule(
        severity="error",
        what="{count} of {total} zero points are outside {detail}",
        breaks=("every reader",),
        fix=AGAIN,
    ),
}
SCALES = {
    "scale-zero": Rule(
        severity="error",
        what="{count} of {total} scales are 0",
        breaks=("planish (refuses it)", "programs that divide by a scale"),
        fix=f"{AGAIN}, or store scale 1 and the code of zero in such groups",
    ),
    "scale-not-finite": Rule(
        severity="error",
        what="{count} of {total} scales are NaN or infinite",
        breaks=("every reader",),
        fix=AGAIN,
    ),
    "scale-denormal": Rule(
        severity="warning",
        what="{count} of {total} scales are denormal in {detail}",
        breaks=("programs that flush denormals to 0",),
        fix="store the scales in float32 or bfloat16",
    ),
    "scale-negative-int8": Rule(
        severity="error",
        what="{count} of {total} scales of groups are negative, and inputs are INT8",
        breaks=("vLLM's Marlin kernels (read the scales as unsigned, without an error)",),
        fix="quantize with the rule absmax, whose scales are positive",
    ),
    "scale-negative": Rule(
        severity="note",
        what="{count} of {total} scales are negative",
        breaks=("vLLM's Marlin kernels if inputs are made INT8",),
    ),
    "scale-rounded": Rule(
        severity="warning",
        what="{count} of {total} scales lose bits in {detail}",
        breaks=("vLLM (keeps scales in the model's dtype)",),
        fix='set "dtype" in config.json to the type of the scales',
    ),
    "scale-input": Rule(
        severity="error",
        what="the scale of a static input is not positive and finite",
        breaks=("every reader",),
        fix="calibrate it again",
    ),
    "offset-not-finite": Rule(
        severity="error",
        what="{count} of {total} offsets are NaN or infinite",
        breaks=("every reader",),
        fix=AGAIN,
    ),
    "group-dead": Rule(
        severity="note",
        what="{count} of {total} groups are dead: all weights are 0",
        fix="nothing, if the float model has these zeros",
    ),
}
CODES = {
    "code-range": Rule(
        severity="error",
        what="{count} of {total} codes are outside {detail}",
        breaks=("every reader",),
        fix="correct num_bits in the config, or quantize it again",
    ),
    "code-minus-128": Rule(
        severity="note",
        what="{count} of {total} codes are -128 on a symmetric grid",
        breaks=("kernels that take |w| or -w in int8, and grids of -127..127",),
        fix="nothing",
    ),
    "code-minus-128-refused": Rule(
        severity="error",
        what="{count} of {total} codes are -128, and the scheme is declared as -127..127",
        breaks=("planish (refuses it)",),
        fix=AGAIN,
    ),
    "code-not-a-number": Rule(
        severity="error",
        what="{count} of {total} FP8 weights are NaN",
        breaks=("every reader",),
        fix=AGAIN,
    ),
    "code-saturated": Rule(
        severity="warning",
        what="in {count} of {total} rows the ends of the grid hold {detail}",
        breaks=("the model's quality: weights were clipped",),
        fix="compare with --against FLOAT_DIR; quantize it again with larger scales",
    ),
}
GROUPS = {
    "group-vllm": Rule(
        severity="warning",
        what="{detail}",
        breaks=("vLLM's Marlin kernels (take 32, 64, 128 and whole rows)",),
        fix="repeat the scales for groups of 128 or 32: lossless if the size is a multiple",
    ),
    "group-mlx": Rule(
        severity="note",
        what="{detail}",
        breaks=("mlx-lm (takes groups of 32, 64 and 128 that divide the row)",),
        fix="repeat the scales for groups of 128 or 32: lossless if the size is a multiple",
    ),
    "group-llama": Rule(
        severity="note",
        what="{detail}",
        breaks=("llama.cpp (blocks of 32) and its converter",),
        fix="rows and groups of a multiple of 32, in the form that the converter takes",
    ),
    "group-short": Rule(
        severity="error",
        what="rows are no multiple of the group: {detail}",
        breaks=("compressed-tensors and AutoAWQ (refuse it)",),
        fix="leave the linear in float, or repeat the scales for groups that divide the row",
    ),
    "group-short-gptq": Rule(
        severity="note",
        what="rows are no multiple of the group: {detail}",
        breaks=("kernels that expect K / g groups, although GPTQ's format allows it",),
        fix="repeat the scales for groups that divide the row",
    ),
    "scheme-vllm": Rule(
        severity="warning",
        what="vLLM has no scheme for {detail}",
        breaks=("vLLM (No compressed-tensors compatible scheme was found)",),
        fix="quantize inputs per token, weights per channel or in groups",
    ),
    "asymmetric-transformers": Rule(
        severity="warning",
        what="asymmetric codes in the format pack-quantized",
        breaks=("transformers 5.24 (reports a wrong shape of weight_zero_point)",),
        fix="transformers 5.17, or CompressedTensorsConfig(dequantize=True)",
    ),
}
ORDERS = {
    "order-missing": Rule(
        severity="warning",
        what="there is no g_idx",
        breaks=("llama.cpp's converter",),
        fix="store g_idx = k // group_size",
    ),
    "order-trivial": Rule(
        severity="note",
        what="g_idx is trivial{detail}",
        breaks=("mlx-lm (refuses every g_idx)",),
        fix="nothing; leave it out for mlx-lm only, as llama.cpp's converter needs it",
    ),
    "order-undeclared": Rule(
        severity="error",
        what="g_idx has another order, and desc_act is not declared",
        breaks=("readers that trust the config: they give inputs the scales of other groups",),
        fix='set "desc_act": true in config.json',
    ),
    "order-range": Rule(
        severity="error",
        what="{count} of {total} entries of g_idx are no group",
        breaks=("every reader",),
        fix=AGAIN,
    ),
    "order-compressed-tensors": Rule(
        severity="warning",
        what="weight_g_idx is stored",
        breaks=("compressed-tensors 0.20 (actorder group was removed)", "vLLM, some versions"),
        fix="quantize with actorder weight or static, which leaves no trace",
    ),
}
NAMES = {
    "linear-unreadable": Rule(
        severity="error",
        what="{detail}",
        breaks=("planish (refuses it)",),
        fix="correct the config or the tensor, which contradict each other",
    ),
    "linear-unsupported": Rule(
        severity="warning",
        what="planish does not compute {detail}",
        breaks=("planish (refuses it)",),
        fix="nothing for the program that wrote it",
    ),
    "fused-schemes": Rule(
        severity="error",
        what="parts of one layer have different schemes: {detail}",
        breaks=("vLLM (merges q, k and v, and gate and up, into one linear)",),
        fix="give all parts the same scheme, or leave all in float",
    ),
    "router-quantized": Rule(
        severity="error",
        what="a router of experts is quantized",
        breaks=("vLLM (KeyError)", "planish (reads routers in float)"),
        fix="keep routers in float, and in `ignore` or as a negative rule of `dynamic`",
    ),
    "router-unread": Rule(
        severity="warning",
        what="a router of experts is quantized",
        breaks=("planish (reads routers in float)",),
        fix="nothing for the program that wrote it",
    ),
    "bias-zero": Rule(
        severity="warning",
        what="a bias of zeros, of a linear that has no bias",
        breaks=("vLLM (KeyError for names that the model does not have)",),
        fix="remove the tensor",
    ),
    "bias-unexpected": Rule(
        severity="error",
        what="a bias that the architecture does not have, and that is not 0",
        breaks=(*SEVERAL, "transformers (ignores it: other results)"),
        fix="correct the config, or remove the tensor",
    ),
    "tensor-unknown": Rule(
        severity="warning",
        what="a tensor that no reader knows",
        breaks=("vLLM (KeyError)", "planish (refuses it)"),
        fix="remove the tensor",
    ),
    "tensor-unread": Rule(
        severity="warning",
        what="a tensor of GGUF that planish does not know",
        breaks=("planish (refuses it)",),
        fix="nothing for llama.cpp",
    ),
    "tensor-padding": Rule(
        severity="warning",
        what="a tensor of padding",
        breaks=("vLLM (KeyError)",),
        fix="write the file without padding tensors",
    ),
    "tensor-unused": Rule(severity="note", what="a tensor that the model does not use"),
    "tensor-missing": Rule(
        severity="error",
        what="is missing",
        breaks=("every reader",),
        fix="find the shard that has it, or quantize again",
    ),
    "tensor-not-finite": Rule(
        severity="error",
        what="{count} of {total} numbers are NaN or infinite",
        breaks=("every reader",),
        fix="take the tensor from the float model",
    ),
    "embedding-not-finite": Rule(
        severity="warning",
        what="{count} of {total} numbers of the embedding are NaN or infinite",
        breaks=("every reader, for ids of such rows",),
        fix="nothing, if these are rows of ids without a token",
    ),
    "model-unknown": Rule(
        severity="note",
        what="names of tensors were not checked: {detail}",
        breaks=("planish",),
        fix="docs/adding-an-architecture.md",
    ),
}
RULES: dict[str, Rule] = {**ZERO_POINTS, **SCALES, **CODES, **GROUPS, **ORDERS, **NAMES}
