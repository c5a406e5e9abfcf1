#include "bindings/attention_options.h"

#include <algorithm>
#include <string>

#include "bindings/options.h"
#include "bindings/seed.h"

namespace fusestep {

namespace {

Causal read_causal(py::handle value, const Argument& argument) {
  if (value.is(py::bool_(false))) return Causal::none;
  if (value.is(py::bool_(true))) return Causal::top_left;
  const std::string word = word_of(value);
  if (word == "top_left") return Causal::top_left;
  if (word == "bottom_right") return Causal::bottom_right;
  refuse_value(argument, "True, False, \"top_left\" or \"bottom_right\"", text_of(value),
               did_you_mean(value, {"top_left", "bottom_right"}));
}

void read_window(py::handle value, const Argument& argument, std::int64_t& left, std::int64_t& right) {
  constexpr const char* kExpected = "(left, right), each an int >= 0, or None or -1 for no limit";
  if (!PyTuple_Check(value.ptr()) && !PyList_Check(value.ptr())) refuse_type(argument, kExpected, text_of(value));
  const auto pair = py::reinterpret_borrow<py::sequence>(value);
  if (py::len(pair) != 2) refuse_value(argument, kExpected, text_of(value));
  std::int64_t* const sides[] = {&left, &right};
  for (std::size_t i = 0; i < 2; ++i) {
    const py::object side = pair[i];
    if (side.is_none()) continue;
    int overflow = 0;
    const long long size = PyLong_Check(side.ptr()) ? PyLong_AsLongLongAndOverflow(side.ptr(), &overflow) : -2;
    if (overflow < 0 || size < -1) refuse_value(argument, kExpected, text_of(value));
    if (overflow == 0 && size >= 0) *sides[i] = std::min<std::int64_t>(size, kUnlimited);
  }
}

}  // namespace

AttentionOptions read_attention_options(const py::tuple& given, TensorReader& reader, const char* operation) {
  constexpr Py_ssize_t kOfSoftmax = 8;
  constexpr Py_ssize_t kOfAttention = 12;
  const Py_ssize_t count = PyTuple_GET_SIZE(given.ptr());
  if (count != kOfSoftmax && count != kOfAttention) {
    refuse_type({operation, "options"}, "a tuple of 8 or 12", text_of(given));
  }
  Py_ssize_t next = 0;
  // Calls read(value, argument) with the next option, unless it is None.
  const auto with_next = [&](const char* name, const auto& read) {
    const py::handle value = PyTuple_GET_ITEM(given.ptr(), next++);
    if (!value.is_none()) read(value, Argument{operation, name});
  };
  const auto into = [&](auto& option, Dtypes dtypes) {
    return [&option, &reader, dtypes](py::handle value, const Argument& argument) {
      option = reader.read(value, argument, dtypes);
    };
  };
  const auto into_number = [](auto& option) {
    return [&option](py::handle value, const Argument& argument) { option = read_number(value, argument); };
  };

  AttentionOptions options;
  with_next("mask", into(options.mask, Dtypes::booleans_and_floats));
  with_next("causal",
            [&](py::handle value, const Argument& argument) { options.causal = read_causal(value, argument); });
  with_next("window", [&](py::handle value, const Argument& argument) {
    read_window(value, argument, options.window_left, options.window_right);
  });
  with_next("key_lengths", into(options.key_lengths, Dtypes::integers));
  with_next("scale", into_number(options.scale));
  with_next("dropout_p", into_number(options.dropout_p));
  with_next("seed", [&](py::handle value, const Argument&) { options.seed = read_seed(value, reader, operation); });
  with_next("offset", [&](py::handle value, const Argument&) { options.offset = read_offset(value, operation); });
  if (count == kOfSoftmax) return options;
  with_next("alibi_slopes", into(options.alibi_slopes, Dtypes::floats));
  with_next("softcap", into_number(options.softcap));
  with_next("cu_seqlens_q", into(options.cu_seqlens_q, Dtypes::integers));
  with_next("cu_seqlens_k", into(options.cu_seqlens_k, Dtypes::integers));
  return options;
}

}  // namespace fusestep
