// Threads that take turns: what is added up in a fixed order has the same bits whoever adds.
#pragma once

#include <cstdint>

namespace fusestep {

// Returns once the counter stands at `turn`, with everything visible that was written before it was moved there.
//
// Never waits for work that nobody does, as long as turns are taken in the order in which the work was claimed: whoever
// has the turn before claimed earlier and is running.
void wait_for_turn(const std::uint32_t& counter, std::uint32_t turn) noexcept;

// Moves the counter on by one. Only whoever has the turn may call this.
void pass_turn(std::uint32_t& counter) noexcept;

}  // namespace fusestep
