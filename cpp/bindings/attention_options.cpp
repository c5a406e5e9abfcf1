#include "bindings/attention_options.h"

#include <limits>

#include "bindings/options.h"

namespace fusestep {

namespace {

// One call's options.
class Reader {
 public:
  Reader(const py::dict& given, TensorReader& arrays, const char* operation)
      : given_(given), arrays_(arrays), operation_(operation) {}

  std::optional<TensorView> array(const char* name, Dtypes dtypes) const {
    const py::handle value = get(name);
    if (!value) return std::nullopt;
    return arrays_.read(value, argument(name), dtypes);
  }

  std::optional<double> number(const char* name) const {
    const py::handle value = get(name);
    if (!value) return std::nullopt;
    return read_number(value, argument(name));
  }

  // 0 to `most`.
  std::uint64_t counter(const char* name, std::uint64_t most) const {
    const py::handle value = get(name);
    if (!value) return 0;
    const std::string expected = "an int of 0 to " + std::to_string(most);
    const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
    if (!index) {
      PyErr_Clear();
      refuse_type(argument(name), expected, text_of(value));
    }
    const std::uint64_t number = PyLong_AsUnsignedLongLong(index.ptr());
    const bool failed = PyErr_Occurred() != nullptr;
    if (failed) PyErr_Clear();
    if (failed || number > most) refuse_value(argument(name), expected, text_of(value));
    return number;
  }

  Causal causal() const {
    const py::handle value = get("causal");
    if (!value || value.is(py::bool_(false))) return Causal::none;
    if (value.is(py::bool_(true))) return Causal::top_left;
    const std::string word = py::isinstance<py::str>(value) ? py::cast<std::string>(value) : "";
    if (word == "top_left") return Causal::top_left;
    if (word == "bottom_right") return Causal::bottom_right;
    refuse_value(argument("causal"), "True, False, \"top_left\" or \"bottom_right\"", text_of(value));
  }

  void window(std::int64_t& left, std::int64_t& right) const {
    const py::handle value = get("window");
    if (!value) return;
    constexpr const char* kExpected = "(left, right), each an int >= 0, or None or -1 for no limit";
    if (!PyTuple_Check(value.ptr()) && !PyList_Check(value.ptr())) {
      refuse_type(argument("window"), kExpected, text_of(value));
    }
    const auto pair = py::reinterpret_borrow<py::sequence>(value);
    if (py::len(pair) != 2) refuse_value(argument("window"), kExpected, text_of(value));
    std::int64_t* const sides[] = {&left, &right};
    for (std::size_t i = 0; i < 2; ++i) {
      const py::object side = pair[i];
      if (side.is_none()) continue;
      int overflow = 0;
      const long long size = PyLong_Check(side.ptr()) ? PyLong_AsLongLongAndOverflow(side.ptr(), &overflow) : -2;
      if (overflow < 0 || size < -1) refuse_value(argument("window"), kExpected, text_of(value));
      if (overflow == 0 && size >= 0) *sides[i] = std::min<std::int64_t>(size, kUnlimited);
    }
  }

 private:
  Argument argument(const char* name) const { return {operation_, name}; }

  // Null where there is none.
  py::handle get(const char* name) const {
    PyObject* value = PyDict_GetItemString(given_.ptr(), name);
    return value == Py_None ? nullptr : value;
  }

  const py::dict& given_;
  TensorReader& arrays_;
  const char* operation_;
};

}  // namespace

AttentionOptions read_attention_options(const py::dict& given, TensorReader& reader, const char* operation) {
  const Reader read(given, reader, operation);
  AttentionOptions options;
  options.mask = read.array("mask", Dtypes::booleans_and_floats);
  options.causal = read.causal();
  read.window(options.window_left, options.window_right);
  options.key_lengths = read.array("key_lengths", Dtypes::integers);
  options.cu_seqlens_q = read.array("cu_seqlens_q", Dtypes::integers);
  options.cu_seqlens_k = read.array("cu_seqlens_k", Dtypes::integers);
  options.alibi_slopes = read.array("alibi_slopes", Dtypes::floats);
  options.softcap = read.number("softcap").value_or(0);
  options.scale = read.number("scale");
  options.dropout_p = read.number("dropout_p").value_or(0);
  options.seed = read.counter("seed", std::numeric_limits<std::uint64_t>::max());
  options.offset = static_cast<std::uint32_t>(read.counter("offset", std::numeric_limits<std::uint32_t>::max()));
  return options;
}

}  // namespace fusestep
