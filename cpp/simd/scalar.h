// The vector type of the scalar level: one element. It runs on every CPU, and it is the plainest statement of what a
// vector type offers:
//   Vec<T>::kWidth, Vec(T) broadcasts, load(const S*) reads kWidth elements of storage type S, store(S*) writes them,
//   + - * /, unary -, fma, sqrt, abs, max, min with the meaning of math/hd.h.
#pragma once

#include "math/hd.h"
#include "math/lowp.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

template <class T>
struct Vec {
  static constexpr int kWidth = 1;
  T v;

  Vec() = default;
  FUSESTEP_HD Vec(T x) : v(x) {}

  FUSESTEP_HD static Vec load(const float* p) { return static_cast<T>(*p); }
  FUSESTEP_HD static Vec load(const double* p) { return static_cast<T>(*p); }
  FUSESTEP_HD static Vec load(const BFloat16* p) { return static_cast<T>(to_float(*p)); }
  FUSESTEP_HD static Vec load(const Float16* p) { return static_cast<T>(to_float(*p)); }
  FUSESTEP_HD void store(T* p) const { *p = v; }
  FUSESTEP_HD void store(BFloat16* p) const { *p = to_bfloat16(v); }
  FUSESTEP_HD void store(Float16* p) const { *p = to_float16(v); }

  FUSESTEP_HD friend Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  FUSESTEP_HD friend Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  FUSESTEP_HD friend Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  FUSESTEP_HD friend Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  FUSESTEP_HD friend Vec operator-(Vec a) { return -a.v; }
  FUSESTEP_HD friend Vec fma(Vec a, Vec b, Vec c) { return fusestep::fma(a.v, b.v, c.v); }
  FUSESTEP_HD friend Vec sqrt(Vec a) { return fusestep::sqrt(a.v); }
  FUSESTEP_HD friend Vec abs(Vec a) { return fusestep::abs(a.v); }
  FUSESTEP_HD friend Vec max(Vec a, Vec b) { return fusestep::max(a.v, b.v); }
  FUSESTEP_HD friend Vec min(Vec a, Vec b) { return fusestep::min(a.v, b.v); }
};

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
