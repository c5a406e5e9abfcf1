#include "threads/scratch.h"

#include <memory>
#include <new>

namespace fusestep {

namespace {

constexpr std::align_val_t kAlignment{64};

struct Free {
  void operator()(void* memory) const { ::operator delete(memory, kAlignment); }
};

struct Scratch {
  std::unique_ptr<void, Free> memory;
  std::size_t size = 0;
};

thread_local Scratch scratch;

}  // namespace

void* thread_scratch(std::size_t bytes) {
  if (bytes > scratch.size) {
    scratch.memory.reset();  // first, so that the two never exist together
    scratch.size = 0;
    scratch.memory.reset(::operator new(bytes, kAlignment));
    scratch.size = bytes;
  }
  return scratch.memory.get();
}

}  // namespace fusestep
