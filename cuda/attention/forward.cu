// Compiled once for each FUSESTEP_MACHINE, FUSESTEP_STORAGE and FUSESTEP_DEPTH (CMakeLists.txt).
#include "cuda/attention/forward.h"
#include "cuda/attention/tensor_cores.h"
#include "cuda/attention/variants.h"

namespace fusestep::cuda {

template <class Machine, class S, int kDepth>
void run_forward(Session& session, const AttentionArguments& arguments) {
  using Shape = ForwardShape<Machine, kDepth>;
  constexpr std::size_t kBytes = sizeof(ForwardMemory<Shape>) + 1024;  // see dynamic_shared_memory()
  static_assert(kBytes <= Machine::kSharedBytes);
  with_variant<kDepth>(arguments.job, [&]<Mask kMask, bool kDrops>() {
    launch("attention_forward", attention_forward<Machine, S, Shape, kMask, kDrops>,
           arguments.query_tiles.bound * arguments.job.heads, Shape::kThreads, session.stream(), arguments, kBytes);
  });
}

template void run_forward<FUSESTEP_MACHINE, FUSESTEP_STORAGE, FUSESTEP_DEPTH>(Session&, const AttentionArguments&);

}  // namespace fusestep::cuda
