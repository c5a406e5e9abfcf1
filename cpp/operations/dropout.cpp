#include "operations/dropout.h"

#include <string>

#include "backend/dispatch.h"
#include "tensors/check_view.h"
#include "tensors/overlap.h"
#include "tensors/view_layout.h"

namespace fusestep {

namespace {

bool is_same_memory(const TensorView& a, const TensorView& b) {
  return a.data == b.data && a.dtype == b.dtype && same_strides(a, b);
}

}  // namespace

DropoutPlan::DropoutPlan(const char* operation, const TensorView& x, const TensorView* residual, const TensorView& out,
                         double p, const SeedOption& seed, std::uint32_t offset) {
  const Argument x_argument{operation, "x"};
  const Argument residual_argument{operation, "residual"};
  const Argument out_argument{operation, "out"};
  backend_ = &backend_for(x.device, x_argument);
  const DType residual_dtype = residual != nullptr ? residual->dtype : x.dtype;
  const DType out_dtype = promoted(x.dtype, residual_dtype);
  if (residual != nullptr) check_like(*residual, x, residual_argument, "x");
  check_like(out, x, out_argument, "x");
  if (out.dtype != out_dtype) {
    refuse_type(out_argument,
                std::string(name_of(out_dtype)) + (residual != nullptr ? " as x + residual is" : " as x is"),
                name_of(out.dtype));
  }
  check_writable(out, out_argument);
  OverlapCheck overlaps;
  overlaps.writes(out, out_argument);
  if (!is_same_memory(x, out)) overlaps.reads(x, x_argument);
  if (residual != nullptr && !is_same_memory(*residual, out)) overlaps.reads(*residual, residual_argument);
  overlaps.check();

  const TensorView* const views[] = {&x, &out, residual};
  const int operands[] = {0, 1, 2};
  job_.input = x.data;
  job_.residual = residual != nullptr ? residual->data : nullptr;
  job_.out = out.data;
  job_.layout = layouts_.layout_of(views, operands, residual != nullptr ? 3 : 2, x_argument, ElementOrder::c_order);
  job_.numel = x.numel;
  job_.dtype = x.dtype;
  job_.residual_dtype = residual_dtype;
  job_.rule = dropout_rule(p, checked_seed(seed, x.device, {operation, "seed"}), offset);
}

void DropoutPlan::run(const Stream& stream) const { backend_->dropout(job_, stream); }

}  // namespace fusestep
