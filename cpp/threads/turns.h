// Threads that add to the same memory in a fixed order, so that the sum has the same bits whichever thread adds what.
#pragma once

#include <cstdint>

namespace fusestep {

// Returns when the counter equals `turn`. What was written before the counter reached that value is visible then.
//
// It cannot deadlock if turns follow the order in which work is claimed: the thread with the turn before claimed its
// work earlier, so it is running.
void wait_for_turn(const std::uint32_t& counter, std::uint32_t turn) noexcept;

// Increments the counter. Only the thread that has the turn may call this.
void pass_turn(std::uint32_t& counter) noexcept;

}  // namespace fusestep
