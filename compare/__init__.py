"""The judge: does an engine compute what the reference defines, how well, and how fast?

    subject         the questions that a judged engine answers
    conformance/    three levels of comparison (SPEC 9)
    bench/          tokens per second, beside the machine's roofline and other engines
    quality/        what a recipe costs in perplexity, KL and top-1
    lint/           what is wrong or dangerous in a quantized checkpoint

There are three levels because each one misses something. A whole model can agree by luck although
an op is wrong in a rare case; every op can be right although the graph around it is wrong; and
after one code that differs at a tie, every value downstream differs a little and is still right. So
ops are compared on the same inputs, layers are given the reference's inputs, and only on the last
level may errors add up.
"""
