"""The HTTP server of `planish serve`."""
