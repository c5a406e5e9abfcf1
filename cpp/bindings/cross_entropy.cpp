// fusestep._core: cross-entropy.
#include "operations/cross_entropy.h"

#include <optional>

#include "bindings/functions.h"
#include "bindings/options.h"
#include "bindings/tensor.h"

namespace fusestep {

namespace {

Reduction read_reduction(py::handle value, const Argument& argument) {
  const std::string word = word_of(value);
  if (word == "none") return Reduction::none;
  if (word == "mean") return Reduction::mean;
  if (word == "sum") return Reduction::sum;
  refuse_value(argument, "\"none\", \"mean\" or \"sum\"", text_of(value), did_you_mean(value, {"none", "mean", "sum"}));
}

void cross_entropy(const char* name, py::handle logits, py::handle labels, py::handle loss, py::handle lse,
                   py::handle grad, py::handle ignore_index, py::handle label_smoothing, py::handle z_loss,
                   py::handle reduction) {
  CrossEntropyOptions options;
  options.ignore_index = read_integer(ignore_index, {name, "ignore_index"});
  options.label_smoothing = read_number(label_smoothing, Range::not_negative, {name, "label_smoothing"});
  if (options.label_smoothing > 1) {
    refuse_value({name, "label_smoothing"}, "a number in [0, 1]", text_of(label_smoothing));
  }
  options.z_loss = read_number(z_loss, Range::not_negative, {name, "z_loss"});
  options.reduction = read_reduction(reduction, {name, "reduction"});
  TensorReader reader;
  const TensorView logits_view = reader.read(logits, {name, "logits"});
  const TensorView labels_view = reader.read(labels, {name, "labels"}, Dtypes::integers);
  const TensorView loss_view = reader.read(loss, {name, "loss"});
  const TensorView lse_view = reader.read(lse, {name, "lse"});
  std::optional<TensorView> grad_view;
  if (!grad.is_none()) grad_view = reader.read(grad, {name, "grad"});
  CrossEntropyPlan plan(name, logits_view, labels_view, loss_view, lse_view, grad_view ? &*grad_view : nullptr,
                        options);
  const Stream stream = reader.stream_of(logits_view.device);
  const py::gil_scoped_release released;
  plan.run(stream);
}

}  // namespace

void bind_cross_entropy(py::module_& m) {
  m.def("cross_entropy", &cross_entropy, py::arg("operation"), py::arg("logits"), py::arg("labels"), py::arg("loss"),
        py::arg("lse"), py::arg("grad"), py::arg("ignore_index"), py::arg("label_smoothing"), py::arg("z_loss"),
        py::arg("reduction"), "Writes the loss, the log-sum-exp of each row and, unless it is None, the gradient.");
}

}  // namespace fusestep
