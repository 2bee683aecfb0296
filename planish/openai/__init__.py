"""The OpenAI protocol without HTTP: bodies become requests, events become answers."""
