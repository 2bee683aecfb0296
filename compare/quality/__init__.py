"""What a recipe costs, on a text, on tasks and in bytes, and the search for one that costs little.

For `planish quality` and the demo
    names      W4A8-g64-minmax: a recipe in one word
    measure    perplexity, KL and top-1 beside the float model's, bytes, tokens per second
    table      the rows as a table, and the meaning of each column
    llama_cpp  llama.cpp on a GGUF file and the same windows, for `make demo-real`
For `planish evaluate`
    tasks      multiple choice and last words: accuracies, and paired differences
For `planish quantize --method auto`
    loss       what a tolerance is of: perplexity, KL, top-1, a task's accuracy
    judge      measure a candidate on the validation text, block by block
    rescaling  the scales by which a recipe's methods changed the float blocks
    mixture    a quantized candidate in which some linears are wider
    size       bits a weight
    order      the recipes that are tried, in order
    trial      quantize and measure one candidate
    ladder     which linears to widen, in which order
    mixed      how many of them, until a tolerance holds or a budget is full
    auto       the search
    assemble   write the model that was chosen
    trail      the table, and the report beside the model
For `python -m planish.methods`
    methods      every method on every grid, side by side
"""
