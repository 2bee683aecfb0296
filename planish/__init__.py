"""The command: one file per verb, and the only room where flags are read."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("planish")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0+unknown"
