// Plain dropout, and dropout with a residual added: out <- dropout(x), out <- residual + dropout(x).
#pragma once

#include "backend/backend.h"
#include "operations/dropout_seed.h"
#include "tensors/check.h"
#include "tensors/layout.h"

namespace fusestep {

class DropoutPlan {
 public:
  // `residual` may be null, and may have another dtype than x: `out` has the promoted one. Refuses what cannot be done.
  // `out` may be x or residual, but no other view of their memory. p: in [0, 1].
  DropoutPlan(const char* operation, const TensorView& x, const TensorView* residual, const TensorView& out, double p,
              const SeedOption& seed, std::uint32_t offset);

  void run(const Stream& stream) const;

 private:
  const Backend* backend_;
  LayoutStore layouts_;
  DropoutJob job_{};
};

}  // namespace fusestep
