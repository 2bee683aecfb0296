"""From text to tokens, from logits to tokens and text, and how well a model predicts a text.

tokenizer_file     reading tokenizer.json, and the errors of the library
added_tokens       tokens that only the files beside tokenizer.json list
gguf_tokenizer     tokenizer.json, chat template and special tokens from the keys of a GGUF file
tokenizer          text to tokens, and tokens to text
chat_template      where a model's chat template is stored, and the tokens that it names
renderer           the process that renders templates, one child for each
template_worker    rendering it in a sandbox, as a process of limited time and memory
chat               a conversation to tokens
sampling           logits to a token
generation_config  how a model wants to be sampled
constraint         what an answer must be: a mask over logits
generate           the generation loop, and stop strings
requests           requests that are answered together, each as if alone
evaluate           perplexity, KL divergence, top-1 agreement
"""
