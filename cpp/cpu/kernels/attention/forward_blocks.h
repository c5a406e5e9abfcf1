// What begins and ends every forward pass, whatever made its products.
#pragma once

#include <cstdint>
#include <limits>

#include "cpu/kernels/attention/blocks.h"
#include "cpu/kernels/attention/store.h"
#include "jobs/attention.h"
#include "math/attention/score.h"
#include "math/log2.h"
#include "simd/vec.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// Query blocks [first, last) of the list of all: block.run(sequence, head, first query).
template <class Block>
void forward_blocks(const AttentionJob& job, Block block, std::int64_t first, std::int64_t last) {
  for (std::int64_t b = first; b < last; ++b) {
    const QueryBlock at = query_block(job, b);
    block.run(at.sequence, at.head, at.query0);
  }
}

// Where the softmax of a block of kQueryBlock rows stands when all keys were visited.
template <class T>
struct SoftmaxRows {
  const T* maximum;  // in base 2; -inf where a row attended to nothing
  const T* sum;      // of 2^(score - maximum), before dropout
  const T* out;      // [row][out_stride]: the sum of the weighted values
  std::int64_t out_stride;
};

// Writes `rows` rows of lse and out, from these elements on.
template <class T>
void store_softmax(const AttentionJob& job, std::int64_t lse_offset, std::int64_t out_offset, std::int64_t rows,
                   const SoftmaxRows<T>& from) {
  using V = Vec<T>;
  constexpr int kWidth = V::kWidth;
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  // The logarithm of a row that attends to nothing is garbage and is not used.
  T lse[kQueryBlock];
  for (std::int64_t row = 0; row < kQueryBlock; row += kWidth) {
    T guess[kWidth];
    for (int i = 0; i < kWidth; ++i) guess[i] = guess_log2(static_cast<float>(from.sum[row + i]));
    const V log = log2_from<T>(V::load(guess), V::load(from.sum + row));
    ((V::load(from.maximum + row) + log) * V(static_cast<T>(kLn2))).store(lse + row);
  }
  const T keep_scale = static_cast<T>(job.dropout.scale());
  for (std::int64_t row = 0; row < rows; ++row) {
    const bool empty = from.maximum[row] == -kInfinity;
    if (job.lse.data != nullptr) {
      static_cast<T*>(job.lse.data)[lse_offset + row * job.lse.row] = empty ? -kInfinity : lse[row];
    }
    store_row(job.out, job.dtype, out_offset + row * job.out.row, from.out + row * from.out_stride,
              empty ? T(0) : keep_scale / from.sum[row], job.value_dim);
  }
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
