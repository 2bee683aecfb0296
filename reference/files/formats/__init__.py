"""How quantized linears are stored, one format a file.

planish                codes, scales and zero points
quantization_config    what was done, in config.json
"""
