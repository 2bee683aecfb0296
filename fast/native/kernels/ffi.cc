// The library that XLA calls. One translation unit, because parsing XLA's headers takes longer than
// compiling all of these files.
#include "ffi/attention.cc"
#include "ffi/dense.cc"
#include "ffi/experts.cc"
#include "ffi/linears.cc"
#include "ffi/norm.cc"
#include "ffi/registry.cc"
#include "ffi/roofline.cc"
#include "ffi/route.cc"
#include "ffi/sample.cc"
