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
template <bool kAdds, class S, class T>
__device__ __forceinline__ S dropped(const PhiloxWords<std::uint32_t>& words, int i, const DropoutRule& rule, T scale,
                                     S x, S residual) {
  const T kept = philox_number(words, i) < rule.threshold ? T(0) : widened<T>(x);
  S out;
  if constexpr (kAdds) {
    narrow(dropout_value(kept, scale, widened<T>(residual)), out);
  } else {
    narrow(dropout_value(kept, scale), out);
  }
  return out;
}

constexpr int kThreads = 256;

template <bool kAdds, bool kStrided, class S>
__global__ void __launch_bounds__(kThreads, kStrided ? 1 : 4)
    dropout(const __grid_constant__ DropoutArguments arguments) {
  using T = typename Wide<S>::type;
  const DropoutJob& job = arguments.job;
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kDropoutGroup;
  if (first >= job.numel) return;
  const auto words = job.rule.drops() ? dropout_words(job.rule, first) : PhiloxWords<std::uint32_t>{};
  const T scale = static_cast<T>(job.rule.scale());
  const S* input = static_cast<const S*>(job.input);
  const S* residual = static_cast<const S*>(job.residual);
  S* out = static_cast<S*>(job.out);

  constexpr int kPack = kPackOf<S>;
  const bool whole = first + kDropoutGroup <= job.numel;
  const bool aligned =
      is_aligned<S, kPack>(input) && is_aligned<S, kPack>(out) && (!kAdds || is_aligned<S, kPack>(residual));
  if (!kStrided && whole && aligned) {
    for (int part = 0; part < kDropoutGroup; part += kPack) {
      auto x = pack_at<S, kPack>(input + first + part);
      Pack<S, kPack> r{};
      if (kAdds) r = pack_at<S, kPack>(residual + first + part);
      for (int i = 0; i < kPack; ++i) {
        x.value[i] = dropped<kAdds, S, T>(words, part + i, job.rule, scale, x.value[i], r.value[i]);
      }
      pack_at<S, kPack>(out + first + part) = x;
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
    out[at[1]] = dropped<kAdds, S, T>(words, i, job.rule, scale, input[at[0]], kAdds ? residual[at[2]] : input[at[0]]);
  }
}

template <bool kAdds, class S>
void launch_dropout(const DropoutArguments& arguments, cudaStream_t stream) {
  constexpr std::int64_t kOfBlock = kThreads * kDropoutGroup;
  launch("dropout", arguments.layout != nullptr ? dropout<kAdds, true, S> : dropout<kAdds, false, S>,
         (arguments.job.numel + kOfBlock - 1) / kOfBlock, kThreads, stream, arguments);
}

template <class S>
void launch_dropout(const DropoutArguments& arguments, cudaStream_t stream) {
  arguments.job.residual != nullptr ? launch_dropout<true, S>(arguments, stream)
                                    : launch_dropout<false, S>(arguments, stream);
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
  switch (job.dtype) {
    case DType::float32:
      launch_dropout<float>(arguments, session.stream());
      break;
    case DType::float64:
      launch_dropout<double>(arguments, session.stream());
      break;
    case DType::float16:
      launch_dropout<Float16>(arguments, session.stream());
      break;
    case DType::bfloat16:
      launch_dropout<BFloat16>(arguments, session.stream());
      break;
    default:
      break;  // is refused
  }
  session.finish();
}

}  // namespace fusestep::cuda
