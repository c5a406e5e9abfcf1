#include "bindings/attention_options.h"

#include <algorithm>
#include <string_view>

#include "bindings/options.h"

namespace fusestep {

namespace {

Causal read_causal(py::handle value, const Argument& argument) {
  if (value.is(py::bool_(false))) return Causal::none;
  if (value.is(py::bool_(true))) return Causal::top_left;
  const std::string word = py::isinstance<py::str>(value) ? py::cast<std::string>(value) : "";
  if (word == "top_left") return Causal::top_left;
  if (word == "bottom_right") return Causal::bottom_right;
  refuse_value(argument, "True, False, \"top_left\" or \"bottom_right\"", text_of(value));
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

AttentionOptions read_attention_options(const py::dict& given, TensorReader& reader, const char* operation) {
  AttentionOptions options;
  for (const auto& [key, value] : given) {
    if (value.is_none()) continue;
    const char* const name = PyUnicode_AsUTF8(key.ptr());
    if (name == nullptr) throw py::error_already_set();
    const std::string_view is(name);
    const Argument argument{operation, name};
    if (is == "mask") {
      options.mask = reader.read(value, argument, Dtypes::booleans_and_floats);
    } else if (is == "causal") {
      options.causal = read_causal(value, argument);
    } else if (is == "window") {
      read_window(value, argument, options.window_left, options.window_right);
    } else if (is == "key_lengths") {
      options.key_lengths = reader.read(value, argument, Dtypes::integers);
    } else if (is == "cu_seqlens_q") {
      options.cu_seqlens_q = reader.read(value, argument, Dtypes::integers);
    } else if (is == "cu_seqlens_k") {
      options.cu_seqlens_k = reader.read(value, argument, Dtypes::integers);
    } else if (is == "alibi_slopes") {
      options.alibi_slopes = reader.read(value, argument, Dtypes::floats);
    } else if (is == "softcap") {
      options.softcap = read_number(value, argument);
    } else if (is == "scale") {
      options.scale = read_number(value, argument);
    } else if (is == "dropout_p") {
      options.dropout_p = read_number(value, argument);
    } else if (is == "seed") {
      options.seed = read_seed(value, operation);
    } else if (is == "offset") {
      options.offset = read_offset(value, operation);
    } else {
      refuse_type(argument, "an option of attention", name);
    }
  }
  return options;
}

}  // namespace fusestep
