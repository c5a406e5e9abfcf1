#include "tensors/check_view.h"

#include "tensors/view_layout.h"

namespace fusestep {

void check_writable(const TensorView& view, const Argument& argument) {
  if (view.read_only) refuse_value(argument, "a writable array", "a read-only one", "It is changed in place.");
  if (may_self_overlap(view)) {
    refuse_value(argument, "each element in memory of its own", "an expanded or overlapping view",
                 "It is changed in place: pass an array of its own, for example x.clone() or numpy.array(x).");
  }
}

void check_like(const TensorView& view, const TensorView& model, const Argument& argument, const std::string& whose) {
  if (view.device != model.device) {
    refuse_value(argument, "the device of " + whose, "another one", "Move both to one device.");
  }
  if (!same_shape(view, model)) {
    refuse_value(argument, "shape " + describe_shape(model) + " as " + whose + " has", describe_shape(view));
  }
}

}  // namespace fusestep
