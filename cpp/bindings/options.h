// From Python's keyword arguments and torch's parameter groups to an optimizer's options, and back to their
// description: all from the table in the optimizer's own header.
#pragma once

#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "math/optim/options.h"
#include "math/typelist.h"
#include "tensors/check.h"

namespace fusestep {

namespace py = pybind11;

// repr(object), for messages.
inline std::string text_of(py::handle object) { return py::cast<std::string>(py::repr(object)); }

// The text of a str; "" for everything else, and for text that UTF-8 cannot hold: no option is called that.
inline std::string word_of(py::handle value) {
  if (!PyUnicode_Check(value.ptr())) return "";
  const char* const text = PyUnicode_AsUTF8(value.ptr());
  if (text == nullptr) PyErr_Clear();
  return text == nullptr ? "" : text;
}

// "Did you mean 'skip'?", or nothing where none of `choices` is near: what a refusal of a name ends with.
inline std::string did_you_mean(py::handle value, std::initializer_list<const char*> choices) {
  py::list known;
  for (const char* choice : choices) known.append(choice);
  return py::cast<std::string>(py::module_::import("fusestep._refusal").attr("did_you_mean")(value, known));
}

// Anything with __float__ is a number: an int, a NumPy scalar, a torch tensor of one element.
inline double read_number(py::handle value, const Argument& argument) {
  const double number = PyFloat_AsDouble(value.ptr());
  if (number == -1 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    refuse_type(argument, "a number", text_of(value));
  }
  return number;
}

inline double read_number(py::handle value, Range range, const Argument& argument) {
  const double number = read_number(value, argument);
  if (!std::isfinite(number)) refuse_value(argument, "a finite number", text_of(value));
  if (range != Range::finite && number < 0) refuse_value(argument, "a number >= 0", text_of(value));
  if (range == Range::below_one && number >= 1) refuse_value(argument, "a number below 1", text_of(value));
  return number;
}

inline bool read_bool(py::handle value, const Argument& argument) {
  if (!PyBool_Check(value.ptr())) refuse_type(argument, "True or False", text_of(value));
  return value.ptr() == Py_True;
}

// Anything with __index__ from 0 to `most`: an int, a NumPy integer.
inline std::uint64_t read_unsigned(py::handle value, std::uint64_t most, const Argument& argument) {
  const auto expected = [&] { return "an int from 0 to " + std::to_string(most); };
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!index) {
    PyErr_Clear();
    refuse_type(argument, expected(), text_of(value));
  }
  const std::uint64_t number = PyLong_AsUnsignedLongLong(index.ptr());
  if (number == static_cast<std::uint64_t>(-1) && PyErr_Occurred() != nullptr) {
    PyErr_Clear();  // negative, or beyond 64 bits
    refuse_value(argument, expected(), text_of(value));
  }
  if (number > most) refuse_value(argument, expected(), text_of(value));
  return number;
}

// Anything with __index__ that fits: an int, a NumPy integer.
inline std::int64_t read_integer(py::handle value, const Argument& argument) {
  constexpr const char* kExpected = "an int of 64 bits";
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!index) {
    PyErr_Clear();
    refuse_type(argument, kExpected, text_of(value));
  }
  int overflow = 0;
  const std::int64_t number = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow != 0) refuse_value(argument, kExpected, text_of(value));
  return number;
}

inline std::uint32_t read_offset(py::handle value, const char* operation) {
  return static_cast<std::uint32_t>(read_unsigned(value, UINT32_MAX, {operation, "offset"}));
}

// Reads one option of each type that a table may hold.
inline void read_option(py::handle value, Range range, const Argument& argument, double& out) {
  out = read_number(value, range, argument);
}

inline void read_option(py::handle value, Range /*range*/, const Argument& argument, bool& out) {
  out = read_bool(value, argument);
}

inline void read_option(py::handle value, Range range, const Argument& argument, Betas& out) {
  constexpr const char* kExpected = "two numbers (beta1, beta2)";
  if (!PyTuple_Check(value.ptr()) && !PyList_Check(value.ptr())) refuse_type(argument, kExpected, text_of(value));
  if (py::len(value) != 2) refuse_value(argument, kExpected, text_of(value));
  const auto pair = py::reinterpret_borrow<py::sequence>(value);
  out = {read_number(pair[0], range, argument), read_number(pair[1], range, argument)};
}

inline void read_option(py::handle value, Range /*range*/, const Argument& argument, Choice& out) {
  std::string expected;
  for (int i = 0; i < 2; ++i) {
    if (word_of(value) == out.words[i]) {
      out.value = i;
      return;
    }
    expected += (i == 0 ? "\"" : " or \"") + std::string(out.words[i]) + "\"";
  }
  refuse_value(argument, expected, text_of(value));
}

// The options of O that `given` names; the others keep their defaults. Keys that are not options are left alone: a
// torch parameter group has several.
template <class O>
typename O::Options read_options(const py::dict& given, const char* operation, std::int64_t group) {
  typename O::Options options;
  O::visit_options(options, [&](const char* name, auto& option, Range range, const char* /*doc*/) {
    PyObject* value = PyDict_GetItemString(given.ptr(), name);
    if (value != nullptr) read_option(value, range, {operation, name, -1, group}, option);
  });
  const Conflict conflict = O::conflict(options);
  if (conflict.option != nullptr) {
    refuse_value({operation, conflict.option, -1, group}, conflict.expected, conflict.got);
  }
  return options;
}

inline py::object to_python(double value) { return py::float_(value); }
inline py::object to_python(bool value) { return py::bool_(value); }
inline py::object to_python(const Betas& value) { return py::make_tuple(value.beta1, value.beta2); }
inline py::object to_python(const Choice& value) { return py::str(value.words[value.value]); }

// The states that no variant makes negative.
template <class... Variants>
constexpr StateSet squares_of(TypeList<Variants...>) {
  return (Variants::kSquares | ...);
}

// {"states": [...], "options": {name: default}, "option_docs": {name: text}, "doc": text}
template <class O>
py::dict describe_optimizer() {
  py::list states;
  py::list squares;
  for (int k = 0; k < kMaxStates; ++k) {
    if (O::kStateNames[k] == nullptr) continue;
    states.append(O::kStateNames[k]);
    squares.append(uses(squares_of(typename O::Variants{}), k));
  }
  py::dict defaults;
  py::dict docs;
  const typename O::Options options;
  O::visit_options(options, [&](const char* name, const auto& option, Range /*range*/, const char* doc) {
    defaults[name] = to_python(option);
    docs[name] = doc;
  });
  py::dict description;
  description["states"] = states;
  description["squares"] = squares;
  description["options"] = defaults;
  description["option_docs"] = docs;
  description["doc"] = O::kDoc;
  return description;
}

}  // namespace fusestep
