// fusestep._core: attention.
#include "operations/attention.h"

#include <initializer_list>
#include <optional>

#include "bindings/attention_options.h"
#include "bindings/functions.h"
#include "bindings/tensor.h"
#include "operations/attention_backward.h"

namespace fusestep {

namespace {

py::tuple to_tuple(std::initializer_list<std::int64_t> sizes) {
  py::tuple tuple(sizes.size());
  std::size_t i = 0;
  for (const std::int64_t size : sizes) tuple[i++] = size;
  return tuple;
}

// A new torch tensor beside `query`, as (batch, queries, heads, dim) in memory: a model's
// out.transpose(1, 2).reshape(batch, queries, heads * dim) then copies nothing.
py::object new_out(py::handle query, const std::int64_t (&shape)[4]) {
  static PyObject* const name = PyUnicode_InternFromString("new_empty_strided");
  const auto [batch, heads, queries, dim] = shape;
  const py::tuple sizes = to_tuple({batch, heads, queries, dim});
  const py::tuple strides = to_tuple({queries * heads * dim, dim, heads * dim, 1});
  PyObject* const arguments[] = {query.ptr(), sizes.ptr(), strides.ptr()};
  auto out = py::reinterpret_steal<py::object>(
      PyObject_VectorcallMethod(name, arguments, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
  if (!out) throw py::error_already_set();
  return out;
}

py::object attention_forward(const char* name, py::handle query, py::handle key, py::handle value, py::object out,
                             py::handle lse, const py::tuple& options) {
  TensorReader reader;
  const auto read = [&](py::handle array, const char* argument) { return reader.read(array, {name, argument}); };
  const TensorView query_view = read(query, "query");
  const TensorView key_view = read(key, "key");
  const TensorView value_view = read(value, "value");
  AttentionPlan plan(name, query_view, key_view, value_view, read_attention_options(options, reader, name));
  if (out.is_none()) out = new_out(query, plan.out_shape());
  const TensorView out_view = read(out, "out");
  TensorView lse_view;
  if (!lse.is_none()) lse_view = read(lse, "lse");
  plan.write_results(out_view, lse.is_none() ? nullptr : &lse_view);
  plan.overlaps().check();
  const Stream stream = reader.stream_of(query_view.device);
  {
    const py::gil_scoped_release released;
    plan.forward(stream);
  }
  return out;
}

void attention_backward(const char* name, py::handle grad_out, py::handle query, py::handle key,
                        py::handle value, py::handle out, py::handle lse, py::handle grad_query, py::handle grad_key,
                        py::handle grad_value, py::handle grad_mask, const py::tuple& options) {
  TensorReader reader;
  const auto read = [&](py::handle array, const char* argument) { return reader.read(array, {name, argument}); };
  const auto read_wanted = [&](py::handle array, const char* argument) {
    return array.is_none() ? std::nullopt : std::optional(read(array, argument));
  };
  AttentionGradViews grads;
  grads.grad_out = read(grad_out, "grad_out");
  const TensorView query_view = read(query, "query");
  const TensorView key_view = read(key, "key");
  const TensorView value_view = read(value, "value");
  const TensorView out_view = read(out, "out");
  const TensorView lse_view = read(lse, "lse");
  grads.grad_query = read_wanted(grad_query, "grad_query");
  grads.grad_key = read_wanted(grad_key, "grad_key");
  grads.grad_value = read_wanted(grad_value, "grad_value");
  grads.grad_mask = read_wanted(grad_mask, "grad_mask");
  const AttentionBackwardPlan plan(name, query_view, key_view, value_view, out_view, lse_view, grads,
                                   read_attention_options(options, reader, name));
  const Stream stream = reader.stream_of(query_view.device);
  const py::gil_scoped_release released;
  plan.run(stream);
}

}  // namespace

void bind_attention(py::module_& m) {
  m.def("attention_forward", &attention_forward, py::arg("operation"), py::arg("query"), py::arg("key"),
        py::arg("value"), py::arg("out"), py::arg("lse"), py::arg("options"),
        "Masked softmax attention with dropout: writes out and the log-sum-exp of each row, and returns out. out=None: a "
        "new tensor (query is torch's then). lse=None: it is not wanted.");
  m.def("attention_backward", &attention_backward, py::arg("operation"), py::arg("grad_out"), py::arg("query"),
        py::arg("key"), py::arg("value"), py::arg("out"), py::arg("lse"), py::arg("grad_query"), py::arg("grad_key"),
        py::arg("grad_value"), py::arg("grad_mask"), py::arg("options"),
        "The gradients of attention_forward: writes those that are not None.");
}

}  // namespace fusestep
