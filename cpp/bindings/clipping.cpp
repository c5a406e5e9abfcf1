#include "bindings/clipping.h"

#include <cmath>
#include <limits>

#include "bindings/options.h"

namespace fusestep {

namespace {

// A number above zero, infinity too, or None.
std::optional<double> read_limit(const py::dict& given, const char* operation, const char* name) {
  PyObject* value = PyDict_GetItemString(given.ptr(), name);
  if (value == nullptr || value == Py_None) return std::nullopt;
  const Argument argument{operation, name};
  const double limit = read_number(value, argument);
  if (!(limit > 0)) refuse_value(argument, "a number > 0", text_of(value));
  return limit;
}

// A finite number above zero, or None.
std::optional<double> read_factor(const py::dict& given, const char* operation, const char* name) {
  const std::optional<double> factor = read_limit(given, operation, name);
  if (factor && std::isinf(*factor)) refuse_value({operation, name}, "a finite number > 0", "inf");
  return factor;
}

OnNonfinite read_on_nonfinite(const py::dict& given, const char* operation, bool clips) {
  PyObject* value = PyDict_GetItemString(given.ptr(), "on_nonfinite");
  if (value == nullptr || value == Py_None) return clips ? OnNonfinite::skip : OnNonfinite::propagate;
  const std::string word = word_of(value);
  if (word == "skip") return OnNonfinite::skip;
  if (word == "raise") return OnNonfinite::raise;
  if (word == "propagate") return OnNonfinite::propagate;
  refuse_value({operation, "on_nonfinite"}, "\"skip\", \"raise\", \"propagate\" or None", text_of(value),
               did_you_mean(value, {"skip", "raise", "propagate"}));
}

}  // namespace

NormKind read_norm_kind(py::handle value, const char* operation) {
  const double norm_type = read_number(value, {operation, "norm_type"});
  if (norm_type == 1) return NormKind::one;
  if (norm_type == 2) return NormKind::two;
  if (norm_type == std::numeric_limits<double>::infinity()) return NormKind::inf;
  refuse_value({operation, "norm_type"}, "1, 2 or inf", text_of(value));
}

Clipping read_clipping(const py::dict& given, const char* operation, const char* max_norm) {
  Clipping clipping;
  clipping.max_grad_norm = read_limit(given, operation, max_norm);
  clipping.clip_factor = read_factor(given, operation, "clip_factor");
  clipping.max_grad_value = read_limit(given, operation, "max_grad_value");
  clipping.grad_scale = read_factor(given, operation, "grad_scale").value_or(1);
  clipping.on_nonfinite = read_on_nonfinite(given, operation, clipping.max_grad_norm.has_value());
  if (PyObject* norm_type = PyDict_GetItemString(given.ptr(), "norm_type")) {
    clipping.norm_kind = read_norm_kind(norm_type, operation);
  }
  if (PyObject* rewrite = PyDict_GetItemString(given.ptr(), "rewrite_grads")) {
    clipping.rewrite_grads = read_bool(rewrite, {operation, "rewrite_grads"});
  }
  if (clipping.clip_factor && !clipping.max_grad_norm) {
    refuse_value({operation, "clip_factor"}, std::string(max_norm) + " beside it, as the threshold", "none");
  }
  if (clipping.max_grad_value && clipping.max_grad_norm) {
    refuse_value({operation, "max_grad_value"}, "only one of max_grad_norm and max_grad_value", "both",
                 "Clip by the norm or by value.");
  }
  return clipping;
}

TensorView read_totals(py::handle totals, TensorReader& reader, const char* operation) {
  return totals.is_none() ? TensorView{} : reader.read(totals, {operation, "totals"});
}

}  // namespace fusestep
