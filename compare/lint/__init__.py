"""What is wrong or dangerous in a quantized checkpoint, whoever wrote it (docs/lint.md).

rules          the table: severity, what, which programs it breaks, the fix
opened         a checkpoint as it is stored, also one that planish refuses
linear         one linear as it is stored: codes, scales, zero points, ends of the grid
foreign        linears of other programs, through their readers
own            linears of planish's directories
gguf_tensors   tensors of GGUF files
scales         rules of scales and offsets
codes          rules of codes: range, -128, saturation, dead groups
zeros          rules of zero points: GPTQ's versions
orders         rules of g_idx
groups         rules of group sizes and of inputs that programs cannot take
fused          the rule of parts that vLLM merges
names          rules of names, and of float tensors
against        the error of each linear against the float model
run            all rules over a checkpoint, one linear at a time
report         what it says, as JSON and as text
"""
