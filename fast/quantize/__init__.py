"""Quantization's heavy work, jitted, by the reference's names.

moments      sum of x xt of each linear's inputs, the half that is needed
listener     a backend that observes the inputs of a block's linears
middle       what attention leaves, kept for the next pass of the samples
observe      the calibration's runner: runs samples through a block and collects statistics
grid         the values of a weight on its grid
awq          AWQ
ranges       the grids with gradients, from the range of each group
products     matrix products with gradients, of float32 or bfloat16 factors
trainable    a backend with gradients
training     train what a method learns of one block
teq          TEQ
signround    SignRound
gptq         GPTQ's column loop
sensitivity  what rounding each linear alone costs the loss
validate     two models' predictions from their last hidden states
runtime      the runner and the jitted methods, as the pipeline takes them
"""
