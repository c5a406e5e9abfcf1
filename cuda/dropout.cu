// Plain dropout, with or without a residual to add to. A thread takes eight neighbours, those that share a Philox call.
#include "cuda/concatenation.h"
#include "cuda/dropout.h"
#include "cuda/launch.h"
#include "cuda/values.h"

namespace fusestep::cuda {
namespace {

struct DropoutArguments {
  DropoutJob job;
  const StridedLayout* layout;  // on the device; nullptr: flat
};

// One element of the group's.
template <bool kAdds, class T, class X, class R>
__device__ __forceinline__ Promoted<X, R> dropped(const PhiloxWords<std::uint32_t>& words, int i,
                                                  const DropoutRule& rule, T scale, X x, R residual) {
  const T kept = philox_number(words, i) < rule.threshold ? T(0) : widened<T>(x);
  Promoted<X, R> out;
  if constexpr (kAdds) {
    narrow(dropout_value(kept, scale, widened<T>(residual)), out);
  } else {
    narrow(dropout_value(kept, scale), out);
  }
  return out;
}

constexpr int kThreads = 256;

template <bool kAdds, bool kStrided, class X, class R>
__global__ void __launch_bounds__(kThreads, kStrided ? 1 : 4)
    dropout(const __grid_constant__ DropoutArguments arguments) {
  using Out = Promoted<X, R>;
  using T = typename Wide<Out>::type;
  const DropoutJob& job = arguments.job;
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kDropoutGroup;
  if (first >= job.numel) return;
  const auto words = job.rule.drops() ? dropout_words(job.rule, first) : PhiloxWords<std::uint32_t>{};
  const T scale = static_cast<T>(job.rule.scale());
  const X* input = static_cast<const X*>(job.input);
  const R* residual = static_cast<const R*>(job.residual);
  Out* out = static_cast<Out*>(job.out);

  constexpr int kPack = kPackOf<Out>;  // Out is the widest of the three
  const bool whole = first + kDropoutGroup <= job.numel;
  const bool aligned =
      is_aligned<X, kPack>(input) && is_aligned<Out, kPack>(out) && (!kAdds || is_aligned<R, kPack>(residual));
  if (!kStrided && whole && aligned) {
    for (int part = 0; part < kDropoutGroup; part += kPack) {
      const auto x = pack_at<X, kPack>(input + first + part);
      Pack<R, kPack> r{};
      if (kAdds) r = pack_at<R, kPack>(residual + first + part);
      Pack<Out, kPack> sum;
      for (int i = 0; i < kPack; ++i) {
        sum.value[i] = dropped<kAdds, T>(words, part + i, job.rule, scale, x.value[i], r.value[i]);
      }
      pack_at<Out, kPack>(out + first + part) = sum;
    }
    return;
  }
  for (int i = 0; i < kDropoutGroup; ++i) {
    const std::int64_t element = first + i;
    if (element >= job.numel) continue;
    std::int64_t at[3] = {element, element, element};
    if constexpr (kStrided) {
      for (int operand = 0; operand < (kAdds ? 3 : 2); ++operand) {
        at[operand] = offset_of(*arguments.layout, operand, element);
      }
    }
    out[at[1]] = dropped<kAdds, T>(words, i, job.rule, scale, input[at[0]], kAdds ? residual[at[2]] : R{});
  }
}

template <bool kAdds, class X, class R>
void launch_dropout(const DropoutArguments& arguments, cudaStream_t stream) {
  constexpr std::int64_t kOfBlock = kThreads * kDropoutGroup;
  launch("dropout", arguments.layout != nullptr ? dropout<kAdds, true, X, R> : dropout<kAdds, false, X, R>,
         (arguments.job.numel + kOfBlock - 1) / kOfBlock, kThreads, stream, arguments);
}

}  // namespace

void run_dropout(const DropoutJob& job, const Stream& stream) {
  Session session(stream);
  DropoutArguments arguments{job, nullptr};
  if (job.layout != nullptr) {
    Bytes table;
    append(table, job.layout, 1);
    arguments.layout = at<StridedLayout>(session.table(table), 0);
  }
  with_element_type(job.dtype, [&]<class X>(X) {
    if (job.residual == nullptr) return launch_dropout<false, X, X>(arguments, session.stream());
    with_element_type(job.residual_dtype, [&]<class R>(R) { launch_dropout<true, X, R>(arguments, session.stream()); });
  });
  session.finish();
}

}  // namespace fusestep::cuda
