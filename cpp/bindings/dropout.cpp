// fusestep._core: plain dropout.
#include "operations/dropout.h"

#include <string>

#include "bindings/functions.h"
#include "bindings/options.h"
#include "bindings/tensor.h"

namespace fusestep {

namespace {

void run_dropout(const char* operation, py::handle x, const py::handle* residual, py::handle out, py::handle p,
                 py::handle seed, py::handle offset) {
  const double probability = read_number(p, Range::below_one, {operation, "p"});
  const DropoutRule rule = dropout_rule(probability, read_seed(seed, operation), read_offset(offset, operation));
  TensorReader reader;
  const TensorView x_view = reader.read(x, {operation, "x"});
  TensorView residual_view;
  if (residual != nullptr) residual_view = reader.read(*residual, {operation, "residual"});
  const TensorView out_view = reader.read(out, {operation, "out"});
  const DropoutPlan plan(operation, x_view, residual != nullptr ? &residual_view : nullptr, out_view, rule);
  const Stream stream = reader.stream_of(x_view.device);
  const py::gil_scoped_release released;
  plan.run(stream);
}

void dropout(const std::string& operation, py::handle x, py::handle out, py::handle p, py::handle seed,
             py::handle offset) {
  run_dropout(operation.c_str(), x, nullptr, out, p, seed, offset);
}

void dropout_add(const std::string& operation, py::handle x, py::handle residual, py::handle out, py::handle p,
                 py::handle seed, py::handle offset) {
  run_dropout(operation.c_str(), x, &residual, out, p, seed, offset);
}

}  // namespace

void bind_dropout(py::module_& m) {
  m.def("dropout", &dropout, py::arg("operation"), py::arg("x"), py::arg("out"), py::arg("p"), py::arg("seed"),
        py::arg("offset"), "out <- dropout(x); out may be x.");
  m.def("dropout_add", &dropout_add, py::arg("operation"), py::arg("x"), py::arg("residual"), py::arg("out"),
        py::arg("p"), py::arg("seed"), py::arg("offset"),
        "out <- residual + dropout(x), rounded once; out may be x or residual.");
}

}  // namespace fusestep
