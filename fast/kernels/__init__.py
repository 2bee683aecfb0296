"""The native kernels: C++ sources, their build, and the library that XLA calls."""
