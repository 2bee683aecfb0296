"""The judge: does an engine compute what the reference defines, how well, and how fast?

    subject         what can be judged: the questions that an engine answers
    conformance/    three levels of comparison (SPEC 9)
    quality/        what a recipe costs in perplexity, KL and top-1
    bench/          tokens per second beside what the machine gives and other engines reach

Three levels, because each is blind alone. A whole model can agree by luck where an op is wrong
in a rare case; an op can be right where the graph around it is not; and once two codes differ
at a tie, everything behind them differs a little, legitimately. So ops are compared on the same
inputs, layers are fed with the reference's inputs, and only the last level lets errors add up.
"""
