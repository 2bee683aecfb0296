// How every FFI handler begins: it chooses an instruction set and checks all buffers before it
// reads any. A buffer that does not fit is an error that names what was found and what was
// expected.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "registry.h"
#include "xla/ffi/api/ffi.h"

namespace planish {

namespace ffi = xla::ffi;

inline std::string shape_text(ffi::AnyBuffer b) {
  std::string text = "[";
  for (int64_t d : b.dimensions()) text += (text.size() > 1 ? ", " : "") + std::to_string(d);
  return text + "]";
}

// Takes buffers in order and remembers the first that does not fit.
class Reader {
 public:
  Reader(ffi::RemainingArgs arguments, ffi::RemainingRets results)
      : arguments_(arguments), results_(results) {}

  // A buffer of a type with `size` entries (any, if negative), or null after a failure.
  ffi::AnyBuffer* next(const char* name, std::initializer_list<ffi::DataType> types, int64_t size) {
    if (index_ >= arguments_.size()) return fail(std::string(name) + " is missing");
    auto found = arguments_.get<ffi::AnyBuffer>(index_++);
    if (!found.has_value()) return fail(std::string(name) + " cannot be read");
    kept_.push_back(std::make_unique<ffi::AnyBuffer>(*found));
    return check(name, *kept_.back(), types, size) ? kept_.back().get() : nullptr;
  }
  template <class T>
  const T* data(const char* name, ffi::DataType type, int64_t size) {
    ffi::AnyBuffer* buffer = next(name, {type}, size);
    return buffer ? static_cast<const T*>(buffer->untyped_data()) : nullptr;
  }
  template <class T>
  T* result(const char* name, ffi::DataType type, int64_t size) {
    if (result_ >= results_.size()) {
      fail(std::string(name) + " is missing");
      return nullptr;
    }
    auto found = results_.get<ffi::AnyBuffer>(result_++);
    if (!found.has_value() || !check(name, **found, {type}, size)) return nullptr;
    return static_cast<T*>((*found)->untyped_data());
  }
  // A result of a type and of any size.
  ffi::AnyBuffer* next_result(const char* name, ffi::DataType type) {
    if (result_ >= results_.size()) return fail(std::string(name) + " is missing");
    auto found = results_.get<ffi::AnyBuffer>(result_++);
    if (!found.has_value()) return fail(std::string(name) + " cannot be written");
    kept_.push_back(std::make_unique<ffi::AnyBuffer>(**found));
    return check(name, *kept_.back(), {type}, -1) ? kept_.back().get() : nullptr;
  }
  ffi::AnyBuffer* fail(std::string message) {
    if (message_.empty()) message_ = std::move(message);
    return nullptr;
  }
  void end() {
    if (index_ != arguments_.size() || result_ != results_.size()) fail("too many buffers");
  }
  bool good() const { return message_.empty(); }
  ffi::Error error() const { return ffi::Error::InvalidArgument("planish: " + message_); }

 private:
  bool check(const char* name, ffi::AnyBuffer b, std::initializer_list<ffi::DataType> types,
             int64_t size) {
    bool fits = false;
    for (auto type : types) fits = fits || b.element_type() == type;
    if (!fits) fail(std::string(name) + " has a type that the kernel does not take");
    if (size >= 0 && static_cast<int64_t>(b.element_count()) != size) {
      fail(std::string(name) + " is " + shape_text(b) + ", expected " + std::to_string(size) +
           " entries");
    }
    return good();
  }

  ffi::RemainingArgs arguments_;
  ffi::RemainingRets results_;
  size_t index_ = 0, result_ = 0;
  std::vector<std::unique_ptr<ffi::AnyBuffer>> kept_;
  std::string message_;
};

// The kernels of an instruction set, "" for the best; fails if they are not loaded.
inline const Kernels* read_kernels(Reader& in, std::string_view isa) {
  const Kernels* kernels = choose(isa);
  if (!kernels) in.fail("no kernels for " + std::string(isa));
  return kernels;
}

}  // namespace planish
