// The library's own memory on a device: tables that kernels read, and scratch that they hand to each other.
//
// Both belong to a stream, whose order protects them: a kernel of the next step runs after those of this one, and so
// does a copy that overwrites a table. A table is kept as long as its content is asked for, so that a step over the
// same tensors uploads nothing. Contents are compared as bytes, so what is put into a table must have no padding.
//
// While a stream is being captured nothing can be reused: the graph may run at any time later. Each request gets memory
// of its own then, filled at once, which belongs to the graph and is freed after the last of its copies.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <type_traits>
#include <vector>

#include "backend/backend.h"

namespace fusestep::cuda {

using Bytes = std::vector<unsigned char>;

// Makes the stream's device the current one, holds its memory for one call of the library, and gives back the device
// that was current before.
class Session {
 public:
  explicit Session(const Stream& stream);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  cudaStream_t stream() const { return stream_; }
  int device() const { return device_; }
  bool capturing() const { return capturing_; }

  // Where `content` lies on the device, for this session's kernels.
  const void* table(const Bytes& content);

  // A number on the device that is 0, and that this session's kernels leave at 0.
  std::uint32_t* counter();

  // Uninitialised, for this session's kernels. One a session: it is the same memory each time.
  unsigned char* scratch(std::size_t bytes);

  // Copies from the device, and waits.
  void read_back(void* to, const void* from, std::size_t bytes);

  // To be called after the last launch: waits if no other work is ordered after this stream.
  void finish();

 private:
  bool wait_;
  bool capturing_ = false;
  int device_;
  int previous_device_ = -1;
  cudaStream_t stream_;
  std::unique_lock<std::mutex> lock_;
};

// Appends the bytes of `count` plain values, aligned for them; returns where they begin.
template <class T>
std::size_t append(Bytes& bytes, const T* values, std::size_t count) {
  static_assert(std::has_unique_object_representations_v<T>, "padding would make equal tables differ");
  const std::size_t begin = (bytes.size() + 15) / 16 * 16;
  bytes.resize(begin + count * sizeof(T));
  if (count > 0) std::memcpy(bytes.data() + begin, values, count * sizeof(T));
  return begin;
}

template <class T>
const T* at(const void* table, std::size_t offset) {
  return reinterpret_cast<const T*>(static_cast<const unsigned char*>(table) + offset);
}

}  // namespace fusestep::cuda
