// The random numbers of stochastic rounding (math/rounding.h), for neighbouring elements of a tensor.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/kernels/random.h"
#include "cpu/kernels/slice.h"
#include "math/rounding.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// The room for the numbers of kStridedBuffer elements: whole blocks are drawn, and more than one at either end is not.
inline constexpr std::int64_t kRoomForNumbers = kStridedBuffer + 2 * kRandomBlock;

struct RoundingNumbers {
  RoundingDraw draw;
  ShardPositions positions;

  // The 16 bits of elements [first, first + count), at most kStridedBuffer, somewhere in `room`.
  [[gnu::noinline]] const std::uint16_t* of(std::int64_t first, std::int64_t count, std::uint16_t* room) const {
    if (count <= positions.left(first)) return of_positions(positions.of(first), count, room);
    alignas(64) std::uint16_t run_room[kRoomForNumbers];
    for (std::int64_t i = 0; i < count;) {
      const std::int64_t run = std::min(count - i, positions.left(first + i));
      const std::uint16_t* const drawn = of_positions(positions.of(first + i), run, run_room);
      memcpy(room + i, drawn, static_cast<std::size_t>(run) * sizeof *room);
      i += run;
    }
    return room;
  }

 private:
  FUSESTEP_HD const std::uint16_t* of_positions(std::int64_t first, std::int64_t count, std::uint16_t* room) const {
    const std::int64_t begin = first / kRandomBlock * kRandomBlock;
    for (std::int64_t block = begin; block < first + count; block += kRandomBlock) {
      random_block(block, room + (block - begin),
                   [&](Vec<std::uint32_t> low, std::uint32_t high) { return rounding_words(draw, low, high); });
    }
    return room + (first - begin);
  }
};

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
