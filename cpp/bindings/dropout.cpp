// fusestep._core: plain dropout.
#include "operations/dropout.h"

#include "bindings/functions.h"
#include "bindings/options.h"
#include "bindings/seed.h"
#include "bindings/tensor.h"

namespace fusestep {

namespace {

void run_dropout(const char* operation, py::handle x, const py::handle* residual, py::handle out, py::handle p,
                 py::handle seed, py::handle offset) {
  const Argument p_argument{operation, "p"};
  const double probability = read_number(p, p_argument);
  if (!(probability >= 0 && probability <= 1)) refuse_value(p_argument, "a probability in [0, 1]", text_of(p));
  TensorReader reader;
  const SeedOption seed_option = read_seed(seed, reader, operation);
  const std::uint32_t offset_number = read_offset(offset, operation);
  const TensorView x_view = reader.read(x, {operation, "x"});
  TensorView residual_view;
  if (residual != nullptr) residual_view = reader.read(*residual, {operation, "residual"});
  const TensorView out_view = reader.read(out, {operation, "out"});
  const DropoutPlan plan(operation, x_view, residual != nullptr ? &residual_view : nullptr, out_view, probability,
                         seed_option, offset_number);
  const Stream stream = reader.stream_of(x_view.device);
  const py::gil_scoped_release released;
  plan.run(stream);
}

void dropout(const char* operation, py::handle x, py::handle out, py::handle p, py::handle seed, py::handle offset) {
  run_dropout(operation, x, nullptr, out, p, seed, offset);
}

void dropout_add(const char* operation, py::handle x, py::handle residual, py::handle out, py::handle p,
                 py::handle seed, py::handle offset) {
  run_dropout(operation, x, &residual, out, p, seed, offset);
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
