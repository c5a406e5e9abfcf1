// The one way to refuse an argument. Every error of the library reads
//   operation: argument: expected this, got that. What to do.
// and is thrown before the first byte is written.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace fusestep {

// The wrong kind of thing (Python's TypeError). A wrong value, shape, layout or length is std::invalid_argument
// (Python's ValueError).
struct WrongType : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Names an argument. It owns no string: one is made for each of thousands of tensors in a step, and text is built only
// when something is refused.
struct Argument {
  const char* operation;    // "adamw_"
  const char* name;         // "grads"
  std::int64_t index = -1;  // position in the list, -1: not a list
  std::int64_t group = -1;  // parameter group, -1: there is only one

  // "groups[1].grads[3]"
  std::string path() const;
};

[[noreturn]] void refuse_value(const Argument& argument, const std::string& expected, const std::string& got,
                               const std::string& remedy = "");
[[noreturn]] void refuse_type(const Argument& argument, const std::string& expected, const std::string& got,
                              const std::string& remedy = "");

}  // namespace fusestep
