// The products of attention in blocks of registers: up to kRowBlock rows by up to kVecs vectors of sums. Each step
// multiplies one row of vectors with kRowBlock broadcast numbers. Both products of the forward pass have this form
// without packing keys or values.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd/vec.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

inline constexpr int kRowBlock = 6;

// Vectors of sums in a row. Registers for a row of vectors and for the broadcast must remain, of 32 or 16.
#if defined(FUSESTEP_ISA_AVX2)
inline constexpr int kVecs = 2;
#else
inline constexpr int kVecs = 4;
#endif

// Queries that are processed together, one in each lane.
template <class T>
inline constexpr int kPanel = kVecs * Vec<T>::kWidth;

// `total` rows in as few blocks as can be, all of about the same size: blocks of one or two rows are slow.
struct RowBlocks {
  std::int64_t count;
  std::int64_t size;
  std::int64_t larger;  // so many blocks have one row more

  FUSESTEP_HD explicit RowBlocks(std::int64_t rows)
      : count((rows + kRowBlock - 1) / kRowBlock), size(count == 0 ? 0 : rows / count), larger(rows - count * size) {}
  FUSESTEP_HD std::int64_t begin(std::int64_t block) const { return block * size + std::min(block, larger); }
};

// sums[r][n] += a(r, step) * b[step * b_stride + n * width ...] over all steps.
template <class T, int kRows, int kColumns, class A>
FUSESTEP_HD void accumulate(Vec<T> (&sums)[kRows][kColumns], const A& a, const T* b, std::int64_t b_stride,
                            std::int64_t steps) {
  using V = Vec<T>;
  for (std::int64_t i = 0; i < steps; ++i) {
    V row[kColumns];
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; ++n) row[n] = V::load(b + i * b_stride + n * V::kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V x(a(r, i));
#pragma GCC unroll 8
      for (int n = 0; n < kColumns; ++n) sums[r][n] = fma(x, row[n], sums[r][n]);
    }
  }
}

// scores[r][panel] = keys[r] . queries_t[.][panel], where queries_t is [head dim][panel].
template <class T, int kRows, int kColumns>
void score_block(const T* keys, std::int64_t key_stride, const T* queries_t, std::int64_t head_dim, T* scores) {
  using V = Vec<T>;
  V sums[kRows][kColumns];
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kColumns; ++n) sums[r][n] = V(T(0));
  }
  accumulate<T>(sums, [&](int r, std::int64_t d) { return keys[r * key_stride + d]; }, queries_t, kPanel<T>, head_dim);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; ++n) sums[r][n].store(scores + r * kPanel<T> + n * V::kWidth);
  }
}

// out[r] = out[r] * rescale[r] + sum of weights_t[k][r] * values[k], where weights_t is [keys][panel].
template <class T, int kRows, int kColumns>
void output_block(const T* weights_t, const T* values, std::int64_t value_stride, std::int64_t keys, const T* rescale,
                  T* out, std::int64_t out_stride) {
  using V = Vec<T>;
  V sums[kRows][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const V factor(rescale[r]);
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; ++n) sums[r][n] = V::load(out + r * out_stride + n * V::kWidth) * factor;
  }
  accumulate<T>(sums, [&](int r, std::int64_t k) { return weights_t[k * kPanel<T> + r]; }, values, value_stride, keys);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; ++n) sums[r][n].store(out + r * out_stride + n * V::kWidth);
  }
}

// The backward pass has five products, with either factor transposed: c[r] (+)= sum of a[r * a_row + i * a_step] *
// b[i].
template <class T>
struct Product {
  const T* a;
  std::int64_t a_row;
  std::int64_t a_step;
  const T* b;
  std::int64_t b_stride;
  std::int64_t steps;
  T* c;
  std::int64_t c_stride;
  bool adds;
};

template <class T, int kRows, int kColumns>
void product_block(const Product<T>& p) {
  using V = Vec<T>;
  V sums[kRows][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; ++n) sums[r][n] = p.adds ? V::load(p.c + r * p.c_stride + n * V::kWidth) : V(T(0));
  }
  const T* const a = p.a;
  const std::int64_t a_row = p.a_row;
  const std::int64_t a_step = p.a_step;
  accumulate<T>(sums, [&](int r, std::int64_t i) { return a[r * a_row + i * a_step]; }, p.b, p.b_stride, p.steps);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; ++n) sums[r][n].store(p.c + r * p.c_stride + n * V::kWidth);
  }
}

// [rows - 1][columns - 1]
template <class T>
using ScoreBlock = void (*)(const T*, std::int64_t, const T*, std::int64_t, T*);
template <class T>
using OutputBlock = void (*)(const T*, const T*, std::int64_t, std::int64_t, const T*, T*, std::int64_t);
template <class T>
using ProductBlock = void (*)(const Product<T>&);

template <class Function, int kColumnsMost, class Make>
struct BlockTable {
  Function of[kRowBlock][kColumnsMost];

  constexpr BlockTable() : of{} { fill<1>(); }

 private:
  template <int kRows>
  constexpr void fill() {
    fill_row<kRows, 1>();
    if constexpr (kRows < kRowBlock) fill<kRows + 1>();
  }
  template <int kRows, int kColumns>
  constexpr void fill_row() {
    of[kRows - 1][kColumns - 1] = Make::template make<kRows, kColumns>();
    if constexpr (kColumns < kColumnsMost) fill_row<kRows, kColumns + 1>();
  }
};

template <class T>
struct MakeScoreBlock {
  template <int kRows, int kColumns>
  static constexpr ScoreBlock<T> make() {
    return score_block<T, kRows, kColumns>;
  }
};
template <class T>
struct MakeOutputBlock {
  template <int kRows, int kColumns>
  static constexpr OutputBlock<T> make() {
    return output_block<T, kRows, kColumns>;
  }
};
template <class T>
struct MakeProductBlock {
  template <int kRows, int kColumns>
  static constexpr ProductBlock<T> make() {
    return product_block<T, kRows, kColumns>;
  }
};

template <class T>
inline constexpr BlockTable<ScoreBlock<T>, kVecs, MakeScoreBlock<T>> kScoreBlocks{};
template <class T>
inline constexpr BlockTable<OutputBlock<T>, kVecs, MakeOutputBlock<T>> kOutputBlocks{};
template <class T>
inline constexpr BlockTable<ProductBlock<T>, kVecs, MakeProductBlock<T>> kProductBlocks{};

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
