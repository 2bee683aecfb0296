// The attributes of a call as one struct. They are bound one by one, so that XLA resolves their
// names once; XLA's own struct decoding looks up every name in every call, 0.3 us for 14 of them.
#pragma once

#include <string>
#include <tuple>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace planish {

namespace ffi = xla::ffi;
using ffi::StructMember;

template <class Bound>
auto bind_members(Bound&& bound) {
  return std::move(bound).RemainingArgs().RemainingRets();
}

template <class Bound, class T, class... Rest>
auto bind_members(Bound&& bound, StructMember<T> first, Rest... rest) {
  return bind_members(std::move(bound).template Attr<T>(std::string(first.name)), rest...);
}

// Binds a call on XLA's threads, with these attributes in the order of the struct's fields.
template <class... Ts>
auto bind_call(const std::tuple<StructMember<Ts>...>& attributes) {
  return std::apply(
      [](auto... members) {
        return bind_members(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>(), members...);
      },
      attributes);
}

// The handler that XLA calls: it gathers the attributes' values in the struct.
template <class Call, class... Ts>
auto handler_of(ffi::Error (*run)(ffi::ThreadPool, const Call&, ffi::RemainingArgs,
                                  ffi::RemainingRets),
                const std::tuple<StructMember<Ts>...>&) {
  return
      [run](ffi::ThreadPool pool, Ts... values, ffi::RemainingArgs arguments,
            ffi::RemainingRets results) { return run(pool, Call{values...}, arguments, results); };
}

}  // namespace planish
