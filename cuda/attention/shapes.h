// How large the tiles are, by machine and head dim: the one table of compiled shapes. kDepth is the head dim (query,
// key and value alike) up to which a shape serves; narrower ones are filled up with zeros.
//
// Shared memory of a block is at most 227 KB on Sm90. Sm80's stay within 99 KB, which all of its devices have.
// Registers of all threads together are at most what the launch gives them: 168 for each of 384 threads.
#pragma once

#include "cuda/attention/products.h"

namespace fusestep::cuda {

template <class Machine, int kDepth>
struct ForwardShape;

template <class Machine, int kDepth_, int kProducers_, int kGroups_, int kKeys_, int kStages_, int kProducerRegisters_,
          int kGroupRegisters_>
struct ForwardShapeOf {
  static constexpr int kReporters = Machine::kReporters;
  static constexpr int kDepth = kDepth_;
  static constexpr int kProducers = kProducers_;  // threads
  static constexpr int kCopiers =
      kProducers == 128 ? 64 : kProducers;  // of them, that copy a tile of keys or of values
  static constexpr int kGroups = kGroups_;  // of 128 threads and 64 queries
  static constexpr int kKeys = kKeys_;      // of a tile
  static constexpr int kStages = kStages_;  // tiles of keys and values in shared memory
  static constexpr int kProducerRegisters = kProducerRegisters_;
  static constexpr int kGroupRegisters = kGroupRegisters_;
  static constexpr int kQueries = kGroups * kGroupRows;
  static constexpr int kThreads = kProducers + kGroups * kGroupThreads;
};

//                                                      depth producers groups keys stages registers
template <>
struct ForwardShape<Sm90, 64> : ForwardShapeOf<Sm90, 64, 128, 2, 128, 2, 40, 232> {};
template <>
struct ForwardShape<Sm90, 128> : ForwardShapeOf<Sm90, 128, 128, 2, 128, 2, 40, 232> {};
template <>
struct ForwardShape<Sm90, 256> : ForwardShapeOf<Sm90, 256, 128, 2, 64, 2, 40, 232> {};
template <>
struct ForwardShape<Sm80, 64> : ForwardShapeOf<Sm80, 64, 32, 2, 64, 2, 0, 0> {};
template <>
struct ForwardShape<Sm80, 128> : ForwardShapeOf<Sm80, 128, 32, 2, 64, 2, 0, 0> {};
template <>
struct ForwardShape<Sm80, 256> : ForwardShapeOf<Sm80, 256, 32, 1, 32, 2, 0, 0> {};

// Keys stay, 64 of them for each group; tiles of 64 queries stream.
template <int kDepth_, int kColumns_, int kProducers_, int kGroups_, int kStages_, int kScoreTiles_,
          int kProducerRegisters_, int kGroupRegisters_>
struct BackwardShapeOf {
  static constexpr int kDepth = kDepth_;
  static constexpr int kColumns =
      kColumns_;  // of the gradients, computed by one block; kDepth / kColumns blocks share keys
  static constexpr int kProducers = kProducers_;
  static constexpr int kCopiers = kProducers == 128 ? 64 : kProducers;
  static constexpr int kGroups = kGroups_;
  static constexpr int kStages = kStages_;          // tiles of queries and of gradients of the result
  static constexpr int kScoreTiles = kScoreTiles_;  // tiles of gradients of scores: with two, a group may run ahead
  static constexpr int kProducerRegisters = kProducerRegisters_;
  static constexpr int kGroupRegisters = kGroupRegisters_;
  static constexpr int kKeys = kGroups * kGroupRows;
  static constexpr int kQueries = kGroupRows;
  static constexpr int kParts = kDepth / kColumns;
  static constexpr int kThreads = kProducers + kGroups * kGroupThreads;
};

template <class Machine, int kDepth>
struct BackwardShape;

//                                                        depth columns producers groups stages score tiles registers
template <>
struct BackwardShape<Sm90, 64> : BackwardShapeOf<64, 64, 128, 2, 2, 2, 40, 232> {};
template <>
struct BackwardShape<Sm90, 128> : BackwardShapeOf<128, 128, 128, 2, 2, 2, 40, 232> {};
template <>
struct BackwardShape<Sm90, 256> : BackwardShapeOf<256, 128, 128, 2, 1, 1, 40, 232> {};
template <>
struct BackwardShape<Sm80, 64> : BackwardShapeOf<64, 64, 32, 1, 2, 1, 0, 0> {};
template <>
struct BackwardShape<Sm80, 128> : BackwardShapeOf<128, 128, 32, 1, 1, 1, 0, 0> {};

}  // namespace fusestep::cuda
