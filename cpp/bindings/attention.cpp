// fusestep._core: attention.
#include "operations/attention.h"

#include <initializer_list>
#include <optional>
#include <utility>

#include "bindings/attention_options.h"
#include "bindings/functions.h"
#include "bindings/tensor.h"
#include "operations/attention_backward.h"
#include "tensors/check_view.h"
#include "tensors/overlap.h"

namespace fusestep {

namespace {

// A new torch tensor beside `like`. dtype: null for that of `like`.
py::object new_tensor(py::handle like, std::initializer_list<std::int64_t> sizes,
                      std::initializer_list<std::int64_t> strides, PyObject* dtype) {
  static PyObject* const name = PyUnicode_InternFromString("new_empty_strided");
  static PyObject* const keywords = PyTuple_Pack(1, PyUnicode_InternFromString("dtype"));
  const auto to_tuple = [](std::initializer_list<std::int64_t> numbers) {
    py::tuple tuple(numbers.size());
    std::size_t i = 0;
    for (const std::int64_t number : numbers) tuple[i++] = number;
    return tuple;
  };
  const py::tuple shape = to_tuple(sizes);
  const py::tuple steps = to_tuple(strides);
  PyObject* const arguments[] = {like.ptr(), shape.ptr(), steps.ptr(), dtype};
  auto tensor = py::reinterpret_steal<py::object>(
      PyObject_VectorcallMethod(name, arguments, 3, dtype != nullptr ? keywords : nullptr));
  if (!tensor) throw py::error_already_set();
  return tensor;
}

void run_forward(const AttentionPlan& plan, const Stream& stream) {
  const py::gil_scoped_release released;
  plan.forward(stream);
}

// Into arrays that are given.
void attention_forward(const char* name, py::handle query, py::handle key, py::handle value, py::handle out,
                       py::handle lse, const py::tuple& options) {
  TensorReader reader;
  const auto read = [&](py::handle array, const char* argument) { return reader.read(array, {name, argument}); };
  const TensorView query_view = read(query, "query");
  const TensorView key_view = read(key, "key");
  const TensorView value_view = read(value, "value");
  const TensorView out_view = read(out, "out");
  const TensorView lse_view = read(lse, "lse");
  const AttentionOptions read_options = read_attention_options(options, reader, name);
  AttentionPlan plan(name, query_view, key_view, value_view, read_options);
  plan.add_results(out_view, &lse_view);
  OverlapCheck overlaps;
  AttentionPlan::note_inputs(overlaps, name, query_view, key_view, value_view, read_options);
  const auto writes = [&](const TensorView& view, const char* argument) {
    check_writable(view, {name, argument});
    overlaps.writes(view, {name, argument});
  };
  writes(out_view, "out");
  writes(lse_view, "lse");
  overlaps.check();
  run_forward(plan, reader.stream_of(query_view.device));
}

// Into new torch tensors: (out, lse), or (out, None) where lse_dtype is None.
py::tuple attention(const char* name, py::handle query, py::handle key, py::handle value, py::handle lse_dtype,
                    const py::tuple& options) {
  TensorReader reader;
  const auto read = [&](py::handle array, const char* argument) { return reader.read(array, {name, argument}); };
  const TensorView query_view = read(query, "query");
  const TensorView key_view = read(key, "key");
  const TensorView value_view = read(value, "value");
  AttentionPlan plan(name, query_view, key_view, value_view, read_attention_options(options, reader, name));
  const auto [batch, heads, queries, dim] = plan.out_shape();
  // As (batch, queries, heads, dim) in memory: a model's out.transpose(1, 2).reshape(batch, queries, heads * dim) then
  // copies nothing.
  py::object out =
      new_tensor(query, {batch, heads, queries, dim}, {queries * heads * dim, dim, heads * dim, 1}, nullptr);
  py::object lse = py::none();
  const TensorView out_view = read(out, "out");
  TensorView lse_view;
  if (!lse_dtype.is_none()) {
    lse = new_tensor(query, {batch, heads, queries}, {heads * queries, queries, 1}, lse_dtype.ptr());
    lse_view = read(lse, "lse");
  }
  plan.add_results(out_view, lse.is_none() ? nullptr : &lse_view);
  run_forward(plan, reader.stream_of(query_view.device));
  return py::make_tuple(std::move(out), std::move(lse));
}

void attention_backward(const char* name, py::handle grad_out, py::handle query, py::handle key, py::handle value,
                        py::handle out, py::handle lse, py::handle grad_query, py::handle grad_key,
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
        "Masked softmax attention with dropout: writes out and the log-sum-exp of each row.");
  m.def("attention", &attention, py::arg("operation"), py::arg("query"), py::arg("key"), py::arg("value"),
        py::arg("lse_dtype"), py::arg("options"),
        "attention_forward of torch tensors into new ones: (out, lse). lse_dtype=None: lse is not wanted, and None.");
  m.def("attention_backward", &attention_backward, py::arg("operation"), py::arg("grad_out"), py::arg("query"),
        py::arg("key"), py::arg("value"), py::arg("out"), py::arg("lse"), py::arg("grad_query"), py::arg("grad_key"),
        py::arg("grad_value"), py::arg("grad_mask"), py::arg("options"),
        "The gradients of attention_forward: writes those that are not None.");
}

}  // namespace fusestep
