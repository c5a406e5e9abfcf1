// One slice of plain dropout, with or without a residual to add to.
#include "math/dropout.h"

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/slice.h"
#include "jobs/slices.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

using Word = Vec<std::uint32_t>;

// The elements that one vector of Philox calls serves.
constexpr int kBlock = kDropoutGroup * Word::kWidth;

static_assert(kSliceElements % kBlock == 0 && kStridedBuffer % kBlock == 0, "blocks begin at multiples of kBlock");

// The numbers of elements [first, first + kBlock); first is a multiple of kBlock, so that no lane's group carries into
// the upper word.
FUSESTEP_HD void number_block(const DropoutRule& rule, std::int64_t first, std::uint16_t* numbers) {
  const auto group = static_cast<std::uint64_t>(first) / kDropoutGroup;
  const auto [word] = philox<Word>({{Word::iota(static_cast<std::uint32_t>(group)),
                                     Word(static_cast<std::uint32_t>(group >> 32)), Word(0u), Word(rule.offset)}},
                                   rule.seed);
  Word::store_numbers(numbers, word[0], word[1], word[2], word[3]);
}

// What a loop over one kind of tensors needs, in registers.
template <bool kAdds, class S>
struct Dropper {
  using T = typename Wide<S>::type;
  using V = Vec<T>;

  DropoutRule rule;
  V scale;

  FUSESTEP_HD explicit Dropper(const DropoutRule& r) : rule(r), scale(static_cast<T>(r.scale())) {}

  FUSESTEP_HD void vector(const S* input, const S* residual, S* out, const std::uint16_t* numbers) const {
    const V kept = keep(V::load(input), numbers, static_cast<std::uint16_t>(rule.threshold));
    if constexpr (kAdds) {
      dropout_value(kept, scale, V::load(residual)).store(out);
    } else {
      dropout_value(kept, scale).store(out);
    }
  }

  // Flat memory that begins at element `first`, a multiple of kBlock.
  FUSESTEP_HD void flat(std::int64_t first, const S* input, const S* residual, S* out, std::int64_t count) const {
    constexpr std::int64_t kAhead = kPrefetchBytes / static_cast<std::int64_t>(sizeof(S));
    std::uint16_t numbers[kBlock] = {};
    std::int64_t i = 0;
    for (; i + kBlock <= count; i += kBlock) {
      if (rule.drops()) number_block(rule, first + i, numbers);
      for (int j = 0; j < kBlock; j += V::kWidth) {
        __builtin_prefetch(input + i + j + kAhead);
        __builtin_prefetch(out + i + j + kAhead, 1);
        vector(input + i + j, kAdds ? residual + i + j : nullptr, out + i + j, numbers + j);
      }
    }
    if (i == count) return;
    // The rest is padded to a whole block in a buffer.
    S rest[kBlock] = {};
    S rest_residual[kBlock] = {};
    const auto bytes = static_cast<std::size_t>(count - i) * sizeof(S);
    memcpy(rest, input + i, bytes);
    if constexpr (kAdds) memcpy(rest_residual, residual + i, bytes);
    if (rule.drops()) number_block(rule, first + i, numbers);
    for (int j = 0; j < kBlock; j += V::kWidth) vector(rest + j, rest_residual + j, rest + j, numbers + j);
    memcpy(out + i, rest, bytes);
  }

  // Rows are gathered one after another until a buffer is full: a block may begin in one and end in the next.
  void strided(const DropoutJob& job, std::int64_t first, std::int64_t count) const {
    S input[kStridedBuffer];
    S residual[kStridedBuffer];
    StridedCursor from(*job.layout, first);
    StridedCursor to(*job.layout, first);
    for (std::int64_t done = 0; done < count; done += kStridedBuffer) {
      const std::int64_t n = std::min(count - done, kStridedBuffer);
      for_each_run(from, n, [&](std::int64_t at, std::int64_t run) {
        gather(input + at, static_cast<const S*>(job.input) + from.offset(0), from.step(0), run);
        if (kAdds) gather(residual + at, static_cast<const S*>(job.residual) + from.offset(2), from.step(2), run);
      });
      flat(first + done, input, residual, input, n);
      for_each_run(to, n, [&](std::int64_t at, std::int64_t run) {
        scatter(static_cast<S*>(job.out) + to.offset(1), to.step(1), input + at, run);
      });
    }
  }

  // Calls each(position, length) for the pieces of `count` elements that lie at one step.
  template <class Each>
  FUSESTEP_HD static void for_each_run(StridedCursor& cursor, std::int64_t count, const Each& each) {
    for (std::int64_t at = 0; at < count;) {
      const std::int64_t run = std::min(count - at, cursor.run());
      each(at, run);
      cursor.advance(run);
      at += run;
    }
  }
};

template <bool kAdds, class S>
void dropout_of(const DropoutJob& job, std::int64_t slice) {
  const Dropper<kAdds, S> dropper(job.rule);
  const std::int64_t first = slice * kSliceElements;
  const std::int64_t count = std::min(kSliceElements, job.numel - first);
  if (job.layout != nullptr) return dropper.strided(job, first, count);
  const S* residual = kAdds ? static_cast<const S*>(job.residual) + first : nullptr;
  dropper.flat(first, static_cast<const S*>(job.input) + first, residual, static_cast<S*>(job.out) + first, count);
}

template <bool kAdds>
void dropout_of_any_dtype(const DropoutJob& job, std::int64_t slice) {
  switch (job.dtype) {
    case DType::float32:
      return dropout_of<kAdds, float>(job, slice);
    case DType::float64:
      return dropout_of<kAdds, double>(job, slice);
    case DType::float16:
      return dropout_of<kAdds, Float16>(job, slice);
    case DType::bfloat16:
      return dropout_of<kAdds, BFloat16>(job, slice);
    default:
      return;  // refused before
  }
}

void dropout_slice(const DropoutJob& job, std::int64_t slice) {
  job.residual == nullptr ? dropout_of_any_dtype<false>(job, slice) : dropout_of_any_dtype<true>(job, slice);
}

}  // namespace

void fill_dropout(CpuKernels& kernels) { kernels.dropout = dropout_slice; }

}  // namespace fusestep::FUSESTEP_ISA
