// fusestep._core: norms of gradients and clipping.
#include "operations/grads.h"

#include <limits>
#include <string>

#include "backend/dispatch.h"
#include "bindings/clipping.h"
#include "bindings/functions.h"
#include "bindings/lists.h"
#include "bindings/options.h"
#include "bindings/tensor.h"
#include "tensors/check_view.h"
#include "tensors/overlap.h"

namespace fusestep {

namespace {

// The gradients of one call. `written`: they will be changed in place.
class Grads {
 public:
  Grads(const std::string& operation, py::handle grads, bool written) {
    const ItemList items(grads, {operation.c_str(), "grads"});
    OverlapCheck overlaps;
    for (std::size_t i = 0; i < items.size(); ++i) {
      const Argument argument{operation.c_str(), "grads", static_cast<std::int64_t>(i)};
      const TensorView view = reader_.read(items[i], argument);
      if (written) {
        check_writable(view, argument);
        overlaps.writes(view, argument);
      }
      list_.add(view, argument);
    }
    overlaps.check();
  }

  TensorReader& reader() { return reader_; }
  const GradList& list() const { return list_; }
  Stream stream() { return reader_.stream_of(list_.device()); }

 private:
  TensorReader reader_;
  GradList list_;
};

// `out`: None, or a 0-dim array on the device of the gradients that takes the result, so that nobody waits for it.
TensorView read_out(TensorReader& reader, const std::string& operation, py::handle out, Device device) {
  if (out.is_none()) return {};
  const Argument argument{operation.c_str(), "out"};
  const TensorView view = reader.read(out, argument);
  if (!backend_for(device, argument).defers || view.device != device) {
    refuse_value(argument, "an array on the CUDA device of the gradients", "another one");
  }
  if (view.numel != 1 || view.dtype != DType::float64) {
    refuse_value(argument, "one element of float64", std::string(name_of(view.dtype)));
  }
  check_writable(view, argument);
  return view;
}

std::optional<double> clip(const std::string& operation, Grads& read, const Clipping& clipping, py::handle out,
                           py::handle totals) {
  const TensorView norm = read_out(read.reader(), operation, out, read.list().device());
  const TensorView parts = read_totals(totals, read.reader(), operation.c_str());
  const Stream stream = read.stream();
  const py::gil_scoped_release released;
  return read.list().clip(operation.c_str(), clipping, norm, parts, stream).norm;
}

std::optional<double> grad_norm(const std::string& operation, py::handle grads, py::handle norm_type, py::handle out,
                                py::handle totals) {
  Clipping clipping;
  clipping.norm_kind = read_norm_kind(norm_type, operation.c_str());
  clipping.max_grad_norm = std::numeric_limits<double>::infinity();
  Grads read(operation, grads, false);
  return clip(operation, read, clipping, out, totals);
}

std::optional<double> grad_total(const std::string& operation, py::handle grads, py::handle norm_type, py::handle out) {
  const NormKind kind = read_norm_kind(norm_type, operation.c_str());
  Grads read(operation, grads, false);
  const TensorView total = read_out(read.reader(), operation, out, read.list().device());
  const Stream stream = read.stream();
  const py::gil_scoped_release released;
  return read.list().total(kind, total, stream);
}

std::optional<double> clip_grad_norm(const std::string& operation, py::handle grads, const py::dict& options,
                                     py::handle out, py::handle totals) {
  Clipping clipping = read_clipping(options, operation.c_str(), "max_norm");
  if (!clipping.max_grad_norm) clipping.max_grad_norm = std::numeric_limits<double>::infinity();  // only measure
  clipping.rewrite_grads = true;
  Grads read(operation, grads, true);
  return clip(operation, read, clipping, out, totals);
}

void clip_grad_value(const std::string& operation, py::handle grads, py::handle clip_value) {
  const Argument argument{operation.c_str(), "clip_value"};
  const double limit = read_number(clip_value, Range::not_negative, argument);
  Grads read(operation, grads, true);
  const Stream stream = read.stream();
  const py::gil_scoped_release released;
  read.list().transform({1, limit}, stream);
}

}  // namespace

void bind_grads(py::module_& m) {
  m.def(
      "grad_norm", &grad_norm, py::arg("operation"), py::arg("grads"), py::arg("norm_type"),
      py::arg("out") = py::none(), py::arg("totals") = py::none(),
      "The norm over all elements of all gradients, accumulated in double; into `out` if given. `totals`: the parts of "
      "its sum from several processes, to be added up in place of the gradients.");
  m.def("grad_total", &grad_total, py::arg("operation"), py::arg("grads"), py::arg("norm_type"),
        py::arg("out") = py::none(),
        "The sum of the norm before its root, as a part of `totals`; into `out` if given.");
  m.def("clip_grad_norm_", &clip_grad_norm, py::arg("operation"), py::arg("grads"), py::arg("clipping"),
        py::arg("out") = py::none(), py::arg("totals") = py::none(),
        "Scales the gradients in place as the clipping options say; returns the norm before, or puts it into `out`. "
        "`totals`: as for grad_norm.");
  m.def("clip_grad_value_", &clip_grad_value, py::arg("operation"), py::arg("grads"), py::arg("clip_value"),
        "Clamps the gradients in place to [-clip_value, clip_value].");
}

}  // namespace fusestep
