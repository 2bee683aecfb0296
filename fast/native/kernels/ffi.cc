// The library that XLA calls, compiled as one: XLA's headers take longer than all of these files.
#include "ffi/attention.cc"
#include "ffi/experts.cc"
#include "ffi/limits.cc"
#include "ffi/linears.cc"
#include "ffi/registry.cc"
#include "ffi/route.cc"
#include "ffi/sample.cc"
