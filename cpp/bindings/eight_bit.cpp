// fusestep._core: moments to 8 bits and back.
#include "operations/eight_bit.h"

#include <string>

#include "bindings/functions.h"
#include "bindings/options.h"
#include "bindings/tensor.h"

namespace fusestep {

namespace {

template <class Convert>
void convert(const std::string& operation, py::handle values, py::handle codes, py::handle absmax, py::handle square,
             const Convert& operate) {
  const char* const name = operation.c_str();
  const bool squares = read_bool(square, {name, "square"});
  TensorReader reader;
  const TensorView values_view = reader.read(values, {name, "values"});
  const TensorView codes_view = reader.read(codes, {name, "codes"}, Dtypes::floats_and_codes);
  const TensorView absmax_view = reader.read(absmax, {name, "absmax"});
  const py::gil_scoped_release released;
  operate(name, values_view, codes_view, absmax_view, squares);
}

}  // namespace

void bind_eight_bit(py::module_& m) {
  m.def(
      "quantize_8bit",
      [](const std::string& operation, py::handle values, py::handle codes, py::handle absmax, py::handle square) {
        convert(operation, values, codes, absmax, square, quantize_moments);
      },
      py::arg("operation"), py::arg("values"), py::arg("codes"), py::arg("absmax"), py::arg("square"),
      "Fills codes and absmax from values, all C-contiguous and in CPU memory.");
  m.def(
      "dequantize_8bit",
      [](const std::string& operation, py::handle values, py::handle codes, py::handle absmax, py::handle square) {
        convert(operation, values, codes, absmax, square, dequantize_moments);
      },
      py::arg("operation"), py::arg("values"), py::arg("codes"), py::arg("absmax"), py::arg("square"),
      "Fills values from codes and absmax, all C-contiguous and in CPU memory.");
}

}  // namespace fusestep
