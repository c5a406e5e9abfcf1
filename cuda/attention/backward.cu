// Compiled once for each FUSESTEP_MACHINE, FUSESTEP_STORAGE and FUSESTEP_DEPTH (CMakeLists.txt).
#include "cuda/attention/backward.h"
#include "cuda/attention/tensor_cores.h"
#include "cuda/attention/variants.h"

namespace fusestep::cuda {

template <class Machine, class S, int kDepth>
void run_backward(Session& session, const AttentionArguments& arguments) {
  using Shape = BackwardShape<Machine, kDepth>;
  constexpr std::size_t kBytes = sizeof(BackwardMemory<Shape>) + 1024;  // see dynamic_shared_memory()
  static_assert(kBytes <= Machine::kSharedBytes);
  with_variant<kDepth>(arguments.job, [&]<Mask kMask, bool kDrops>() {
    launch("attention_backward", attention_backward<Machine, S, Shape, kMask, kDrops>,
           arguments.key_tiles.bound * arguments.job.kv_heads * Shape::kParts, Shape::kThreads, session.stream(),
           arguments, kBytes);
  });
}

template void run_backward<FUSESTEP_MACHINE, FUSESTEP_STORAGE, FUSESTEP_DEPTH>(Session&, const AttentionArguments&);

}  // namespace fusestep::cuda
