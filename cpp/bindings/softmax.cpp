// fusestep._core: the masked softmax.
#include <optional>

#include "bindings/attention_options.h"
#include "bindings/functions.h"
#include "bindings/tensor.h"
#include "operations/masked_softmax.h"

namespace fusestep {

namespace {

void masked_softmax_forward(const char* name, py::handle scores, py::handle out, py::handle lse,
                            const py::tuple& options) {
  TensorReader reader;
  const TensorView scores_view = reader.read(scores, {name, "scores"});
  const TensorView out_view = reader.read(out, {name, "out"});
  const TensorView lse_view = reader.read(lse, {name, "lse"});
  const AttentionOptions read = read_attention_options(options, reader, name);
  const SoftmaxPlan plan = SoftmaxPlan::forward(name, scores_view, out_view, lse_view, read);
  const Stream stream = reader.stream_of(scores_view.device);
  const py::gil_scoped_release released;
  plan.run_forward(stream);
}

void masked_softmax_backward(const char* name, py::handle grad_out, py::handle scores, py::handle lse,
                             py::handle grad_scores, py::handle grad_mask, const py::tuple& options) {
  TensorReader reader;
  const TensorView grad_out_view = reader.read(grad_out, {name, "grad_out"});
  const TensorView scores_view = reader.read(scores, {name, "scores"});
  const TensorView lse_view = reader.read(lse, {name, "lse"});
  const TensorView grad_scores_view = reader.read(grad_scores, {name, "grad_scores"});
  std::optional<TensorView> grad_mask_view;
  if (!grad_mask.is_none()) grad_mask_view = reader.read(grad_mask, {name, "grad_mask"});
  const AttentionOptions read = read_attention_options(options, reader, name);
  const SoftmaxPlan plan = SoftmaxPlan::backward(name, grad_out_view, scores_view, lse_view, grad_scores_view,
                                                 grad_mask_view ? &*grad_mask_view : nullptr, read);
  const Stream stream = reader.stream_of(scores_view.device);
  const py::gil_scoped_release released;
  plan.run_backward(stream);
}

}  // namespace

void bind_masked_softmax(py::module_& m) {
  m.def("masked_softmax_forward", &masked_softmax_forward, py::arg("operation"), py::arg("scores"), py::arg("out"),
        py::arg("lse"), py::arg("options"),
        "Softmax over the last dimension with masks and dropout: writes out and the log-sum-exp of each row.");
  m.def("masked_softmax_backward", &masked_softmax_backward, py::arg("operation"), py::arg("grad_out"),
        py::arg("scores"), py::arg("lse"), py::arg("grad_scores"), py::arg("grad_mask"), py::arg("options"),
        "Writes the gradients of the scores and, unless it is None, of an additive mask.");
}

}  // namespace fusestep
