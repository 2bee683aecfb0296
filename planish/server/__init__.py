"""The HTTP server of `planish serve`.

Four threads: the event loop answers HTTP, one worker renders and tokenizes, another does so for
clients that want to have the tokens, one thread steps the session. No request waits in another's
thread.

    runner       a thread that owns a session: queue, steps, cancelling, failures
    settings     what an operator chooses: address, keys, limits
    flags        the flags of `planish serve`
    fingerprint  what identifies the model and how it is computed
    service      what the routes share: the model, the runner, the worker, and whether all is ready
    errors       answers that are errors, all in OpenAI's form
    guards       the middlewares: errors, Host, CORS, keys, bodies
    stream       server-sent events
    answering    a request from its body to its last byte, or until its client leaves
    page         the page at /
    routes       the endpoints
    app          the routes inside the middlewares
    metrics      what /metrics counts
    log          one line for each request
    process      the socket, uvicorn, signals and the end
"""
