// Lists of arrays as arguments.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "tensors/check.h"

namespace fusestep {

// The items of a list or tuple as they were when the call began. They are held: reading one may run Python code of the
// array's type, which may empty the list that the caller passed.
class ItemList {
 public:
  ItemList() = default;

  // Refuses anything else: a lone array is a sequence too, of its rows.
  ItemList(pybind11::handle object, const Argument& argument) {
    if (!PyList_Check(object.ptr()) && !PyTuple_Check(object.ptr())) {
      const std::string type = Py_TYPE(object.ptr())->tp_name;
      refuse_type(argument, "a list of arrays", object.is_none() ? "None" : "a " + type);
    }
    items_ = pybind11::reinterpret_steal<pybind11::object>(PySequence_Tuple(object.ptr()));
    if (!items_) throw pybind11::error_already_set();
  }

  std::size_t size() const { return items_ ? static_cast<std::size_t>(PyTuple_GET_SIZE(items_.ptr())) : 0; }
  pybind11::handle operator[](std::size_t i) const {
    return PyTuple_GET_ITEM(items_.ptr(), static_cast<Py_ssize_t>(i));
  }

  void check_length(std::size_t expected, const Argument& argument) const {
    if (size() == expected) return;
    refuse_value(argument, std::to_string(expected) + " items, one for each of params", std::to_string(size()));
  }

 private:
  pybind11::object items_;
};

}  // namespace fusestep
