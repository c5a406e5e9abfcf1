// One slice of plain dropout, with or without a residual to add to.
#include "math/dropout.h"

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/random.h"
#include "cpu/kernels/slice.h"
#include "jobs/slices.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// The elements that one vector of Philox calls serves.
constexpr int kBlock = kRandomBlock;

static_assert(kSliceElements % kBlock == 0 && kStridedBuffer % kBlock == 0, "blocks begin at multiples of kBlock");

FUSESTEP_HD void number_block(const DropoutRule& rule, std::int64_t first, std::uint16_t* numbers) {
  using Word = Vec<std::uint32_t>;
  random_block(first, numbers, [&](Word low, std::uint32_t high) {
    return philox<Word>({{low, Word(high), Word(0u), Word(rule.offset)}}, rule.seed.value());
  });
}

// What a loop over one kind of tensors needs, in registers. X, R: elements of input and residual; the arithmetic is in
// the wider of the two.
template <bool kAdds, class X, class R>
struct Dropper {
  using Out = Promoted<X, R>;
  using T = typename Wide<Out>::type;
  using V = Vec<T>;

  DropoutRule rule;
  std::uint16_t threshold;
  V scale;

  // Where everything is dropped no numbers are drawn: they stay 0, which is below the greatest threshold of 16 bits.
  FUSESTEP_HD explicit Dropper(const DropoutRule& r)
      : rule(r),
        threshold(static_cast<std::uint16_t>(r.drops_all() ? 65535u : r.threshold)),
        scale(static_cast<T>(r.scale())) {}

  FUSESTEP_HD bool draws() const { return rule.drops() && !rule.drops_all(); }

  FUSESTEP_HD void vector(const X* input, const R* residual, Out* out, const std::uint16_t* numbers) const {
    const V kept = keep(V::load(input), numbers, threshold);
    if constexpr (kAdds) {
      dropout_value(kept, scale, V::load(residual)).store(out);
    } else {
      dropout_value(kept, scale).store(out);
    }
  }

  // Flat memory that begins at element `first`, a multiple of kBlock. Not inline: both layouts below call it, for each
  // pair of dtypes. On a copy: its members stay in registers, for no store could reach them.
  [[gnu::noinline]] void flat(std::int64_t first, const X* input, const R* residual, Out* out,
                              std::int64_t count) const {
    Dropper(*this).blocks(first, input, residual, out, count);
  }

  FUSESTEP_HD void blocks(std::int64_t first, const X* input, const R* residual, Out* out, std::int64_t count) const {
    constexpr std::int64_t kInputAhead = kPrefetchBytes / static_cast<std::int64_t>(sizeof(X));
    constexpr std::int64_t kOutAhead = kPrefetchBytes / static_cast<std::int64_t>(sizeof(Out));
    std::uint16_t numbers[kBlock] = {};
    std::int64_t i = 0;
    for (; i + kBlock <= count; i += kBlock) {
      if (draws()) number_block(rule, first + i, numbers);
      for (int j = 0; j < kBlock; j += V::kWidth) {
        __builtin_prefetch(input + i + j + kInputAhead);
        __builtin_prefetch(out + i + j + kOutAhead, 1);
        vector(input + i + j, kAdds ? residual + i + j : nullptr, out + i + j, numbers + j);
      }
    }
    if (i == count) return;
    // The rest is padded to a whole block in buffers.
    X rest[kBlock] = {};
    R rest_residual[kBlock] = {};
    Out rest_out[kBlock];
    const auto rest_count = static_cast<std::size_t>(count - i);
    memcpy(rest, input + i, rest_count * sizeof(X));
    if constexpr (kAdds) memcpy(rest_residual, residual + i, rest_count * sizeof(R));
    if (draws()) number_block(rule, first + i, numbers);
    for (int j = 0; j < kBlock; j += V::kWidth) vector(rest + j, rest_residual + j, rest_out + j, numbers + j);
    memcpy(out + i, rest_out, rest_count * sizeof(Out));
  }

  // Rows are gathered one after another until a buffer is full: a block may begin in one and end in the next.
  void strided(const DropoutJob& job, std::int64_t first, std::int64_t count) const {
    X input[kStridedBuffer];
    R residual[kStridedBuffer];
    Out out[kStridedBuffer];
    ElementCursor from(job.layout, first);
    ElementCursor to(job.layout, first);
    for (std::int64_t done = 0; done < count; done += kStridedBuffer) {
      const std::int64_t n = std::min(count - done, kStridedBuffer);
      for_each_run(from, n, [&](std::int64_t at, std::int64_t run) {
        gather(input + at, static_cast<const X*>(job.input) + from.offset(0), from.step(0), run);
        if (kAdds) gather(residual + at, static_cast<const R*>(job.residual) + from.offset(2), from.step(2), run);
      });
      flat(first + done, input, residual, out, n);
      for_each_run(to, n, [&](std::int64_t at, std::int64_t run) {
        scatter(static_cast<Out*>(job.out) + to.offset(1), to.step(1), out + at, run);
      });
    }
  }
};

template <bool kAdds, class X, class R>
void dropout_of(const DropoutJob& job, std::int64_t slice) {
  const Dropper<kAdds, X, R> dropper(job.rule);
  const std::int64_t first = slice * kSliceElements;
  const std::int64_t count = std::min(kSliceElements, job.numel - first);
  if (job.layout != nullptr) return dropper.strided(job, first, count);
  const R* residual = kAdds ? static_cast<const R*>(job.residual) + first : nullptr;
  dropper.flat(first, static_cast<const X*>(job.input) + first, residual, static_cast<Promoted<X, R>*>(job.out) + first,
               count);
}

void dropout_slice(const DropoutJob& job, std::int64_t slice) {
  with_element_type(job.dtype, [&]<class X>(X) {
    if (job.residual == nullptr) return dropout_of<false, X, X>(job, slice);
    with_element_type(job.residual_dtype, [&]<class R>(R) { dropout_of<true, X, R>(job, slice); });
  });
}

}  // namespace

void fill_dropout(CpuKernels& kernels) { kernels.dropout = dropout_slice; }

}  // namespace fusestep::FUSESTEP_ISA
