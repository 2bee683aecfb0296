"""The OpenAI protocol without HTTP: bodies become requests, events become answers.

No HTTP, no threads, no clock but that of `created`, no engine: `Served` says what is known of the
model, read_chat and read_completion turn a body into a `Job`, and its `Answer` turns the events of
a session into what the client is sent, streamed or whole.

errors         refusals and their bodies
vocabulary     the bytes of single tokens
served         what the protocol knows of the model
bodies         from bytes to checked fields
unsupported    the fields that are refused
sampling       the fields that say how tokens are chosen, and when a text ends
grammar        schemas to masks over the vocabulary, by llguidance
constraint     response_format
messages       what the chat template is given
choice         one continuation as it grows
echo           the prompt before it
scores         log-probabilities in the forms of chats and of completions
answer         Job and Answer
jobs           requests of a checked body, and their bounds
chat           /v1/chat/completions
completions    /v1/completions
tokens         /tokenize, /detokenize, /tokenizer_info, /apply-template
batch          files of requests, by a session
answer_file    their answers on the disk, so that a run can go on
"""
