// fusestep._core: attention.
#include "attention.h"

#include <string>

#include "bindings/attention_options.h"
#include "bindings/functions.h"
#include "bindings/tensor.h"

namespace fusestep {

namespace {

void attention_forward(const std::string& operation, py::handle query, py::handle key, py::handle value, py::handle out,
                       py::handle lse, const py::dict& options) {
  const char* name = operation.c_str();
  TensorReader reader;
  const auto read = [&](py::handle array, const char* argument) { return reader.read(array, {name, argument}); };
  const TensorView query_view = read(query, "query");
  const TensorView key_view = read(key, "key");
  const TensorView value_view = read(value, "value");
  const TensorView out_view = read(out, "out");
  const TensorView lse_view = read(lse, "lse");
  AttentionPlan plan(name, query_view, key_view, value_view, out_view, lse_view,
                     read_attention_options(options, reader, name), true);
  plan.overlaps().check();
  const Stream stream = reader.stream_of(query_view.device);
  const py::gil_scoped_release released;
  plan.forward(stream);
}

}  // namespace

void bind_attention(py::module_& m) {
  m.def("attention_forward", &attention_forward, py::arg("operation"), py::arg("query"), py::arg("key"),
        py::arg("value"), py::arg("out"), py::arg("lse"), py::arg("options"),
        "Masked softmax attention with dropout: writes out and the log-sum-exp of each row.");
}

}  // namespace fusestep
